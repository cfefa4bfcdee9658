"""From the outcomes of checks to one word, and from that word to the exit code of a process."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .schema import CheckRecord


class Status(StrEnum):
    """How one check ended."""

    PASSED = "passed"
    FAILED = "failed"  # it judged, and the engine is wrong
    ERROR = "error"  # it broke before it could judge
    SKIPPED = "skipped"
    INCONCLUSIVE = "inconclusive"  # it ran, but could not have caught a fault


class Verdict(StrEnum):
    """How a run ended."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


class ExitCode(IntEnum):
    """Exit codes of ``s35``; pytest uses the same numbers (its 5 is "no tests collected")."""

    PASS = 0
    FAIL = 1
    INTERRUPTED = 2
    INTERNAL_ERROR = 3
    USAGE = 4
    INCONCLUSIVE = 5


def exit_code(verdict: Verdict) -> ExitCode:
    return ExitCode[verdict.name]


def judge(checks: Sequence[CheckRecord]) -> tuple[Verdict, str]:
    """Give the verdict on a run and the reason for it, one line.

    One wrong or broken check fails the run. A run that judged nothing, or that holds a check that could not
    judge, is inconclusive, never passed.
    """
    of = {status: [check for check in checks if check.status is status] for status in Status}
    wrong = of[Status.FAILED] + of[Status.ERROR]
    if wrong:
        words = [f"{len(of[status])} {word}" for status, word in _WRONG.items() if of[status]]
        return Verdict.FAIL, f"of {_checks(len(checks))} {' and '.join(words)}, first {_first(wrong)}"
    if of[Status.INCONCLUSIVE]:
        count = len(of[Status.INCONCLUSIVE])
        reason = f"of {_checks(len(checks))} {count} could not judge, first {_first(of[Status.INCONCLUSIVE])}"
        return Verdict.INCONCLUSIVE, reason
    if not checks:
        return Verdict.INCONCLUSIVE, "no check ran"
    if not of[Status.PASSED]:
        return Verdict.INCONCLUSIVE, f"{_checks(len(checks))} skipped, none ran"
    skipped = f", {len(of[Status.SKIPPED])} skipped" if of[Status.SKIPPED] else ""
    return Verdict.PASS, f"{_checks(len(of[Status.PASSED]))} passed{skipped}"


_WRONG = {Status.FAILED: "failed", Status.ERROR: "broke"}


def _checks(count: int) -> str:
    return "1 check" if count == 1 else f"{count} checks"


def _first(checks: Sequence[CheckRecord]) -> str:
    summary = checks[0].detail.strip().partition("\n")[0]
    return f"{checks[0].id}: {summary}" if summary else checks[0].id
