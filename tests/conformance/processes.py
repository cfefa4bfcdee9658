"""Run the judge as its users do: as a process."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.faults.attacks import ATTACKS
from conformance.prove import gate_names

# Every fourth engine of the merge gate, and all attacks; `make gate` judges the whole gate, `make prove` the catalogue.
SAMPLE = [*(name for name in gate_names()[::4] if name not in ATTACKS), *ATTACKS]
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TIMEOUT_S = 1200  # a hang, not a slow machine


@dataclass(frozen=True)
class Judgement:
    """What one run of pytest left."""

    exit_code: int
    output: str
    record: dict[str, Any]

    def clauses(self, status: str) -> set[str]:
        return {check["clause"] for check in self.record.get("checks", []) if check["status"] == status}


def start(arguments: list[str], cwd: Path = ROOT) -> subprocess.Popen[str]:
    """Start Python with the engines of this folder importable."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def start_judge(checks: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """Start pytest with a file for its record."""
    return start(["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--checks={checks}", *arguments], cwd)


def finish(process: subprocess.Popen[str], checks: Path) -> Judgement:
    output, _ = process.communicate(timeout=TIMEOUT_S)
    record = json.loads(checks.read_text(encoding="utf-8")) if checks.exists() else {}
    return Judgement(process.returncode, output, record)


def judge(checks: Path, *arguments: str, cwd: Path = ROOT) -> Judgement:
    return finish(start_judge(checks, *arguments, cwd=cwd), checks)
