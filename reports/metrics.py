"""The metrics that records may hold, from ``metrics.toml``."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Metric:
    """One metric: its unit, which way is better ("lower", "higher"), and what the number is."""

    name: str
    unit: str
    better: str
    definition: str


def _read() -> Mapping[str, Metric]:
    values = tomllib.loads((Path(__file__).parent / "metrics.toml").read_text(encoding="utf-8"))
    return {name: Metric(name=name, **fields) for name, fields in values.items()}


METRICS = _read()
