"""What a report says, gathered from results of any kind, before it is written as HTML or Markdown.

Everything on it is in the files that it was given: no clock, no network, nothing of the machine that writes it.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .decode import ResultError
from .journal import is_measurements, read
from .measurement import Comparison, Kind, Measurement, Quality, statistics_of
from .metrics import METRICS
from .records import of_model
from .schema import Result, load
from .verdict import WRONG, Status, Verdict

MOST_REASONS = 5
MOST_WORDS = 240


@dataclass(frozen=True)
class Reason:
    """Why the verdict is what it is, and the command that shows it again."""

    text: str
    command: str | None = None


@dataclass(frozen=True)
class Clause:
    """A row of the conformance matrix."""

    level: str
    clause: str
    passed: int
    failed: int
    unsure: int
    not_supported: int
    worst: float | None  # margin of the nearest comparison; above 1 fails


@dataclass(frozen=True)
class Ceiling:
    """What a device reached at best in a run."""

    source: str
    hardware: str | None
    read_gb_per_s: float
    tflops: Mapping[str, float]


@dataclass
class Page:
    """One report."""

    sources: list[str] = field(default_factory=list)
    verdicts: list[tuple[str, Verdict, str]] = field(
        default_factory=list
    )  # of each source: its name, word and headline
    reasons: list[Reason] = field(default_factory=list)
    clauses: list[Clause] = field(default_factory=list)
    grants: list[tuple[str, str, str]] = field(default_factory=list)  # level, grant, checks
    measurements: list[Measurement] = field(default_factory=list)
    ceilings: list[Ceiling] = field(default_factory=list)
    memory: list[Mapping[str, Any]] = field(default_factory=list)  # rows of a projection's memory
    acceptance: list[tuple[str, tuple[float | None, ...]]] = field(default_factory=list)  # source, by draft position
    facts: list[tuple[str, str, str]] = field(default_factory=list)  # name, value, source
    notes: list[str] = field(default_factory=list)
    raw: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """The worst of the sources'."""
        words = {verdict for _, verdict, _ in self.verdicts}
        return next((word for word in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS) if word in words),
                    Verdict.INCONCLUSIVE)  # fmt: skip

    @property
    def hardware(self) -> list[str]:
        """Profiles with measurements, in the order in which they came."""
        return list(dict.fromkeys(one.hardware for one in self.measurements if one.hardware))


def gather(paths: Sequence[Path], extra: Iterable[Measurement] = ()) -> Page:
    """Read results of any kind.

    Args:
        paths: results folders of `s35 run` or their result.json, files of measurements, records of `s35 perf ops` and
            `s35 perf model`, projections of `s35 fit --json`.
        extra: published measurements and projections to show beside them.

    Raises:
        ResultError: a file that is none of these.
    """
    page = Page()
    for path in paths:
        file = path / "result.json" if path.is_dir() else path
        if not file.exists():
            raise ResultError(f"report: {path} is not there; want a results folder or a file of results")
        page.sources.append(file.name if file.name != "result.json" else f"{file.parent.name}/result.json")
        _add(page, file)
    page.measurements += extra
    if not page.verdicts:
        page.reasons.append(Reason("nothing was measured here: each number is published by others or a projection"))
    page.reasons = _grouped(page.reasons[:MOST_REASONS])
    return page


def _grouped(reasons: Sequence[Reason]) -> list[Reason]:
    """A command once, below the last of the reasons in a row that it shows again."""
    found = []
    for at, one in enumerate(reasons):
        is_last = at + 1 == len(reasons) or reasons[at + 1].command != one.command
        found.append(one if is_last else Reason(one.text))
    return found


def _add(page: Page, file: Path) -> None:
    if is_measurements(file):
        _add_measurements(page, file)
        return
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultError(f"{file.name}: not JSON ({error}); want a file that the suite wrote") from error
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind == "perf ops":
        _add_operators(page, record)
    elif kind == "perf model":
        _add_model(page, record)
    elif kind == "projection":
        _add_projection(page, record)
    elif isinstance(record, dict) and "schema_version" in record:
        _add_run(page, load(Result, file))
        record = {"kind": "run", "schema_version": record["schema_version"], "head": record.get("head")}
    else:
        raise ResultError(f"{file.name}: is no result; want what s35 run, pytest perf/, s35 perf ops or fit wrote")
    page.raw.append(record)


