"""From red to cause: the part that a failure names, and the script that shows it without the judge."""

import subprocess
import sys
from pathlib import Path

import pytest

import s35
from conformance.localise import probable_part, row_of, smallest_parts

OPERATOR = "conformance/ops/test_rms_norm.py::test_eps_is_added_before_the_root"
MODEL = "conformance/model/test_logits.py::test_logits_of_a_single_token_are_the_oracles"
QUANTISED = "conformance/ops/test_experts_fp8.py::test_adds_up_experts_of_rounded_activations[7.0]"


def run(script: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script], cwd=script.parent, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("check", "engine"),
    [
        (OPERATOR, "conformance.faults.attacks:lowers_precision"),
        (MODEL, "conformance.faults.attacks:lowers_precision"),
        (QUANTISED, "conformance.faults.catalogue:experts_fp8_unclamped"),
    ],
)
def test_a_failure_becomes_a_short_script_that_fails_alone(
    check: str, engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert s35.main(["repro", check, "--engine", engine, "--out", str(tmp_path)]) == 0
    script = Path(capsys.readouterr().out.split()[-1])
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    module, _, attribute = engine.partition(":")
    assert [line for line in text.splitlines() if "conformance" in line and "import" in line] == [
        f"engine = importlib.import_module({module!r}).{attribute}"
    ]
    wrong = run(script)
    assert (wrong.returncode, "wrong: beyond the bound" in wrong.stderr) == (1, True), wrong.stderr
    right = "reference.engine", "fp8_engine" if "fp8" in check else "engine"
    mended = text.replace(f"{module!r}).{attribute}", f"{right[0]!r}).{right[1]}")
    script.write_text(mended, encoding="utf-8")
    assert run(script).returncode == 0, run(script).stderr


def test_a_check_that_passes_has_nothing_to_reproduce(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert s35.main(["repro", OPERATOR, "--engine", "reference", "--out", str(tmp_path)]) == 1
    assert "nothing to reproduce" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_check_of_an_operator_names_its_row() -> None:
    assert row_of("conformance/ops/test_rope.py::test_x[1]") == "rope"
    assert row_of("conformance/ops/test_captured.py::test_x[router]") == "router"
    assert row_of("conformance/ops/test_captured.py::test_x[text]") is None
    assert row_of("conformance/model/test_cache.py::test_x") is None
    assert probable_part("conformance/ops/test_rope.py::test_x", "ROPE-1", [], None, None) == "rope"
    assert probable_part("conformance/model/test_cache.py::test_x", "CACHE-1", [], None, None) == "cache"


def test_a_part_that_others_are_made_of_is_the_cause() -> None:
    assert smallest_parts(["mlp", "swiglu", "experts", "attention"]) == ["attention", "swiglu"]
    assert smallest_parts(["mlp", "mlp"]) == ["mlp"]
