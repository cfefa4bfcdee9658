"""s35 inspect, generate, logits and quantize: what they print, and errors in one line."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import s35
from reference.engine import ReferenceModel

COUNTS = ("drafted_per_position", "accepted_per_position")
ROOT = Path(__file__).parents[2]
NANO = ROOT / "reference" / "nano"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = s35.main(words)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def run_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code, out, _ = run(capsys, *words, "--json")
    assert code == 0
    record: dict[str, Any] = json.loads(out)
    return record


def test_inspect_counts_the_published_config(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "reference" / "configs" / "step_3_5_flash.json")
    counts = run_json(capsys, "inspect", "--config", config)
    assert counts["num_tensors"] == 804
    assert counts["checkpoint_bytes"] == 398768626944
    assert counts["parameters"]["total"] == 199384301376
    assert counts["kv_cache_bytes"]["262144"] == 12954107904
    _, table, _ = run(capsys, "inspect", "--config", config)
    assert "parameters, backbone" in table
    assert "196,956,130,368" in table


def test_inspect_verifies_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_json(capsys, "inspect", "--checkpoint", str(NANO))["parameters"]["mtp"] > 0
    (tmp_path / "config.json").write_text((NANO / "config.json").read_text())
    code, _, err = run(capsys, "inspect", "--checkpoint", str(tmp_path))
    assert code == 4
    assert "holds neither model.safetensors nor" in err


def test_generate_prints_text_tokens_and_acceptance(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "--checkpoint", str(NANO), "--prompt", "def ", "--max-new-tokens", "24")
    drafted, plain = run_json(capsys, *words, "--mtp", "3"), run_json(capsys, *words)
    assert drafted["tokens"] == plain["tokens"]
    assert len(drafted["tokens"]) == 24
    assert len(drafted["acceptance_per_position"]) == 3
    assert plain["acceptance_per_position"] == []
    code, out, err = run(capsys, *words, "--mtp", "3")
    assert code == 0
    assert out == drafted["text"] + "\n"  # as it streamed
    assert "24 tokens (length)" in err
    assert "drafts accepted by position" in err


def test_generate_rounds_draft_heads_and_the_text_stays(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "--prompt", "class ", "--max-new-tokens", "48", "--mtp", "3")
    plain = run_json(capsys, *words)
    for more in ((), ("--engine", "reference.engine:engine")):
        rounded = run_json(capsys, *words, *more, "--draft-heads", "int4")
        assert rounded["tokens"] == plain["tokens"]
        assert rounded["drafted_per_position"] != plain["drafted_per_position"]


def test_generate_samples_by_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "--prompt", "import ", "--max-new-tokens", "16", "--temperature", "1", "--top-p", "0.9")
    first, again, other = (run_json(capsys, *words, "--seed", seed)["tokens"] for seed in ("1", "1", "2"))
    assert first == again != other


def test_generate_answers_a_chat_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    chat = tmp_path / "chat.json"
    chat.write_text(json.dumps([{"role": "user", "content": "What does os.path.join do?"}]))
    record = run_json(capsys, "generate", "--chat", str(chat), "--max-new-tokens", "200")
    assert record["finish_reason"] == "stop"
    assert record["message"]["reasoning"]
    assert "<" not in record["message"]["content"]


def test_generate_runs_a_registered_engine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("generate", "--prompt", "class ", "--max-new-tokens", "8", "--mtp", "2")
    engine = ("--engine", "reference.engine:engine")
    record = run_json(capsys, *words, *engine)
    assert record["tokens"] == run_json(capsys, *words)["tokens"]
    assert record["tokens_per_s"] > 0

    whole = ReferenceModel.generate

    def without_times(*args: Any, **options: Any) -> SimpleNamespace:
        made = whole(*args, **options)
        return SimpleNamespace(**{name: getattr(made, name) for name in ("tokens", *COUNTS)})

    monkeypatch.setattr(ReferenceModel, "generate", without_times)
    again = run_json(capsys, *words, *engine)
    assert again["tokens"] == record["tokens"]
    assert again["tokens_per_s"] is None  # prefill is not told apart: no number rather than a wrong one


def test_streamed_logits_are_the_loaded_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = [tmp_path / "streamed.safetensors", tmp_path / "loaded.safetensors"]
    words = ("logits", "--checkpoint", str(NANO), "--prompt", "for i in range(", "--out")
    streamed = run_json(capsys, *words, str(files[0]), "--stream")
    loaded = run_json(capsys, *words, str(files[1]))
    assert streamed["next"] == loaded["next"]
    assert streamed["peak_memory_bytes"] > 0
    first, second = (load_file(path) for path in files)
    assert torch.equal(first["logits"], second["logits"])
    assert first["logits"].shape == (len(streamed["tokens"]), 768)


def test_a_quantised_checkpoint_is_written_and_generates_what_the_profile_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run(capsys, "quantize", str(NANO), str(tmp_path / "int4"), "--format", "int4")
    assert (code, err) == (0, "")  # no bar where nobody watches
    assert out.startswith(f"{tmp_path / 'int4'}: experts in int4, 0.0")
    words = ("generate", "--prompt", "def ", "--max-new-tokens", "8", "--engine", "reference-w4a16")
    saved = run_json(capsys, *words, "--checkpoint", str(tmp_path / "int4"))
    assert saved["tokens"] == run_json(capsys, *words)["tokens"]
    code, out, err = run(capsys, "quantize", str(NANO), str(tmp_path / "int4"), "--format", "fp8")
    assert (code, out) == (4, "")
    assert "is not an empty folder" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "--prompt", "x", "--mtp", "4"], "mtp: is 4; want 0 to 3"),
        (["generate", "--prompt", "x", "--mtp", "auto"], "mtp: is auto; want 0 to 3"),
        (["generate", "--prompt", "x", "--top-p", "0"], "sampling: temperature 0.0, top_k 0, top_p 0.0"),
        (["generate", "--prompt", "x", "--checkpoint", "nowhere"], "nowhere"),
        (["generate", "--prompt", "x", "--device", "tpu"], "device: is 'tpu'; want cpu, cuda, cuda:N or mps"),
        (["generate", "--prompt", "x", "--engine", "nobody"], "engine: 'nobody' is not registered"),
        (["generate", "--prompt", "x", "--engine", "reference-bf16", "--dtype", "float64"], "want it left out"),
        (["logits", "--prompt", "x", "--stream", "--device", "tpu"], "device: is 'tpu'"),
        (["generate", "--chat", "nowhere.json"], "nowhere.json"),
        (["inspect", "--config", "nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_4(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (4, "")
    assert err.startswith(f"s35 {words[0]}: ")
    assert message in err
    assert len(err.splitlines()) == 1
