"""Check, time, check again: a time counts only if outputs were right before, after, and at calls picked by chance.

On a CPU each call is timed alone, its inputs rotating, with the caches flushed or not. On CUDA the calls lie in a graph
(``perf/timing.py``), since an event around one launch is wrong by 10 to 30 us.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from hardware.energy import EnergyWindow
from hardware.machine import Fact
from hardware.telemetry import Telemetry

from .carve_out import CarveOut
from .sampling import Samples, StopRule, sample
from .timing import CaptureError, EventStopwatch, GraphStopwatch, spread
from .trusted import disagreement, patched, perf_counter
from .workload import Workload, Wrong, copies_of, spots

NOT_COUNTED = Fact(None, "none", "nobody looked for a counter")

MOST_NOISE = 0.05  # (90th - 10th percentile) / median
CLOCKS_AGREE = 0.05
LOWEST_CLOCK = 0.75  # of the highest that was seen: below, nvbench drops the sample
FLUSH_BYTES = 1 << 26
FORESEEABLE = 64  # calls among which those that are checked are picked


class Work(Protocol):
    """What is timed, and can say whether its output is right: an operator's ``Workload``, or steps of a model."""

    def run_checked(self, index: int = 0) -> Wrong | None: ...
    def weights_changed(self) -> Wrong | None: ...


SomeWork = TypeVar("SomeWork", bound=Work, contravariant=True)


class Timer(Protocol[SomeWork]):
    """Times calls of a workload.

    Attributes:
        clock, cache: as ``reports.measurement`` names them.
    """

    clock: str
    cache: str

    def prepare(self, work: SomeWork) -> Callable[[], float]:
        """Get ready; each use of the answer gives the microseconds of one call."""
        ...

    def verify(self, work: SomeWork) -> Wrong | None:
        """After timing: was what was timed right, on inputs that it had not seen?"""
        ...


@dataclass(frozen=True)
class Outcome:
    """What timing came to.

    Attributes:
        samples: None: wrong, so it has no time.
        wrong: why.
        suspicions: what makes the time untrustworthy, each a sentence.
        energy_mj: over warm-up and samples, ``energy_calls`` of them; not counted has its reason.
        energy_scope: whose: gpu_board, cpu_package.
    """

    samples: Samples | None
    wrong: str | None
    clock: str
    cache: str
    suspicions: tuple[str, ...] = ()
    energy_mj: Fact = NOT_COUNTED
    energy_scope: str = ""

    @property
    def energy_calls(self) -> int:
        return self.samples.warmup + len(self.samples.us) if self.samples else 0


def measure(
    work: SomeWork,
    timer: Timer[SomeWork],
    rule: StopRule,
    watch: Callable[[], Telemetry] | None = None,
    carve_out: CarveOut | None = None,
    most_noise: float = MOST_NOISE,
    energy: EnergyWindow | None = None,
) -> Outcome:
    """Check the output, time the calls, check again.

    Args:
        watch: makes what reads the GPU meanwhile; None: there is no GPU.
        carve_out: of the L2 cache, which is given back before and looked at after; None: there is no such thing.
        energy: is read around warm-up and samples.
    """
    blank = Outcome(None, None, timer.clock, timer.cache)
    wrong = work.run_checked()
    if wrong:
        return _without_time(blank, f"before timing: {wrong.reason}")
    if carve_out:
        carve_out.reset()
    next_us = timer.prepare(work)
    telemetry = watch() if watch else None
    with ExitStack() as around:
        for one in (telemetry, energy):
            if one:
                around.enter_context(one)
        samples = sample(next_us, rule)
    changed = patched()
    if changed:
        return _without_time(blank, f"a clock was replaced: {', '.join(changed)}")
    wrong = timer.verify(work) or work.weights_changed()
    if wrong:
        return _without_time(blank, f"after timing: {wrong.reason}")
    return Outcome(
        samples,
        None,
        timer.clock,
        timer.cache,
        tuple(_suspicions(samples, telemetry, carve_out, most_noise)),
        energy.spent_mj if energy else NOT_COUNTED,
        energy.scope if energy else "",
    )


def _without_time(blank: Outcome, why: str) -> Outcome:
    return Outcome(None, why, blank.clock, blank.cache)


