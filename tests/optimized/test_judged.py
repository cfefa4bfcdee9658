"""The optimised engine is judged as a vendor's: its kernels, interpreted on a CPU or on a GPU, meet their clauses."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXPERTS = ["test_experts.py", "test_experts_fp8.py", "test_quantize_activation.py"]
JUDGED = {  # every row in bf16 and what other profiles change
    "optimized": ["."],
    "optimized-float32": ["test_linear.py", "test_attention.py", "test_rms_norm.py", "test_rope.py", "test_router.py"],
    "optimized-fp8": EXPERTS[1:],
    "optimized-w8a16": EXPERTS[:1],
    "optimized-w4a16": EXPERTS[:1],
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the judge wrote of each engine."""
    folder = tmp_path_factory.mktemp("judged")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def judge(engine: str) -> dict[str, Any]:
        checks = folder / f"{engine}.json"
        files = [str(ROOT / "conformance/ops" / file) for file in JUDGED[engine]]
        words = ["-m", "pytest", *files, f"--engine={engine}", f"--checks={checks}", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        record = json.loads(checks.read_text(encoding="utf-8")) if checks.exists() else {"checks": []}
        return record | {"output": done.stdout, "exit_code": done.returncode}

    with ThreadPoolExecutor(os.cpu_count()) as lanes:
        return dict(zip(JUDGED, lanes.map(judge, JUDGED), strict=True))


@pytest.mark.parametrize("engine", JUDGED)
def test_every_check_passes(records: dict[str, dict[str, Any]], engine: str):
    record = records[engine]
    assert record["exit_code"] == 0, record["output"][-3000:]
    assert {check["status"] for check in record["checks"]} == {"passed"}


def test_no_row_is_missing(records: dict[str, dict[str, Any]]):
    assert records["optimized"]["capabilities"]["not_offered"] == {}
    rows = {path.stem for path in (ROOT / "reference/ops").glob("[a-z]*.py")}
    assert set(records["optimized"]["capabilities"]["offered"]) == rows
