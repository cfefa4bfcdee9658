"""The judge finds in each installed subject what is written in conformance/subjects, neither less nor more."""

import json
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KNOWN = ROOT / "conformance" / "subjects" / "known_failures"
WRONG = {"failed", "error", "timeout"}

WEIGHTS = "conformance/ops/test_router.py::test_weights_are_unbiased_scores_renormalised_and_scaled"

# Engine, library, what is judged, and what is known to fail. In bfloat16 only what no other machine's kernels can tip.
JUDGED: dict[str, tuple[str, list[str], str | None]] = {
    "hf_transformers:engine": ("transformers", ["conformance"], "hf_transformers.toml"),
    "hf_transformers:bf16_engine": (
        "transformers",
        ["conformance/ops/test_rms_norm.py", "conformance/ops/test_rope.py", WEIGHTS],
        "hf_transformers_bf16.toml",
    ),
    "apple_mlx_lm:engine": ("mlx_lm", ["conformance"], "apple_mlx_lm.toml"),
    "apple_mlx_lm:loader_engine": (
        "mlx_lm",
        ["conformance/model/test_logits.py", "conformance/model/test_cache.py", "conformance/model/test_routing.py"],
        "apple_mlx_lm_loader.toml",
    ),
    "ggml_llama_cpp:engine": ("llama_cpp", ["conformance"], "ggml_llama_cpp.toml"),
    "ggml_llama_cpp:ring_engine": (
        "llama_cpp",
        ["conformance/model/test_logits.py", "conformance/model/test_cache.py", "conformance/model/test_batch.py"],
        None,
    ),
}


@pytest.mark.parametrize("engine", JUDGED)
def test_the_judge_finds_what_is_recorded(
    engine: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    library, paths, known_file = JUDGED[engine]
    pytest.importorskip(library)
    checks = tmp_path / "checks.json"
    options = [f"--engine=conformance.subjects.{engine}", f"--checks={checks}", "-q", "-p", "no:cacheprovider"]
    known = {}
    if known_file is not None:
        known = tomllib.loads((KNOWN / known_file).read_text(encoding="utf-8"))
        options.append(f"--known-failures={KNOWN / known_file}")
    command = [sys.executable, "-m", "pytest", *paths, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checks.exists(), done.stdout + done.stderr
    records = json.loads(checks.read_text(encoding="utf-8"))["checks"]
    counts = Counter(record["status"] for record in records)
    record_property("verdict", f"{engine}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    wrong = {record["id"]: record["detail"] for record in records if record["status"] in WRONG}
    assert wrong.keys() == known.keys(), [detail for id, detail in wrong.items() if id not in known]
    assert counts["passed"]
    assert done.returncode == 0, done.stdout + done.stderr
