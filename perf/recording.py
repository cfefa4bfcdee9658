"""One session of ``pytest perf/``: what it measures on, what it writes, what it compares with, and its verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hardware.machine import Fact
from hardware.telemetry import GpuState, foreign_pids
from reports.baseline import Baseline, Entry
from reports.journal import Journal
from reports.measurement import Comparison, Kind, Measurement, Quality
from reports.metrics import METRICS
from reports.verdict import Verdict

from .case import Case
from .cost import Ceilings, floor
from .measure import Outcome

MOST_OF_ROOFLINE = 1.02  # above, the measurement is wrong: ceilings and cases are measured by one timer
US = METRICS["us"]


@dataclass
class Recording:
    """Collects measurements and says what they come to.

    Attributes:
        ceilings: of this run; None: not measured, so nothing has a roofline.
        doubts: about the session as a whole, each a sentence.
    """

    subject: str
    hardware: str | None
    ceilings: Ceilings | None
    journal: Journal | None
    baseline: Baseline | None
    max_regression: float
    doubts: list[str] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    expected: int = 0  # tests that were collected to measure
    chosen: bool = False  # some workloads only, so that others are not missed

    def measurement_of(self, case: Case, outcome: Outcome) -> Measurement:
        """Make the record of one timing, its roofline and its quality."""
        samples = outcome.samples
        blank = Measurement(
            name=case.name,
            group="operator",
            subject=self.subject,
            metric=US.name,
            unit=US.unit,
            better=US.better,
            definition=US.definition,
            value=None,
            reason=outcome.wrong or "not timed",
            kind=Kind.MEASURED,
            hardware=self.hardware,
            params={"op": case.op, "shape": case.shape, "dtype": case.dtype},
            clock=outcome.clock,
            cache=outcome.cache,
            flops=case.cost.flops,
            hbm_bytes=case.cost.hbm_bytes,
        )
        if samples is None:
            return replace(blank, quality=Quality.INVALID, quality_reasons=(outcome.wrong or "not timed",))
        ordered = sorted(samples.us)
        middle = len(ordered) // 2
        median = (ordered[middle] + ordered[~middle]) / 2
        timed = replace(
            blank, value=median, reason=None, samples=samples.us, warmup=samples.warmup, stop=samples.stop
        )  # fmt: skip
        reasons = list(outcome.suspicions)
        if self.ceilings and outcome.cache == "cold":
            least = floor(case.cost, self.ceilings, case.multiplies_in)
            timed = replace(
                timed, roofline=least.us, roofline_bound=least.bound, roofline_source="ceilings of this run"
            )  # fmt: skip
            if (timed.share_of_roofline or 0) > MOST_OF_ROOFLINE:
                reasons.append(f"roofline: {timed.share_of_roofline:.0%} of what the ceilings allow; the time is wrong")
        if reasons:
            timed = replace(timed, quality=Quality.SUSPECT, quality_reasons=tuple(reasons))
        return timed

    def energy_of(self, measurement: Measurement, outcome: Outcome) -> Measurement | None:
        """Energy over the samples, of the board; None: nothing counts it here, or they took too short a time."""
        if outcome.energy_j is None:
            return None
        of = METRICS["energy_j"]
        return replace(
            measurement,
            group="energy",
            metric=of.name,
            unit=of.unit,
            better=of.better,
            definition=of.definition,
            value=outcome.energy_j,
            reason=None,
            params={**measurement.params, "scope": "gpu_board"},
            samples=(),
            roofline=None,
            roofline_bound=None,
            roofline_source=None,
        )

    def entry_for(self, measurement: Measurement) -> Entry | None:
        """The baseline's entry of the same workload."""
        return self.baseline.entries.get(measurement.id) if self.baseline else None

    def add(self, measurement: Measurement) -> None:
        """Keep it, and write it before the next one begins."""
        self.measurements.append(measurement)
        if self.journal:
            self.journal.add(measurement)

    def missing(self) -> list[str]:
        """Names of workloads that the baseline has and this session has not."""
        timed = {one.id for one in self.measurements if one.value is not None}
        return [entry.name for id, entry in self.baseline.entries.items() if id not in timed] if self.baseline else []

    def verdict(self, failed: int, skipped: int) -> tuple[Verdict, list[str]]:
        """What the session comes to: FAIL where a test failed, INCONCLUSIVE where something is in doubt."""
        timed = [one for one in self.measurements if one.value is not None]
        doubts = list(self.doubts)
        if not timed:
            doubts.append(f"nothing was timed: {skipped} skipped of {self.expected}")
        doubts += [f"{one.name}: {reason}" for one in timed for reason in one.quality_reasons]
        doubts += [] if self.chosen else [f"{name}: MISSING" for name in self.missing()]
        doubts += [f"{one.name}: AMBIGUOUS" for one in timed if one.comparison is Comparison.AMBIGUOUS]
        if failed:
            return Verdict.FAIL, [f"{failed} failed", *doubts]
        return (Verdict.INCONCLUSIVE, doubts) if doubts else (Verdict.PASS, [f"{len(timed)} timed"])


def doubts_about(before: GpuState | Fact, after: GpuState | Fact) -> list[str]:
    """What the GPU says against a session."""
    foreign = sorted(foreign_pids(before, after))
    return [f"foreign processes on the GPU: {', '.join(map(str, foreign))}"] if foreign else []


def settings_of(subject: str, device: str, ops: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for a file of measurements to be gone on with."""
    return {"subject": subject, "device": device, "ops": sorted(ops), **values}