def _suspicions(
    samples: Samples, telemetry: Telemetry | None, carve_out: CarveOut | None, most_noise: float
) -> list[str]:
    found = []
    noise = spread(samples.us)
    if noise > most_noise:
        found.append(f"noise: samples spread over {noise:.1%} of their median; want {most_noise:.0%} or less")
    apart = disagreement()
    if apart > CLOCKS_AGREE:
        found.append(f"clocks: two clocks of the host differ by {apart:.0%}; want {CLOCKS_AGREE:.0%} or less")
    if telemetry:
        found += throttling(telemetry)
    if carve_out and carve_out.size_bytes():
        found.append(f"L2 carve-out: {carve_out.size_bytes()} bytes of the cache are kept for somebody; want none")
    return found


def throttling(telemetry: Telemetry) -> list[str]:
    """Whether the device was held down; the power limit counts where the clock fell far: large products meet it."""
    clocks = [sample.sm_clock_mhz for sample in telemetry.samples if sample.sm_clock_mhz]
    fell = bool(clocks) and min(clocks) < LOWEST_CLOCK * max(clocks)
    hard = [word for word in telemetry.slowed_by if word != "power limit"]
    if hard:
        return [f"throttling: {', '.join(hard)}"]
    if fell:
        return [f"throttling: the clock fell from {max(clocks)} to {min(clocks)} MHz"]
    return []


@dataclass
class HostTimer:
    """Each call alone between two reads of the host's clock, on the CPU; elsewhere, with a wait for its end.

    Attributes:
        cache: "cold": 64 MiB are written between calls, and inputs rotate; "warm": neither.
        device: where the inputs lie: cpu or mps. Starting a call of mps is in its time, so short ones look long there.
    """

    cache: str = "cold"
    clock: str = "perf_counter"
    device: str = "cpu"
    _wrong: list[Wrong] = field(default_factory=list)

    def prepare(self, work: Workload) -> Callable[[], float]:
        flush = torch.zeros(FLUSH_BYTES // 4, device=self.device) if self.cache == "cold" else None
        wait = torch.mps.synchronize if self.device == "mps" else None
        picked, count = spots(FORESEEABLE), 0

        def next_us() -> float:
            nonlocal count
            at = count % len(work.sets)
            is_spot = count % FORESEEABLE in picked and count < 4 * FORESEEABLE
            count += 1
            if is_spot:
                work.refresh(at)
            if flush is not None:
                flush.add_(1.0)
            if wait is not None:
                wait()
            start = perf_counter()
            got = work.call(at)
            if wait is not None:
                wait()
            us = (perf_counter() - start) * 1e6
            if is_spot:
                wrong = work.check(at, copies_of(got))
                if wrong:
                    self._wrong.append(wrong)
            return us

        return next_us

    def verify(self, work: Workload) -> Wrong | None:
        return next(iter(self._wrong), None) or work.run_checked(len(work.sets) - 1)


class DeviceTimer:
    """Calls in a CUDA graph, replayed: cold where sets of inputs together exceed the L2 cache, warm with one set."""

    def __init__(self, cache: str = "cold", waits: bool = False) -> None:
        self.cache = cache
        self._stopwatch: Any = EventStopwatch("the call waits for the device") if waits else GraphStopwatch()
        self.clock = "cuda_graph" if self._stopwatch.method == "graph" else "cuda_events"
        self._kept: list[Any] = []
        self._replay: Callable[[], float] = lambda: 0.0

    def prepare(self, work: Workload) -> Callable[[], float]:
        from .timing import MAX_COPIES, REPLAY_US

        def call(copy: int) -> Any:
            got = work.call(copy)
            if copy == 0:
                self._kept[:] = [got]  # its output's place; a replay writes it anew
            return got

        copies = len(work.sets)
        replay = self._prepared(call, copies)
        replay()
        probe_us = replay() / copies
        if probe_us * copies < REPLAY_US:
            rounds = -(-min(int(REPLAY_US / max(probe_us, 1e-3)), MAX_COPIES) // copies)
            copies *= max(rounds, 1)
            replay = self._prepared(call, copies)
        self._replay = replay
        return lambda: replay() / copies

    def _prepared(self, call: Callable[[int], Any], copies: int) -> Callable[[], float]:
        try:
            prepared: Callable[[], float] = self._stopwatch.prepare(call, copies)
        except CaptureError as error:
            torch.cuda.synchronize()
            self._stopwatch = EventStopwatch(f"capture failed: {error}")
            self.clock = "cuda_events"
            prepared = self._stopwatch.prepare(call, copies)
        return prepared

    def verify(self, work: Workload) -> Wrong | None:
        """Overwrite the inputs of the first call in place, replay, and look at once: no wait for other streams."""
        work.refresh(0)
        torch.cuda.current_stream().synchronize()
        self._replay()
        return work.check(0, copies_of(self._kept[0])) or work.run_checked(0)
