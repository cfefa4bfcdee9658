"""A small conformance suite on disk: checks whose outcomes are data, judged in a process of pytest as real ones are."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reports.conformance_session import pytest_arguments
from reports.digest import checkpoint_sha256
from reports.levels import read_levels
from reports.run import Request
from reports.suite import levels_file

HERE = Path(__file__).parent
CHECK = """import pytest

@pytest.mark.parametrize("clause", {clauses})
def test_{name}(case, clause):
    if case["ends"] == "skips":
        pytest.skip(case["detail"])
    assert case["ends"] == "passes", case["detail"]
"""
NORM = "conformance/ops/test_norm.py::test_norm[NORM-1]"
DRAFT = "conformance/ops/test_draft.py::test_draft[MTP-1]"
ROLLBACK = "conformance/model/test_rollback.py::test_rollback[ROLLBACK-1]"


def entry(statistic=0.5, bound=2.0, **changes):
    """Evidence by one rule, without its margin."""
    fields = {
        "rule": "2 ulp",
        "comparisons": 3,
        "statistic": statistic,
        "bound": bound,
        "detects": 1e-6,
        "where": "t=1",
    }
    return {**fields, **changes}


def case(clause, ends="passes", evidence=None, counters=None, fact="passed", detail=""):
    return {
        "clause": clause,
        "ends": ends,
        "evidence": [entry()] if evidence is None else evidence,
        "counters": {"rows": 9} if counters is None else counters,
        "fact": fact,
        "detail": detail,
    }


def cases() -> dict[str, dict[str, Any]]:
    """One passing check a must-pass clause; one that fails, one that is not supported, one that judges nothing."""
    found = {"conformance/spec/test_spec.py::test_spec[NORM-1]": case("NORM-1")}
    for level in read_levels(levels_file()):
        for number, clause in enumerate(level.must_pass or ()):
            evidence = [entry(0.25 + number / 64), entry(0, 0, rule="equal, bit for bit", detects=None)]
            found[f"{level.folder}/test_all.py::test_all[{clause}]"] = case(clause, evidence=evidence)
    found[NORM] = case("NORM-1", "fails", [entry(8.0)], detail="row 3: 1.0, want 2.0")
    found[DRAFT] = case("MTP-1", "skips", [], {}, "not-supported", "drafts: small has no drafts")
    found[ROLLBACK] = case("ROLLBACK-1", counters={"tokens_taken_back": 0})
    return found


def write_suite(root: Path, found: Mapping[str, Any], checkpoint: Path) -> Path:
    """Write checks for these cases below ``root``; returns the folder that pytest is to run."""
    folder = root / "conformance"
    folder.mkdir(parents=True)
    shutil.copy(HERE / "small_judge.py", root / "conftest.py")
    (root / "pytest.ini").write_text(
        "[pytest]\naddopts = --import-mode=importlib\n"
    )  # the suite's own settings load the suite's own judge
    (root / "cases.json").write_text(json.dumps(found))
    settings = {"levels": str(levels_file()), "checkpoint_sha256": checkpoint_sha256(checkpoint)}
    (root / "settings.json").write_text(json.dumps(settings))
    clauses_by_file: dict[str, list[str]] = {}
    for id in found:
        clauses_by_file.setdefault(id.partition("::")[0], []).append(id.partition("[")[2].removesuffix("]"))
    for file, clauses in clauses_by_file.items():
        (root / file).parent.mkdir(exist_ok=True)
        name = Path(file).stem.removeprefix("test_")
        (root / file).write_text(CHECK.format(clauses=clauses, name=name))
    return folder


def request_for(root: Path, checkpoint: Path, found: Mapping[str, Any], **files: Path) -> Request:
    """Ask for a run of a small suite; its results go to ``root/out``."""
    folder = write_suite(root, found, checkpoint)
    arguments = pytest_arguments([str(folder)], "reference", "quick", "cpu", **files)
    arguments += ["-c", str(root / "pytest.ini"), "--rootdir", str(root), "-p", "no:cacheprovider"]
    return Request(
        engine="reference",
        tier="quick",
        device="cpu",
        checkpoint=checkpoint,
        out=root / "out",
        pytest_arguments=tuple(arguments),
        command=("s35", "run", "--quick"),
        **files,
    )