def _add_run(page: Page, result: Result) -> None:
    from .markdown import rerun_command

    page.verdicts.append((page.sources[-1], result.verdict_after_waivers, result.reason))
    page.grants += [
        (level.label, str(level.grant), f"{level.passed} of {level.checks} passed") for level in result.levels
    ]
    by_clause: dict[tuple[str, str], list[Any]] = {}
    for check in result.checks:
        by_clause.setdefault((check.level or "", check.clause), []).append(check)
        if check.status in WRONG or check.status is Status.INCONCLUSIVE:
            text = f"{check.clause}: {' '.join(check.detail.split())}"
            page.reasons.append(Reason(_cut(text), rerun_command(result, check)))
    for (level, clause), checks in sorted(by_clause.items()):
        count = {status: sum(check.status is status for check in checks) for status in Status}
        margins = [check.worst.margin for check in checks if check.worst]
        page.clauses.append(
            Clause(
                level,
                clause,
                count[Status.PASSED],
                sum(count[status] for status in WRONG),
                count[Status.INCONCLUSIVE] + count[Status.SKIPPED],
                count[Status.NOT_SUPPORTED],
                max(margins, default=None),
            )
        )
    if result.generation:
        page.acceptance.append((result.engine, result.generation.acceptance_per_position))
    _add_machine(page, result.machine, [("command", shlex.join(result.command)), ("started", result.started)])


def _add_measurements(page: Page, file: Path) -> None:
    recorded = read(file)
    verdict = recorded.verdict or Verdict.INCONCLUSIVE
    page.verdicts.append((page.sources[-1], verdict, "; ".join(recorded.reasons[:1])))
    command = shlex.join(recorded.run["command"])
    page.reasons += [Reason(_cut(reason), command) for reason in recorded.reasons if verdict is not Verdict.PASS]
    page.measurements += recorded.measurements
    ceilings = recorded.run.get("ceilings")
    if ceilings:
        page.ceilings.append(
            Ceiling(file.name, _profile(recorded.run["machine"]), ceilings["read_gb_per_s"], ceilings["tflops"])
        )
    _add_machine(page, recorded.run["machine"], [("command", command), ("started", str(recorded.run["started"]))])
    page.raw.append({"run": recorded.run, "measurements": [_bare(one) for one in recorded.measurements]})


def _profile(machine: Mapping[str, Any]) -> str | None:
    fact = machine.get("profile") or {}
    return fact.get("value")


def _bare(one: Measurement) -> dict[str, Any]:
    """A measurement with its statistics in the place of its samples: the file has those."""
    from .measurement import as_json

    record = as_json(one)
    found = statistics_of(record.pop("samples", ()))
    return record | ({"samples": found.n, "low": found.low, "high": found.high} if found else {})


def _add_operators(page: Page, record: Mapping[str, Any]) -> None:
    """A record of `s35 perf ops`."""
    failed = [one for one in record["results"] if one["outcome"] in ("FAIL", "error")]
    timed = [one for one in record["results"] if one["outcome"] == "timed"]
    word = Verdict.FAIL if failed else Verdict.PASS if timed else Verdict.INCONCLUSIVE
    reason = f"{len(timed)} operators timed, {len(failed)} wrong or broken"
    page.verdicts.append((page.sources[-1], word, reason))
    command = shlex.join(record["command"])
    for one in failed:
        text = f"{one['op']} {one['shape']} {one['dtype']}: {one['outcome']}: {one['reason']}"
        page.reasons.append(Reason(_cut(text), command))
    us, profile = METRICS["us"], _profile(record["machine"])
    for one in record["results"]:
        value = one["us"]
        page.measurements.append(
            Measurement(
                name=f"{one['op']} {one['shape']} {one['dtype']}",
                group="operator",
                subject=one["engine"],
                metric="us",
                unit=us.unit,
                better=us.better,
                definition=us.definition,
                value=value,
                reason=None if value is not None else f"{one['outcome']}: {one['reason']}",
                kind=Kind.MEASURED,
                hardware=profile,
                params={"op": one["op"], "shape": one["shape"], "dtype": one["dtype"]},
                clock=one["method"] or None,
                cache=one["cache"] or None,
                roofline=one["floor_us"] if value is not None else None,
                roofline_bound=one["bound"] or None,
                roofline_source="ceilings of this run",
                flops=one["flops"],
                hbm_bytes=one["hbm_bytes"],
                quality=Quality.OK if value is not None else Quality.INVALID,
                quality_reasons=() if value is not None else (one["reason"] or one["outcome"],),
            )
        )
    if record["ceilings"]:
        page.ceilings.append(
            Ceiling(page.sources[-1], profile, record["ceilings"]["read_gb_per_s"], record["ceilings"]["tflops"])
        )
    _add_machine(page, record["machine"], [("command", command), ("date", record.get("date") or "not recorded")])


