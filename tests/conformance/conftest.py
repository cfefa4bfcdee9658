"""One run of each kind, shared by all tests that read it; two processes at a time."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one, which engines under test are named by

from processes import HERE, TIMEOUT_S, Judgement, finish, start, start_judge
from wrong_engines import MODEL_FAULTS, OP_FAULTS

CORRECT = ["reference", "reference.engine:bf16_engine", "correct_engines:reordered", "correct_engines:reordered_bf16"]


@pytest.fixture(scope="session")
def nano() -> Path:
    return HERE.parents[1] / "reference" / "nano"


@pytest.fixture(scope="session")
def fault_outcomes(tmp_path_factory: pytest.TempPathFactory, nano: Path) -> dict[str, Any]:
    """Exit code and records for each fault, by name."""
    running = []
    for faults in (OP_FAULTS, MODEL_FAULTS):
        folder = tmp_path_factory.mktemp("faults")
        process = start([str(HERE / "judge_faults.py"), str(folder), str(nano), *faults])
        running.append((folder, process))
    outcomes: dict[str, Any] = {}
    for folder, process in running:
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, output[-3000:]
        outcomes |= json.loads((folder / "outcomes.json").read_text(encoding="utf-8"))
    return outcomes


@pytest.fixture(scope="session")
def correct_judgements(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Judgement]:
    """Engines that are right; the reference's two on everything, the reordered ones on the operators."""
    folder = tmp_path_factory.mktemp("correct")
    judgements = {}
    for target, pair in (("conformance/", CORRECT[:2]), ("conformance/ops", CORRECT[2:])):
        files = [folder / f"{name.replace(':', '-')}.json" for name in pair]
        running = [start_judge(file, target, "--engine", name) for file, name in zip(files, pair, strict=True)]
        finished = [finish(process, file) for process, file in zip(running, files, strict=True)]
        judgements |= dict(zip(pair, finished, strict=True))
    return judgements
