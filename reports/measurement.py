"""A measurement as a record, ``s35.result/1``: one line of JSON each, with unit, samples, quality and source.

``measurement.schema.json`` beside this file says the same in JSON Schema. Minor versions only add fields, and readers
ignore fields that they do not know.
"""

import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA = "s35.result/1"
MOST_SAMPLES = 10_000
SAMPLES_FOR_P99 = 100


class Kind(StrEnum):
    """What a number is; the three are never mixed."""

    MEASURED = "measured"  # by this suite, in the run that the record belongs to
    PUBLISHED = "published"  # by somebody else
    PROJECTION = "projection"  # computed from bytes, operations and rates


class Quality(StrEnum):
    """Whether a measurement can be trusted."""

    OK = "ok"
    SUSPECT = "suspect"  # shown, and makes the run inconclusive
    INVALID = "invalid"  # it has no value: the output was wrong, or the clock was
    UNSUPPORTED = "unsupported"  # this subject or device has no such thing


class Comparison(StrEnum):
    """How a measurement stands to its baseline."""

    SAME = "SAME"
    FASTER = "FASTER"
    SLOWER = "SLOWER"
    AMBIGUOUS = "AMBIGUOUS"  # the noise is too large to say; never counts as SAME
    MISSING = "MISSING"  # the baseline has it and the run has not; never counts as SAME
    NEW = "NEW"


@dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes:
        name: of the workload: "tg128 @ d4096", "rms_norm T=1 D=4096 bf16".
        group: operator, decode, prefill, mtp, memory, serving, energy or ceiling.
        subject: engine or peer that did the work.
        metric: "us", "tokens_per_s", "tpot_ms", ...; ``unit`` is what counts.
        better: "lower", "higher" or "neither".
        definition: of the metric, in words.
        value: None with a reason, never 0, where it is not known.
        hardware: name of a profile.
        params: of the workload, by name: batch, depth, tokens, ...
        samples: in the unit, in order; at most ``MOST_SAMPLES``.
        clock: "cuda_graph", "cuda_events", "perf_counter", ...
        cache: whether inputs could lie in the last-level cache: "cold", "warm".
        stop: the rule that ended sampling.
        roofline: what the ceilings allow, in the unit.
        roofline_bound: memory or compute.
        roofline_source: whose ceilings: this run's, or a data sheet's.
        flops, hbm_bytes: the least work that the workload needs.
        source: of a published one a URL, of others how it was made.
        retrieved: ISO date of a published one.
    """

    name: str
    group: str
    subject: str
    metric: str
    unit: str
    better: str
    definition: str
    value: float | None
    kind: Kind
    reason: str | None = None
    hardware: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[float, ...] = ()
    clock: str | None = None
    cache: str | None = None
    warmup: int | None = None
    stop: str | None = None
    quality: Quality = Quality.OK
    quality_reasons: tuple[str, ...] = ()
    roofline: float | None = None
    roofline_bound: str | None = None
    roofline_source: str | None = None
    flops: float | None = None
    hbm_bytes: float | None = None
    baseline: float | None = None
    comparison: Comparison | None = None
    smallest_detectable: float | None = None
    source: str = ""
    retrieved: str | None = None

    def __post_init__(self) -> None:
        assert (self.value is None) == bool(self.reason), (
            f"a value or a reason: {self.name}: {self.value} {self.reason}"
        )
        assert self.value is None or math.isfinite(self.value), f"{self.name}: {self.value}"
        assert self.unit, f"{self.name} has no unit"
        assert self.quality is Quality.OK or self.quality_reasons, f"{self.name}: {self.quality} without a reason"

    @property
    def id(self) -> str:
        """What is compared with what: equal for the same workload, subject, metric and parameters."""
        key = [self.name, self.group, self.subject, self.metric, self.cache, sorted(self.params.items())]
        return hashlib.sha256(json.dumps(key, default=str).encode()).hexdigest()[:12]

    @property
    def share_of_roofline(self) -> float | None:
        """1 is the limit; above it, the measurement is wrong."""
        if self.value is None or not self.roofline:
            return None
        return self.roofline / self.value if self.better == "lower" else self.value / self.roofline


@dataclass(frozen=True)
class Statistics:
    """Of the samples. Percentiles by linear interpolation between samples; p99 needs ``SAMPLES_FOR_P99``."""

    n: int
    median: float
    low: float  # of the median's 95 % interval; of few samples, the range
    high: float
    p90: float
    p99: float | None
    noise: float  # standard deviation over mean


def statistics_of(samples: Sequence[float]) -> Statistics | None:
    """Summarise; None of no samples."""
    if not samples:
        return None
    ordered = sorted(samples)
    n = len(ordered)
    half = 0.98 * math.sqrt(n)  # 1.96 standard deviations of a binomial with probability 1/2
    low, high = max(0, math.floor((n - 1) / 2 - half)), min(n - 1, math.ceil((n - 1) / 2 + half))
    mean = statistics.fmean(ordered)
    return Statistics(
        n=n,
        median=statistics.median(ordered),
        low=ordered[low],
        high=ordered[high],
        p90=percentile(ordered, 0.90),
        p99=percentile(ordered, 0.99) if n >= SAMPLES_FOR_P99 else None,
        noise=statistics.stdev(ordered) / mean if n > 1 and mean else 0.0,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Interpolate linearly between sorted samples; never beyond the largest."""
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def as_json(measurement: Measurement) -> dict[str, Any]:
    """A record, without fields that say nothing; ``value`` is always there."""
    values = dataclasses.asdict(measurement)
    kept = {name: value for name, value in values.items() if name == "value" or value not in (None, (), {}, "")}
    return {"record": "measurement", "id": measurement.id, **kept}
