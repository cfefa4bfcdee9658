"""What is normal on a machine: medians of several runs, keyed by device, driver, torch and engine."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from .decode import ResultError
from .journal import Recorded
from .measurement import Kind, Measurement

SCHEMA = "s35.baseline/1"
STALE_DAYS = 90
KEY = ("device_name", "driver", "torch", "triton", "subject", "threads")  # all equal, or there is no comparison


@dataclass(frozen=True)
class Entry:
    """One workload: the median of each run."""

    id: str
    name: str
    metric: str
    unit: str
    better: str
    cache: str | None
    medians: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.medians)


@dataclass(frozen=True)
class Baseline:
    """Several runs of the same thing on the same machine.

    Attributes:
        key: what a run must share to be compared; values of ``KEY``.
        commit: of the suite, which may differ: that is what is compared.
        recorded: ISO date of the last run.
    """

    key: Mapping[str, Any]
    commit: str | None
    recorded: str
    runs: int
    entries: Mapping[str, Entry]

    def age_days(self, today: date | None = None) -> int:
        return ((today or datetime.now(UTC).date()) - date.fromisoformat(self.recorded[:10])).days

    def staleness(self, today: date | None = None) -> str | None:
        """Why it is too old to judge by; None: it is not."""
        age = self.age_days(today)
        if age <= STALE_DAYS:
            return None
        return f"stale baseline: {age} days old; want {STALE_DAYS} or less: record it anew"

    def differences(self, key: Mapping[str, Any]) -> list[str]:
        """In what a run's key differs from this one's."""
        return [
            f"{name} is {key.get(name)!r}, in the baseline {self.key.get(name)!r}"
            for name in KEY
            if key.get(name) != self.key.get(name)
        ]


def key_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """The key of a recorded run, from its machine and settings."""
    machine, settings = run["machine"], run["settings"]

    def value(fact: Any) -> Any:
        return fact.get("value") if isinstance(fact, Mapping) else fact

    accelerators = machine.get("accelerators") or []
    on_gpu = str(machine.get("device", "cpu")) != "cpu" and accelerators
    return {
        "device_name": value(accelerators[0]["name"]) if on_gpu else value(machine.get("cpu")),
        "driver": value(accelerators[0]["driver"]) if on_gpu else None,
        "torch": value(machine.get("torch")),
        "triton": value(machine.get("triton")),
        "subject": settings.get("subject"),
        "threads": settings.get("threads"),
    }


def is_gated(one: Measurement) -> bool:
    """What was sampled, and bytes: energy is counted coarsely, and acceptance depends on how much text was used."""
    return bool(one.samples) or one.metric == "bytes"


def combine(runs: Sequence[Recorded]) -> Baseline:
    """Make a baseline of runs; a workload counts if every run measured it.

    Raises:
        ValueError: no runs, or runs of different machines, engines or versions.
    """
    if not runs:
        raise ValueError("baseline: no runs; want one or more files of measurements")
    key = key_of(runs[0].run)
    for other in runs[1:]:
        if key_of(other.run) != key:
            raise ValueError(f"baseline: runs differ: {key_of(other.run)} and {key}; want one machine and one engine")
    by_id: dict[str, list[Measurement]] = {}
    for run in runs:
        for one in run.measurements:
            if one.value is not None and one.value > 0 and one.kind is Kind.MEASURED and is_gated(one):
                by_id.setdefault(one.id, []).append(one)
    entries = {id: _entry(id, of) for id, of in by_id.items() if len(of) == len(runs)}
    commit = runs[-1].run["machine"].get("suite_commit")
    return Baseline(
        key=key,
        commit=commit.get("value") if isinstance(commit, Mapping) else None,
        recorded=str(runs[-1].run["started"])[:10],
        runs=len(runs),
        entries=entries,
    )


def _entry(id: str, of: Sequence[Measurement]) -> Entry:
    medians = tuple(one.value for one in of if one.value is not None)
    return Entry(id, of[0].name, of[0].metric, of[0].unit, of[0].better, of[0].cache, medians)


def dumps(baseline: Baseline) -> str:
    record = {"schema": SCHEMA, **asdict(baseline)}
    record["entries"] = [asdict(entry) for entry in baseline.entries.values()]
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def load(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        ResultError: not such a file.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise ResultError(f"{path.name}: schema is {record['schema']!r}; want {SCHEMA}")
        entries = [Entry(**{**entry, "medians": tuple(entry["medians"])}) for entry in record["entries"]]
        return Baseline(
            record["key"],
            record["commit"],
            record["recorded"],
            record["runs"],
            {entry.id: entry for entry in entries},
        )
    except FileNotFoundError:
        raise ResultError(f"{path}: is not there; want a file that `s35 baseline record` wrote") from None
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ResultError):
            raise
        raise ResultError(f"{path.name}: {error!r}; want a file that `s35 baseline record` wrote") from error
