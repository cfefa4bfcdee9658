"""What evidence shows of a results folder, whatever its hashes say: conclusions that do not follow from it."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from datetime import date

from .bundle import CHECKS, JUNIT, RESULT, Bundle, Complaint, differences
from .junit import ended_badly
from .levels import judge_levels, level_of
from .schema import ConformanceOutcome, ResultError, load
from .verdict import WRONG, Status, judge, margin, status_of
from .waivers import check_terms, check_waivers, waive


def _collected(bundle: Bundle) -> Iterator[Complaint]:
    """Every check that was to run has one record, in order; other records are of the suite, and no check."""
    result = bundle.result
    ids = [check.id for check in result.checks if check.clause]
    for id, count in Counter(ids).items():
        if count > 1:
            yield Complaint(id, "id", f"has {count} records; want 1")
    for id in Counter(result.collected) - Counter(ids):
        yield Complaint(id, "record", "was collected and has no record")
    for id in Counter(set(ids)) - Counter(result.collected):
        yield Complaint(id, "id", "has a record and was not collected")
    if ids != list(result.collected) and sorted(ids) == sorted(result.collected):
        yield Complaint(RESULT, "checks", "stand in another order than collected")
    for check in result.checks:
        if not check.clause and (check.status not in (*WRONG, Status.INCONCLUSIVE) or check.evidence):
            yield Complaint(check.id, "clause", "cites none; want one, or a record of what went wrong with the session")
    if result.engine_identity is None and (ids or result.collected):
        yield Complaint(RESULT, "engine_identity", "is null, but checks were collected")
    if not result.checks and not result.collected and result.engine_identity is None:
        yield Complaint(RESULT, "checks", "is empty; want a record of why nothing was judged")


def _records(bundle: Bundle) -> Iterator[Complaint]:
    """Each record follows from its own evidence, and belongs to this run."""
    result = bundle.result
    for check in result.checks:
        for index, entry in enumerate(check.evidence):
            want = margin(entry.statistic, entry.bound)
            if entry.margin != want:
                text = f"is {entry.margin:g}; statistic and bound give {want:g}"
                yield Complaint(check.id, f"evidence[{index}].margin", text)
            if entry.comparisons < 1:
                yield Complaint(check.id, f"evidence[{index}].comparisons", f"is {entry.comparisons}; want at least 1")
        if check.status is not status_of(check):
            yield Complaint(check.id, "status", f"is {check.status}; evidence gives {status_of(check)}")
        compared = sum(entry.comparisons for entry in check.evidence)
        if check.counters.get("comparisons", compared) != compared:
            text = f"is {check.counters['comparisons']:g}; evidence adds up to {compared}"
            yield Complaint(check.id, "counters.comparisons", text)
        for name, digest in check.digests.items():
            if not re.fullmatch("[0-9a-f]{64}", digest):
                yield Complaint(check.id, f"digests.{name}", f"is {digest!r}; want a sha256")
        if check.clause:
            wanted = {"level": level_of(check.id, bundle.levels), "profile": result.engine_profile, "seed": result.seed}
            for name, want_value in wanted.items():
                if getattr(check, name) != want_value and (name != "level" or bundle.same_levels):
                    yield Complaint(check.id, name, f"is {getattr(check, name)!r}; this run's is {want_value!r}")


def _conclusions(bundle: Bundle) -> Iterator[Complaint]:
    """Verdicts, reason and levels follow from the statuses."""
    result = bundle.result
    after, reason = judge(result.checks, heed_waivers=True)
    concluded = {
        "verdict_before_waivers": judge(result.checks)[0],
        "verdict_after_waivers": after,
        "reason": reason,
    }
    for name, want in concluded.items():
        if getattr(result, name) != want:
            yield Complaint(RESULT, name, f"is {getattr(result, name)!s}; the statuses give {want!s}")
    if not bundle.same_levels:
        return
    levels = judge_levels(bundle.levels, result.checks, result.collected, result.capabilities, result.engine_profile)
    want_by_id, got_by_id = ({level.level: level for level in found} for found in (levels, result.levels))
    for id in want_by_id | got_by_id:
        yield from differences(id, got_by_id.get(id), want_by_id.get(id), RESULT, "levels", "the statuses give")
    if len(got_by_id) != len(result.levels):
        yield Complaint(RESULT, "levels", "names one level twice")


def _waivers(bundle: Bundle) -> Iterator[Complaint]:
    """Waivers held on the day of the run, and are noted on the records that they set aside and on no others."""
    result = bundle.result
    try:
        check_terms(result.waivers, date.fromisoformat(result.started[:10]), RESULT)
        check_waivers(result.waivers, {check.id: check.clause for check in result.checks}, bundle.levels)
    except ValueError as error:
        yield Complaint(RESULT, "waivers", str(error))
    for check, waived in zip(result.checks, waive(result.checks, result.waivers), strict=True):
        if check.waiver != waived.waiver:
            yield Complaint(check.id, "waiver", f"is {check.waiver}; status and waivers give {waived.waiver}")


def _session(bundle: Bundle) -> Iterator[Complaint]:
    """The result holds what the conformance session wrote."""
    result, path = bundle.result, bundle.folder / CHECKS
    if not path.is_file():
        if result.engine_identity is not None:
            yield Complaint(CHECKS, "content", "is not there; want what the conformance session wrote")
        return
    try:
        outcome = load(ConformanceOutcome, path)
    except (ResultError, UnicodeDecodeError) as error:
        if result.engine_identity is not None:
            yield Complaint(CHECKS, "content", str(error))
        return
    for field in dataclasses.fields(ConformanceOutcome):
        name = "engine_identity" if field.name == "engine" else field.name
        if name != "checks":
            got, want = getattr(result, name), getattr(outcome, field.name)
            yield from differences(name, got, want, RESULT, "", f"{CHECKS} has")
    theirs = {check.id: check for check in outcome.checks}
    ours = {check.id: check for check in result.checks if check.clause or check.id in theirs}
    for id in ours | theirs:
        yield from differences("", ours.get(id), theirs.get(id), id, "", f"{CHECKS} has")


def _junit(bundle: Bundle) -> Iterator[Complaint]:
    """What pytest counts as run, and as failed, is what was collected, and what failed, broke or timed out."""
    path = bundle.folder / JUNIT
    if not path.is_file() or not bundle.result.engine_identity:
        return
    try:
        bad_by_id = ended_badly(path, bundle.result.collected)
    except ValueError as error:
        yield Complaint(JUNIT, "content", str(error))
        return
    session_broke = any(not check.clause for check in bundle.result.checks)
    for check in bundle.result.checks:
        if check.clause and check.id in bad_by_id and bad_by_id[check.id] != (check.status in WRONG):
            text = f"is {check.status}, but {JUNIT} says that it {'failed' if bad_by_id[check.id] else 'did not fail'}"
            yield Complaint(check.id, "status", text)
        if check.clause and check.id not in bad_by_id and check.status is not Status.SKIPPED and not session_broke:
            yield Complaint(check.id, "record", f"is not in {JUNIT}")
    for id in bad_by_id:
        if id not in bundle.result.collected and not session_broke:
            yield Complaint(id, "record", f"is in {JUNIT} and was not collected")


LOOKS = (_collected, _records, _waivers, _conclusions, _session, _junit)
