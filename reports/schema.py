"""The record of a run: what was judged, on which machine, by which evidence, with which outcome; to JSON and back.

``result.schema.json`` beside this file says the same in JSON Schema, for readers that are not Python.
Minor versions only add fields and readers ignore fields that they do not know: a 2.x reader reads every 2.y.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from .decode import ResultError, decode, encode
from .verdict import Status, Verdict, margin

SCHEMA_VERSION = "2.0"

Record = TypeVar("Record")


@dataclass(frozen=True)
class Evidence:
    """All comparisons of a check by one rule, and the one of them nearest to its bound, or furthest beyond it.

    Exact comparisons count wrong elements and have bound 0, and so has a refusal: statistic 1.
    """

    rule: str  # why the bound is what it is
    comparisons: int
    statistic: float
    bound: float
    margin: float  # statistic / bound, by ``reports.verdict.margin``: above 1 fails
    detects: float | None  # the smallest relative fault that is certain to be caught; None: not known, or any at all
    where: str  # what that comparison was of

    @classmethod
    def measured(
        cls, rule: str, comparisons: int, statistic: float, bound: float, detects: float | None, where: str
    ) -> "Evidence":
        """Make an entry with its margin."""
        return cls(rule, comparisons, statistic, bound, margin(statistic, bound), detects, where)


@dataclass(frozen=True)
class CheckRecord:
    """One check: the claim that it judged, by which evidence, and how that ended.

    ``counters`` count what made the check able to fail (clamped elements, near-ties, ...).
    """

    id: str  # the test id; `s35 conform --check ID` runs exactly this check
    clause: str  # the clause of the specification that it judges; empty: the suite's own record, of a crash for one
    level: str | None  # of conformance/levels.toml; None: it belongs to no level
    profile: str | None  # numerics profile by which it judged
    seed: int | None  # of its inputs
    status: Status  # what ``reports.verdict.status_of`` computes from the rest
    duration_s: float
    evidence: tuple[Evidence, ...]  # one entry a rule
    counters: Mapping[str, float]
    digests: Mapping[str, str]  # sha256 of inputs, outputs and oracle, as far as there were any
    detail: str  # why it did not pass, "CAPABILITY: reason" where not supported; empty: there is nothing to say
    waiver: str | None  # id of the waiver that sets this outcome aside

    @property
    def worst(self) -> Evidence | None:
        """The entry of evidence with the largest margin."""
        return max(self.evidence, key=lambda entry: entry.margin, default=None)


def suite_record(id: str, status: Status, detail: str) -> CheckRecord:
    """Make a record of something that is no check: a crash, an interrupt, a device that is not there."""
    return CheckRecord(id, "", None, None, None, status, 0.0, (), {}, {}, detail, None)


@dataclass(frozen=True)
class Capabilities:
    """What the engine offers to be judged, and what it does not, with the reason."""

    offered: tuple[str, ...]
    not_offered: Mapping[str, str]


@dataclass(frozen=True)
class EngineIdentity:
    """Who was judged, as the engine itself says."""

    name: str
    profile: str  # of numerics
    device: str


@dataclass(frozen=True)
class Waiver:
    """A justified exception: this check does not count against this engine, until a date."""

    id: str
    check: str
    clause: str
    versions: str  # of the engine that it is for, in its owner's words
    reason: str
    issue: str  # URL or id in a tracker
    owner: str
    expires: str  # ISO date, the last day on which it holds


@dataclass(frozen=True)
class KnownFailures:
    """Checks whose failure is no news to the gate of a CI; they set nothing aside."""

    file: str  # its name
    reasons: Mapping[str, str]  # by check id


@dataclass(frozen=True)
class ConformanceOutcome:
    """What one conformance session wrote (``pytest --checks FILE``)."""

    engine: EngineIdentity
    seed: int
    checks: tuple[CheckRecord, ...]
    tier: str
    checkpoint_sha256: str
    capabilities: Capabilities
    collected: tuple[str, ...]  # ids of all checks that were to run, so that a dropped record is seen
    waivers: tuple[Waiver, ...]
    known_failures: KnownFailures | None


@dataclass(frozen=True)
class GenerationSample:
    """Text that the model wrote in this run, greedily."""

    prompt: str
    text: str
    tokens_per_s: float | None  # one unrepeated sample: a sign of life, not a measurement
    acceptance_per_position: tuple[float | None, ...]  # share of drafts accepted, by draft position


class Grant(StrEnum):
    """Whether a level is granted."""

    GRANTED = "granted"
    WITH_WAIVERS = "granted with waivers"
    NOT_GRANTED = "not granted"


@dataclass(frozen=True)
class LevelOutcome:
    """One level of ``conformance/levels.toml`` and what stands in its way."""

    level: str
    title: str
    profile: str | None  # the numerics profile that it covers; None: it depends on none, or none is known
    grant: Grant
    checks: int  # of this level, that were to run
    passed: int
    waived: tuple[str, ...]  # ids of waivers
    blocked_by: tuple[str, ...]  # empty where granted

    @property
    def label(self) -> str:
        return f"{self.level}({self.profile})" if self.profile else self.level


@dataclass(frozen=True)
class Suite:
    """Which version of the suite judged: commit, and digests of the files that the verdict rests on."""

    commit: str | None  # None: machine.suite_commit holds the reason
    files: Mapping[str, str]  # sha256 by path in the repository


@dataclass(frozen=True)
class Link:
    """One link of the hash chain: a field of the result or a record, hashed together with the link before."""

    of: str  # name of a field, or id of a check
    sha256: str


@dataclass(frozen=True)
class Result:
    """One run, complete: every page about it is made from this record alone."""

    schema_version: str
    verdict_before_waivers: Verdict
    verdict_after_waivers: Verdict
    reason: str  # for the verdict after waivers
    levels: tuple[LevelOutcome, ...]
    machine: Mapping[str, Any]  # hardware.Machine: a value and its source, or None and the reason, per fact
    engine: str  # as the command named it
    engine_identity: EngineIdentity | None  # as it names itself; None: no conformance session ended
    capabilities: Capabilities | None  # None: no conformance session ended
    tier: str
    checkpoint_sha256: str | None  # over names and contents of its files; None: the run ended before
    suite: Suite
    seed: int | None  # None: no conformance session ended
    command: tuple[str, ...]  # secrets replaced by ***
    started: str  # UTC, ISO 8601
    duration_s: float
    generation: GenerationSample | None  # None: the run ended before
    waivers: tuple[Waiver, ...]
    known_failures: KnownFailures | None  # None: the command named no file
    collected: tuple[str, ...]  # ids of all checks that were to run
    checks: tuple[CheckRecord, ...]
    files: Mapping[str, str]  # sha256 of the other files of the results folder
    chain: tuple[Link, ...]  # over every field above and every record; ``reports.chain``
    head: str  # the last link

    @property
    def engine_profile(self) -> str | None:
        return self.engine_identity.profile if self.engine_identity else None


def dumps(record: Any) -> str:
    """Write a record as JSON; NaN and infinities, which JSON lacks, become the strings nan, inf and -inf."""
    return json.dumps(encode(dataclasses.asdict(record)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def loads(kind: type[Record], text: str, source: str) -> Record:
    """Read a record of the given kind.

    Args:
        kind: one of the dataclasses above.
        text: JSON, as ``dumps`` writes it.
        source: where the text came from, for the message of an error.

    Raises:
        ResultError: not JSON, another major version, or a field that is missing or of the wrong type.
    """
    value = parse(text, source)
    if kind is Result and isinstance(value, dict):
        _check_version(value.get("schema_version"), source)
    return decode(kind, value, source)


def load(kind: type[Record], path: Path) -> Record:
    """Read a record from a file; raises as ``loads`` does."""
    return loads(kind, path.read_text(encoding="utf-8"), source=path.name)


def parse(text: str, source: str) -> Any:
    """Parse JSON in which no name stands twice: two readers would read two records.

    Raises:
        ResultError: not JSON, or a name that stands twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ResultError(f"{source}: {twice} stands twice in one object; want the file as the suite wrote it")
        return found

    def refuse(constant: str) -> None:
        raise ResultError(f'{source}: {constant} is not JSON; want the string "{constant.lower()}"')

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except ResultError:
        raise
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{source}: not JSON ({error}); want the file as the suite wrote it") from error
    return value


def _check_version(version: Any, source: str) -> None:
    major = SCHEMA_VERSION.partition(".")[0]
    if not isinstance(version, str) or version.partition(".")[0] != major:
        raise ResultError(f"{source}: schema_version is {version!r}; want {major}.x: use the suite that wrote it")