def _add_model(page: Page, record: Mapping[str, Any]) -> None:
    """A record of `s35 perf model`."""
    timed = [one for one in record["results"] if one["ms"] is not None]
    missing = [one for one in record["results"] if one["ms"] is None]
    doubts = [f"{one['name']}: {doubt}" for one in timed for doubt in one.get("suspicions") or ()]
    word = Verdict.PASS if timed and not missing and not doubts else Verdict.INCONCLUSIVE
    page.verdicts.append((page.sources[-1], word, f"{len(timed)} steps timed, {len(missing)} not"))
    command, profile = shlex.join(record["command"]), _profile(record["machine"])
    page.reasons += [Reason(_cut(f"{one['name']}: {one['reason']}"), command) for one in missing]
    page.reasons += [Reason(_cut(doubt), command) for doubt in doubts]
    page.measurements += of_model(record, profile)
    if record["ceilings"]:
        ceilings = record["ceilings"]
        page.ceilings.append(Ceiling(page.sources[-1], profile, ceilings["read_gb_per_s"], ceilings["tflops"]))
    _add_machine(page, record["machine"], [("command", command), ("date", record["date"])])


def _add_projection(page: Page, record: Mapping[str, Any]) -> None:
    """A record of `s35 fit --json`."""
    page.measurements += projected(record)
    page.memory += [
        {"hardware": record["hardware"], "format": record["format"]["name"], **row} for row in record["memory"]
    ]
    page.notes += [f"{record['hardware']}: {note}" for note in record["notes"]]
    for name, source in record["rates"]["sources"].items():
        page.facts.append((f"{record['hardware']} {name}", "projection's rate", source))


def projected(record: Mapping[str, Any]) -> list[Measurement]:
    """The rates of a projection as measurements of kind projection: one device, decode and prefill."""
    rate = METRICS["tokens_per_s"]
    form, devices = record["format"]["name"], record["parallel"]["devices"]
    found = []
    for group, rows in (("decode", record["decode"]), ("prefill", record["prefill"])):
        for row in rows:
            if row["ms"] is None:
                continue
            params = {"depth": row["depth"]} if group == "decode" else {"n_prompt": row["tokens"]}
            found.append(
                Measurement(
                    name=row["name"],
                    group=group,
                    subject=f"roofline, {form}",
                    metric=rate.name,
                    unit=rate.unit,
                    better=rate.better,
                    definition=rate.definition,
                    value=row["tokens_per_s"],
                    kind=Kind.PROJECTION,
                    hardware=record["hardware"],
                    params={**params, "batch": row.get("batch", 1), "devices": devices, "format": form},
                    source="bytes and operations over the profile's rates",
                )
            )
    return found


def _add_machine(page: Page, machine: Mapping[str, Any], more: Sequence[tuple[str, str]]) -> None:
    for name, value in more:
        page.facts.append((name, value, page.sources[-1]))
    for name, fact in machine.items():
        if isinstance(fact, Mapping) and "source" in fact:
            shown = f"not known ({fact['reason']})" if fact["value"] is None else str(fact["value"])
            page.facts.append((name, shown, fact["source"]))
    for number, gpu in enumerate(machine.get("accelerators") or ()):
        for name in ("name", "memory_bytes", "driver"):
            fact = gpu[name]
            page.facts.append((f"GPU {number} {name}", str(fact["value"] or fact["reason"]), fact["source"]))


def compared(page: Page) -> list[Measurement]:
    """Measurements that have a baseline, what changed first."""
    order = list(Comparison)
    found = [one for one in page.measurements if one.comparison]
    return sorted(found, key=lambda one: (one.comparison is Comparison.SAME, order.index(one.comparison or order[0])))


def _cut(text: str) -> str:
    return text if len(text) <= MOST_WORDS else f"{text[:MOST_WORDS]}..."
