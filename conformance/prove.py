"""Prove the judge: on every wrong engine, which it must fail; on right ones, which it must accept; and on attacks.

A fault is caught if a check of its own clause fails and none breaks; an attack, if the judge ends in order and does not
pass it. Whatever else happens, a timeout or a process that ends without a record included, counts against the judge.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .faults.attacks import ATTACKS
from .faults.catalogue import BENIGN, EQUIVALENTS, FAULTS
from .plugin import PROBABLE_PART

TIME_LIMIT_S = 600  # of one engine; none needs a tenth of it
ENDS_WITHIN_S = 30  # after its last engine
KINDS: dict[str, Mapping[str, Any]] = {"fault": FAULTS, "equivalent": EQUIVALENTS, "benign": BENIGN, "attack": ATTACKS}
ACCEPTANCE = "model/test_generation.py::test_drafts_are_accepted_as_often_as_the_references"
# What the merge gate leaves to the longer run: checks that load many checkpoints or draw many tokens, and whole models
# in narrow arithmetic. More than 85 of 100 faults stay.
SLOW_CHECKS = ("model/test_drafts.py", "model/test_sampling.py", "model/test_loading.py", ACCEPTANCE)
ENDED_IN_ORDER = (0, 1, 5)  # exit codes of a session that judged


@dataclass(frozen=True)
class Outcome:
    """What the judge said of one engine of the catalogue.

    Attributes:
        kind: a key of KINDS.
        verdict: caught or missed, of a fault or an attack; accepted or rejected, of the others; or error, or timeout.
        caught_by: the checks that failed.
        part: what the first of them was put down to.
        localised: whether that is where the fault is; None for what is no fault.
        exit_code: of pytest; None after a timeout.
    """

    name: str
    kind: str
    clause: str | None
    origin: str | None
    verdict: str
    caught_by: tuple[str, ...]
    part: str | None
    localised: bool | None
    exit_code: int | None
    seconds: float
    checks: tuple[dict[str, Any], ...]

    @property
    def as_wanted(self) -> bool:
        return self.verdict in ("caught", "accepted")


def known_names() -> list[str]:
    """Every engine of the catalogue, attacks last."""
    return [name for table in KINDS.values() for name in table]


def gate_names() -> list[str]:
    """What every merge is judged by: faults and right engines whose checks are quick, and all attacks."""
    quick = [name for kind in ("fault", "benign", "equivalent") for name, e in KINDS[kind].items() if _is_quick(e)]
    return [*quick, *ATTACKS]


def _is_quick(entry: Any) -> bool:
    of_operators = all(path.startswith("ops/") for path in entry.checks)
    return of_operators or (
        entry.profile == "float32" and all(path and not path.startswith(SLOW_CHECKS) for path in entry.checks)
    )


def prove(
    names: Iterable[str], checkpoint: Path, say: Callable[[Outcome], None] = lambda outcome: None
) -> list[Outcome]:
    """Judge engines of the catalogue in as many processes as there are cores.

    Args:
        names: of ``known_names``.
        checkpoint: for the checks of whole models.
        say: called with each outcome as it comes.

    Raises:
        ValueError: a name that is not in the catalogue.
    """
    names, known = list(names), known_names()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"prove: {', '.join(unknown)} is not in the catalogue; want names that `s35 prove --list` gives"
        )
    count = os.cpu_count() or 1
    lanes = [lane for lane in (names[start::count] for start in range(count)) if lane]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        workers = [_Worker(Path(scratch) / str(number), checkpoint, lane) for number, lane in enumerate(lanes)]
        try:
            while any(worker.pending for worker in workers):
                for worker in workers:
                    for outcome in worker.collect():
                        outcomes.append(outcome)
                        say(outcome)
                time.sleep(0.1)  # between looks at what the workers wrote
        finally:
            for worker in workers:
                worker.stop()
    return sorted(outcomes, key=lambda outcome: names.index(outcome.name))


def score(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Count outcomes; what is neither caught nor accepted stays in the denominators."""
    of: dict[str, list[Outcome]] = {kind: [] for kind in KINDS}
    for outcome in outcomes:
        of[outcome.kind].append(outcome)
    caught = sum(outcome.as_wanted for outcome in of["fault"])
    right = of["benign"] + of["equivalent"]
    return {
        "faults": len(of["fault"]),
        "caught": caught,
        "equivalent": len(of["equivalent"]),
        "survivors": len(of["fault"]) - caught,
        "localised": sum(outcome.localised is True for outcome in of["fault"]),
        "benign": len(of["benign"]),
        "false_alarms": sum(not outcome.as_wanted for outcome in right),
        "attacks": len(of["attack"]),
        "attacks_caught": sum(outcome.as_wanted for outcome in of["attack"]),
    }


class _Worker:
    """A process that judges a list of engines; replaced by a new one when an engine crashes it or hangs."""

    def __init__(self, folder: Path, checkpoint: Path, names: list[str]) -> None:
        folder.mkdir()
        self.folder = folder
        self.checkpoint = checkpoint
        self.pending = list(names)
        self._start()

    def _start(self) -> None:
        self.began = time.monotonic()
        self.log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "conformance.faults.worker", self.folder, self.checkpoint, *self.pending],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.folder)},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def stop(self) -> None:
        if not self.pending:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(ENDS_WITHIN_S)  # and its children's time is counted
        self.process.kill()
        self.process.wait()
        self.log.close()

    def collect(self) -> Iterable[Outcome]:
        """Outcomes since the last call, in order."""
        ended = self.process.poll() is not None  # before looking at files: what it wrote is then all there
        while self.pending and (file := self.folder / f"{self.pending[0]}.json").exists():
            yield outcome_of(self.pending.pop(0), **json.loads(file.read_text(encoding="utf-8")))
            self.began = time.monotonic()
        late = time.monotonic() - self.began > TIME_LIMIT_S
        if self.pending and (ended or late):
            self.stop()
            seconds = time.monotonic() - self.began
            yield outcome_of(self.pending.pop(0), None if late else self.process.returncode, seconds, [])
            if self.pending:
                self._start()


def outcome_of(name: str, exit_code: int | None, seconds: float, checks: list[dict[str, Any]]) -> Outcome:
    """Read what a judged engine left."""
    kind = next(kind for kind, table in KINDS.items() if name in table)
    failed = tuple(check["id"] for check in checks if check["status"] == "failed")
    broken = any(check["status"] in ("error", "timeout") for check in checks)
    fault = FAULTS.get(name)
    if exit_code is None:
        verdict = "timeout"
    elif not checks or exit_code not in ENDED_IN_ORDER or (broken and kind != "attack"):
        verdict = "error"
    elif kind == "attack":
        verdict = "missed" if exit_code == 0 else "caught"
    elif fault is None:
        verdict = "accepted" if exit_code == 0 else "rejected"
    else:
        clauses = {check["clause"] for check in checks if check["status"] == "failed"}
        verdict = "caught" if exit_code == 1 and fault.clause in clauses else "missed"
    clause, origin = (fault.clause, fault.origin) if fault else (None, None)
    part = next((part_in(check["detail"]) for check in checks if check["status"] == "failed"), None)
    localised = None if fault is None else part == fault.component
    where = (clause, origin, verdict, failed, part, localised)
    return Outcome(name, kind, *where, exit_code, round(seconds, 2), tuple(checks))


def part_in(detail: str) -> str | None:
    """The part that the detail of a failure names."""
    lines = [line for line in detail.splitlines() if line.startswith(PROBABLE_PART)]
    return lines[0].removeprefix(PROBABLE_PART) if lines else None
