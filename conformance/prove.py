"""Prove the judge: run it on every wrong engine of the catalogue, which it must fail, and on the right ones.

A fault is caught if a check of its own clause fails and no check breaks. Whatever else happens to it, a timeout or a
process that ends without a record included, counts against the judge.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .faults.catalogue import BENIGN, FAULTS

TIME_LIMIT_S = 600  # of one engine; none needs a tenth of it


@dataclass(frozen=True)
class Outcome:
    """What the judge said of one engine of the catalogue.

    Attributes:
        verdict: caught, missed, error or timeout of a fault; accepted or rejected of a right engine, or the last two.
        caught_by: the checks that failed.
        exit_code: of pytest; None after a timeout.
    """

    name: str
    clause: str | None
    origin: str | None
    verdict: str
    caught_by: tuple[str, ...]
    exit_code: int | None
    seconds: float
    checks: tuple[dict[str, Any], ...]

    @property
    def as_wanted(self) -> bool:
        return self.verdict in ("caught", "accepted")


def prove(
    names: Iterable[str], checkpoint: Path, say: Callable[[Outcome], None] = lambda outcome: None
) -> list[Outcome]:
    """Judge engines of the catalogue in as many processes as there are cores.

    Args:
        names: of FAULTS or BENIGN.
        checkpoint: for the checks of whole models.
        say: called with each outcome as it comes.

    Raises:
        ValueError: a name that is not in the catalogue.
    """
    names = list(names)
    unknown = [name for name in names if name not in FAULTS and name not in BENIGN]
    if unknown:
        raise ValueError(f"fault: {', '.join(unknown)} is not in the catalogue; want names of faults.toml")
    lanes = [lane for lane in (names[start :: os.cpu_count() or 1] for start in range(os.cpu_count() or 1)) if lane]
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
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def collect(self) -> Iterable[Outcome]:
        """Outcomes since the last call, in order."""
        ended = self.process.poll() is not None  # before looking at files: what it wrote is then all there
        while self.pending and (file := self.folder / f"{self.pending[0]}.json").exists():
            yield _outcome(self.pending.pop(0), **json.loads(file.read_text(encoding="utf-8")))
            self.began = time.monotonic()
        late = time.monotonic() - self.began > TIME_LIMIT_S
        if self.pending and (ended or late):
            self.stop()
            seconds = time.monotonic() - self.began
            yield _outcome(self.pending.pop(0), None if late else self.process.returncode, seconds, [])
            if self.pending:
                self._start()


def _outcome(name: str, exit_code: int | None, seconds: float, checks: list[dict[str, Any]]) -> Outcome:
    failed = tuple(check["id"] for check in checks if check["status"] == "failed")
    broken = any(check["status"] == "error" for check in checks)
    fault = FAULTS.get(name)
    if exit_code is None:
        verdict = "timeout"
    elif broken or not checks or exit_code not in (0, 1, 5):
        verdict = "error"
    elif fault is None:
        verdict = "accepted" if exit_code == 0 else "rejected"
    else:
        clauses = {check["clause"] for check in checks if check["status"] == "failed"}
        verdict = "caught" if exit_code == 1 and fault.clause in clauses else "missed"
    clause, origin = (fault.clause, fault.origin) if fault else (None, None)
    return Outcome(name, clause, origin, verdict, failed, exit_code, round(seconds, 2), tuple(checks))
