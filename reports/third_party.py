"""Measurements that others published, as data with their source: ``reports/measurements/*.toml``."""

import tomllib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from .measurement import Kind, Measurement
from .metrics import METRICS

FOLDER = Path(__file__).parent / "measurements"


def published_measurements(folder: Path = FOLDER) -> tuple[Measurement, ...]:
    """Read every file.

    Raises:
        ValueError: a file without source, date or hardware, or a measurement without exactly one known metric.
    """
    return tuple(found for path in sorted(folder.glob("*.toml")) for found in _read(path))


def _read(path: Path) -> Iterator[Measurement]:
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    entries = values.pop("measurement", [])
    for entry in entries:
        fields: dict[str, Any] = {**values, **entry}
        missing = {"hardware", "subject", "model", "conditions", "source"} - set(fields)
        if missing or not isinstance(fields.get("retrieved"), date):
            raise ValueError(f"{path.name}: lacks {', '.join(sorted(missing)) or 'retrieved'}; want each of them")
        found = [name for name in METRICS if name in entry]
        if len(found) != 1:
            raise ValueError(f"{path.name}: {entry.get('name')} has {found}; want one of {', '.join(METRICS)}")
        metric = METRICS[found[0]]
        yield Measurement(
            name=fields["name"],
            group=fields["group"],
            subject=fields["subject"],
            metric=metric.name,
            unit=metric.unit,
            better=metric.better,
            definition=metric.definition,
            value=float(entry[metric.name]),
            kind=Kind.PUBLISHED,
            hardware=fields["hardware"],
            params={**fields["params"], "model": fields["model"], "conditions": fields["conditions"]},
            source=fields["source"],
            retrieved=fields["retrieved"].isoformat(),
        )
