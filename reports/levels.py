"""The levels of conformance: which checks belong to them, and whether a run is granted one."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from .schema import Capabilities, CheckRecord, Grant, LevelOutcome
from .verdict import ABSENT, WRONG, Status

ALL = "all"
_WORDS = {**WRONG, **ABSENT, Status.INCONCLUSIVE: "could not judge"}


@dataclass(frozen=True)
class Level:
    """One level, as ``conformance/levels.toml`` has it."""

    id: str
    title: str
    folder: str  # its checks live below it
    means: str
    per_profile: bool  # granted for one numerics profile
    must_pass: tuple[str, ...] | None  # clauses that must have been judged; None: every clause
    needs: str | None = None  # the level that must be granted first
    withheld: str | None = None  # why it cannot be granted in this version


def read_levels(path: Path) -> tuple[Level, ...]:
    """Read the levels from a TOML file, lowest first.

    Raises:
        ValueError: a field that is unknown or missing, or a level that needs one that does not stand before it.
    """
    levels: list[Level] = []
    for id, fields in tomllib.loads(path.read_text(encoding="utf-8")).items():
        levels.append(_level(id, fields, path))
        needs = levels[-1].needs
        if needs is not None and needs not in [level.id for level in levels[:-1]]:
            raise ValueError(f"{path.name}: {id} needs {needs}; want a level that stands before it")
    return tuple(levels)


def _level(id: str, fields: Mapping[str, Any], path: Path) -> Level:
    must_pass = fields.get("must_pass")
    if must_pass != ALL and not (isinstance(must_pass, list) and must_pass):
        raise ValueError(f'{path.name}: {id}: must_pass is {must_pass!r}; want "{ALL}" or a list of clauses')
    try:
        return Level(**{**fields, "id": id, "must_pass": None if must_pass == ALL else tuple(must_pass)})
    except TypeError as error:
        raise ValueError(f"{path.name}: {id}: {error}; want the fields of its neighbours") from error


def level_of(check_id: str, levels: Sequence[Level]) -> str | None:
    """Name the level that a check belongs to, by its folder; None: to no level."""
    return next((level.id for level in levels if check_id.startswith(f"{level.folder}/")), None)


def judge_levels(
    levels: Sequence[Level],
    checks: Sequence[CheckRecord],
    collected: Sequence[str],
    capabilities: Capabilities | None,
    profile: str | None,
) -> tuple[LevelOutcome, ...]:
    """Say of each level whether a run is granted it.

    A waived check stands in nobody's way, but the grant then says so. Known failures change nothing here.

    Args:
        collected: ids of all checks that were to run.
        capabilities: by which the engine excuses what is not supported; None excuses nothing.
        profile: that the engine was judged by.
    """
    outcomes: dict[str, LevelOutcome] = {}
    not_offered = capabilities.not_offered if capabilities else {}
    for level in levels:
        ids = [id for id in collected if level_of(id, levels) == level.id]
        ours = [check for check in checks if level_of(check.id, levels) == level.id]
        waived = tuple(check.waiver for check in ours if check.waiver is not None)
        blocked = [level.withheld] if level.withheld else []
        if level.needs and outcomes[level.needs].grant is Grant.NOT_GRANTED:
            blocked.append(f"needs {level.needs}")
        if not level.withheld:
            blocked += _missing(level, ids, ours)
            blocked += _unwell([check for check in ours if check.waiver is None], level, not_offered)
            blocked += [f"{check.id}: {check.status}" for check in checks if not check.clause]
        with_waivers = waived or (level.needs and outcomes[level.needs].grant is Grant.WITH_WAIVERS)
        outcomes[level.id] = LevelOutcome(
            level=level.id,
            title=level.title,
            profile=profile if level.per_profile else None,
            grant=Grant.NOT_GRANTED if blocked else Grant.WITH_WAIVERS if with_waivers else Grant.GRANTED,
            checks=len(ids),
            passed=sum(check.status is Status.PASSED for check in ours),
            waived=waived,
            blocked_by=tuple(blocked),
        )
    return tuple(outcomes.values())


def grants_sentence(levels: Sequence[LevelOutcome]) -> str:
    """Name what is granted: ``L0 L1(bf16) granted``."""
    words = [
        level.label + (" with waivers" if level.grant is Grant.WITH_WAIVERS else "")
        for level in levels
        if level.grant is not Grant.NOT_GRANTED
    ]
    return f"{' '.join(words)} granted" if words else "no level granted"


def _missing(level: Level, ids: Sequence[str], ours: Sequence[CheckRecord]) -> list[str]:
    """What a level has no evidence for."""
    if not ids:
        return ["no check ran"]
    recorded = {check.id for check in ours}
    lost = [id for id in ids if id not in recorded]
    judged = {check.clause for check in ours}
    unjudged = [clause for clause in level.must_pass or () if clause not in judged]
    return [f"{id}: was to run and has no record" for id in lost] + [f"{clause}: no evidence" for clause in unjudged]


def _unwell(checks: Sequence[CheckRecord], level: Level, not_offered: Mapping[str, str]) -> list[str]:
    """Why the checks of a level that did not pass block it: one line a clause and status."""

    def by(check: CheckRecord) -> tuple[str, Status]:
        return check.clause, check.status

    lines = []
    for (clause, status), group in groupby(sorted(checks, key=by), key=by):
        members = list(group)
        if status is Status.NOT_SUPPORTED:
            required = level.must_pass is None or clause in level.must_pass
            for name in sorted({capability_of(check) for check in members}):
                if name not in not_offered:
                    lines.append(f"{clause}: {name} not supported, and not named among the capabilities")
                elif required:
                    lines.append(f"{clause}: {name} not supported")
        elif status is not Status.PASSED:
            lines.append(f"{clause}: {len(members)} {_WORDS[status]}, first {members[0].id}")
    return lines


def capability_of(check: CheckRecord) -> str:
    """The capability that a check which is not supported lacks: what stands before the colon of its detail."""
    return check.detail.partition(":")[0].strip()
