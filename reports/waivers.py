"""Waivers: justified exceptions for single checks, with an owner and an end, few by construction.

A waiver is a table of a TOML file, named by its id:

    [W-7]
    check = "conformance/ops/test_rms_norm.py::test_any_input_and_width"
    clause = "NORM-1"
    versions = "mine 2.3"                     # of the engine; for the reader, nothing compares it
    reason = "flushes subnormal rows to zero"
    issue = "https://example.org/issues/7"    # or the id in a tracker: PROJ-7, owner/project#7
    owner = "kernels team"
    expires = 2026-12-31                      # at most 90 days ahead of the run

A waived check that failed, broke, timed out or could not judge no longer counts in the verdict after waivers. What was
skipped or is not supported cannot be waived: there is nothing to excuse, only nothing to see.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import date, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .levels import Level, level_of
from .schema import CheckRecord, Waiver
from .verdict import WRONG, Status

MAX_DAYS = 90
MAX_PERCENT_OF_A_LEVEL = 3
WAIVABLE = {*WRONG, Status.INCONCLUSIVE}
_FIELDS = [field.name for field in fields(Waiver) if field.name != "id"]
_ISSUE = re.compile(r"https?://\S+|[\w./-]*#\d+|[A-Za-z][\w.]*-\d+")


def read_waivers(path: Path, today: date) -> tuple[Waiver, ...]:
    """Read a file of waivers.

    Args:
        today: date of the run.

    Raises:
        ValueError: the file, or a waiver in it, is not as wanted: a field is missing, empty or unknown, the issue
            names none, it expired, it lasts too long, or two waive one check.
    """
    waivers = tuple(_waiver(id, table, path.name) for id, table in read_toml(path, "waivers").items())
    check_terms(waivers, today, path.name)
    return waivers


def check_waivers(waivers: Sequence[Waiver], clauses: Mapping[str, str], levels: Sequence[Level]) -> None:
    """Refuse waivers that do not fit the checks of a run.

    Args:
        clauses: clause by id of every check that was collected.

    Raises:
        ValueError: a check that is not there, another clause than the check's, or more waivers than a level bears.
    """
    for waiver in waivers:
        known_check(waiver.check, clauses, f"waiver {waiver.id}")
        if waiver.clause != clauses[waiver.check]:
            raise ValueError(
                f"waiver {waiver.id}: clause is {waiver.clause}; want {clauses[waiver.check]}, the check's"
            )
    for level in levels:
        checks = sum(level_of(id, levels) == level.id for id in clauses)
        ours = [waiver.id for waiver in waivers if level_of(waiver.check, levels) == level.id]
        if len(ours) > budget(checks):
            raise ValueError(
                f"waivers: {level.id} has {len(ours)} ({', '.join(ours)}); want at most {budget(checks)}, "
                f"{MAX_PERCENT_OF_A_LEVEL} % of its {checks} checks"
            )


def budget(checks: int) -> int:
    """How many waivers a level of so many checks bears: its share rounded up, so 1 of a small level."""
    return -(-checks * MAX_PERCENT_OF_A_LEVEL // 100)


def waive(checks: Sequence[CheckRecord], waivers: Sequence[Waiver]) -> tuple[CheckRecord, ...]:
    """Note on each record the waiver that sets it aside; a check that passed needs none."""
    ids = {waiver.check: waiver.id for waiver in waivers}
    return tuple(replace(c, waiver=ids.get(c.id) if c.status in WAIVABLE else None) for c in checks)


def known_check(id: str, known: Mapping[str, Any] | Sequence[str], who: str) -> None:
    """Refuse the id of a check that the run does not have; the message names the nearest.

    Raises:
        ValueError: no such check.
    """
    if id not in known:
        nearest = get_close_matches(id, list(known), n=1, cutoff=0)
        hint = f"the nearest is {nearest[0]}" if nearest else "this run has none"
        raise ValueError(f"{who}: {id} is no check of this run; want one of its ids: {hint}")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file that the caller named.

    Raises:
        ValueError: no such file, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{what}: {path} cannot be read ({error.strerror}); want a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{what}: {path.name} is not TOML ({error})") from error


def check_terms(waivers: Sequence[Waiver], today: date, where: str) -> None:
    """Refuse waivers whose own terms do not hold on the day of a run.

    Raises:
        ValueError: an empty field, an issue that names none, an end that is past or too far, or a check waived twice.
    """
    for waiver in waivers:
        for field in fields(Waiver):
            if not getattr(waiver, field.name).strip():
                raise ValueError(f"{where}: waiver {waiver.id}: {field.name} is empty; want text that says it")
        if not _ISSUE.fullmatch(waiver.issue):
            wanted = "a URL or an id in a tracker, as PROJ-7 or #7"
            raise ValueError(f"{where}: waiver {waiver.id}: issue is {waiver.issue!r}; want {wanted}")
        expires, latest = date.fromisoformat(waiver.expires), today + timedelta(days=MAX_DAYS)
        if not today <= expires <= latest:
            verb = "expired on" if expires < today else "would last until"
            wanted = f"a date from {today} to {latest}, at most {MAX_DAYS} days ahead"
            raise ValueError(f"{where}: waiver {waiver.id}: {verb} {expires}; want {wanted}")
    for check, count in Counter(waiver.check for waiver in waivers).items():
        if count > 1:
            raise ValueError(f"{where}: {check} is waived {count} times; want one waiver a check")


def _waiver(id: str, table: Any, file: str) -> Waiver:
    where = f"{file}: waiver {id}"
    if not isinstance(table, dict):
        raise ValueError(f"{where}: is {table!r}; want a table with {', '.join(_FIELDS)}")
    wrong = [name for name in _FIELDS if name not in table] or [name for name in table if name not in _FIELDS]
    if wrong:
        verb = "is missing" if wrong[0] not in table else "is not known"
        raise ValueError(f"{where}: {wrong[0]} {verb}; want exactly {', '.join(_FIELDS)}")
    for name in _FIELDS[:-1]:
        if not isinstance(table[name], str):
            raise ValueError(f"{where}: {name} is {table[name]!r}; want text")
    if type(table["expires"]) is not date:
        raise ValueError(f"{where}: expires is {table['expires']!r}; want a date, as 2026-12-31 without quotes")
    return Waiver(**{**table, "id": id, "expires": table["expires"].isoformat()})
