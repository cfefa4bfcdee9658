"""From evidence to the status of a check, from statuses to one word, and from that word to an exit code.

One judge: the plugin that records a check and ``s35 verify`` that reads the record call the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .schema import CheckRecord, Evidence


class Status(StrEnum):
    """How one check ended."""

    PASSED = "passed"
    FAILED = "failed"  # it judged, and the engine is wrong
    ERROR = "error"  # it broke before it could judge
    TIMEOUT = "timeout"  # it did not end in time
    SKIPPED = "skipped"  # it was to run and did not
    INCONCLUSIVE = "inconclusive"  # it ran, but could not have caught a fault
    NOT_SUPPORTED = "not-supported"  # the engine does not offer what it judges


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


MAX_SUMMARY_CHARACTERS = 120  # of a check's detail, in a line that begins with the verdict

WRONG = {Status.FAILED: "failed", Status.ERROR: "broke", Status.TIMEOUT: "timed out"}  # each fails a run
OF_THE_JUDGE = "L0"  # its checks judge the judge, and pass whatever the engine is
ABSENT = {Status.NOT_SUPPORTED: "not supported", Status.SKIPPED: "skipped"}
FACTS = {Status.ERROR, Status.TIMEOUT, Status.SKIPPED, Status.NOT_SUPPORTED}  # stated, not computed


def exit_code(verdict: Verdict) -> ExitCode:
    return ExitCode[verdict.name]


def margin(statistic: float, bound: float) -> float:
    """Divide what was measured by what is allowed: above 1 fails; NaN is infinitely far away.

    A bound of 0 (exact comparisons) has margin 0 or infinity; so has an infinite one, which forbids nothing.
    """
    if math.isnan(statistic) or math.isnan(bound):
        return math.inf
    if bound <= 0 or math.isinf(bound):
        return 0.0 if statistic <= bound else math.inf
    return statistic / bound


def is_beyond(entry: Evidence) -> bool:
    """Whether a comparison by this rule went beyond its bound; NaN did."""
    return not entry.statistic <= entry.bound


def status_of(record: CheckRecord) -> Status:
    """Compute a status from evidence and counters; the recorded one counts only where it states a fact.

    failed: an entry is beyond its bound, whatever else happened. error, timeout, skipped, not-supported: as stated.
    inconclusive: nothing was compared, a bound was infinite, or a counter stayed 0. passed: everything else.
    """
    if any(is_beyond(entry) for entry in record.evidence):
        return Status.FAILED
    if record.status in FACTS:
        return record.status
    compared = sum(entry.comparisons for entry in record.evidence) > 0
    bounded = all(math.isfinite(entry.bound) for entry in record.evidence)
    return Status.PASSED if compared and bounded and not stayed_zero(record) else Status.INCONCLUSIVE


def stayed_zero(record: CheckRecord) -> list[str]:
    """Names of the counters that did not come above 0: what they count never happened."""
    return [name for name, count in record.counters.items() if not count > 0]


def judge(checks: Sequence[CheckRecord], heed_waivers: bool = False) -> tuple[Verdict, str]:
    """Give the verdict on a run and the reason for it, one line.

    One wrong or broken check fails the run. A run that judged nothing, or that holds a check that could not
    judge, is inconclusive, never passed.

    Args:
        heed_waivers: set checks with a waiver aside: the verdict after waivers.
    """
    heard = [check for check in checks if not (heed_waivers and check.waiver is not None)]
    waived = len(checks) - len(heard)
    of = {status: [check for check in heard if check.status is status] for status in Status}
    wrong = [check for status in WRONG for check in of[status]]
    aside = "".join(f", {len(of[status])} {word}" for status, word in ABSENT.items() if of[status])
    aside += f", {waived} waived" if waived else ""
    if wrong:
        words = [f"{len(of[status])} {word}" for status, word in WRONG.items() if of[status]]
        return Verdict.FAIL, f"of {_checks(len(heard))} {_and(words)}{aside}, first {_first(wrong)}"
    if of[Status.INCONCLUSIVE]:
        unsure = f"{len(of[Status.INCONCLUSIVE])} could not judge"
        return (
            Verdict.INCONCLUSIVE,
            f"of {_checks(len(heard))} {unsure}{aside}, first {_first(of[Status.INCONCLUSIVE])}",
        )
    if not checks:
        return Verdict.INCONCLUSIVE, "no check ran"
    if not of[Status.PASSED]:
        return Verdict.INCONCLUSIVE, f"no check passed{aside}"
    if of[Status.NOT_SUPPORTED] and all(check.level == OF_THE_JUDGE for check in of[Status.PASSED]):
        return Verdict.INCONCLUSIVE, f"no check of the engine passed{aside}"
    return Verdict.PASS, f"{_checks(len(of[Status.PASSED]))} passed{aside}"


def _checks(count: int) -> str:
    return "1 check" if count == 1 else f"{count} checks"


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _first(checks: Sequence[CheckRecord]) -> str:
    summary = checks[0].detail.strip().partition("\n")[0]
    if len(summary) > MAX_SUMMARY_CHARACTERS:
        summary = f"{summary[:MAX_SUMMARY_CHARACTERS]}..."
    return f"{checks[0].id}: {summary}" if summary else checks[0].id
