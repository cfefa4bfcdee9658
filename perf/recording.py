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
from .trusted import monotonic

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
    budget_s: float | None = None
    started: float = field(default_factory=monotonic)
    was_cut_short: bool = False  # by the budget

    def is_spent(self) -> bool:
        """Whether the budget of time is; that makes the session inconclusive, as something was left out."""
        spent = self.budget_s is not None and monotonic() - self.started > self.budget_s
        if spent and not self.was_cut_short:
            self.was_cut_short = True
            self.doubts.append(f"the budget of {self.budget_s:g} s was spent: the rest was not measured")
        return spent

    def subject_of(self, format: str) -> str:
        """The engine, and the format of the model's weights where that is chosen."""
        return " ".join(filter(None, [self.subject, format]))

    def plain_of(self, step: Measurement) -> Measurement | None:
        """Decoding without drafts at the depth of a step with them."""
        wanted = {name: value for name, value in step.params.items() if name != "num_drafts"}
        found = [one for one in self.measurements if one.group == "decode" and one.value and one.params == wanted]
        return found[0] if found and step.metric == "step_ms" else None

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
        if reasons:
            timed = replace(timed, quality=Quality.SUSPECT, quality_reasons=tuple(reasons))
        return self.doubted(timed)

    def doubted(self, measurement: Measurement) -> Measurement:
        """The same, suspect where it is better than the ceilings of the run allow."""
        share = measurement.share_of_roofline or 0
        if share <= MOST_OF_ROOFLINE:
            return measurement
        reason = f"roofline: {share:.0%} of what the ceilings allow; the time is wrong"
        reasons = (*measurement.quality_reasons, reason)
        return replace(measurement, quality=Quality.SUSPECT, quality_reasons=reasons)

    def energy_of(self, measurement: Measurement, outcome: Outcome) -> Measurement | None:
        """Energy over warm-up and samples; None: nothing counts it here, or they took too short a time."""
        if outcome.energy_mj.value is None:
            return None
        of = METRICS["energy_j"]
        return replace(
            measurement,
            group="energy",
            metric=of.name,
            unit=of.unit,
            better=of.better,
            definition=of.definition,
            value=int(outcome.energy_mj.value) / 1000,
            reason=None,
            params={**measurement.params, "scope": outcome.energy_scope},
            samples=(),
            roofline=None,
            roofline_bound=None,
            roofline_source=None,
            source=outcome.energy_mj.source,
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
        timed = {one.id for one in self.measurements if one.value is not None and one.kind is Kind.MEASURED}
        return [entry.name for id, entry in self.baseline.entries.items() if id not in timed] if self.baseline else []

    def verdict(self, failed: int, skipped: int) -> tuple[Verdict, list[str]]:
        """What the session comes to: FAIL where a test failed, INCONCLUSIVE where something is in doubt."""
        found = [one for one in self.measurements if one.value is not None and one.kind is Kind.MEASURED]
        timed = [one for one in found if one.samples]  # what else was seen, bytes for one, makes no session
        doubts = list(self.doubts)
        if not timed:
            doubts.append(f"nothing was timed: {skipped} skipped of {self.expected}")
        doubts += [f"{one.name}: {reason}" for one in found for reason in one.quality_reasons]
        doubts += [] if self.chosen else [f"{name}: MISSING" for name in self.missing()]
        doubts += [f"{one.name}: AMBIGUOUS" for one in found if one.comparison is Comparison.AMBIGUOUS]
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
