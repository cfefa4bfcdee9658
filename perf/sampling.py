"""Sample until it is enough: warm up until times settle, then stop by a rule and say which."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reports.measurement import MOST_SAMPLES, statistics_of

from .trusted import perf_counter

SETTLED = 0.02  # two windows of warm-up whose medians differ by less
WINDOW = 5


@dataclass(frozen=True)
class StopRule:
    """When there are samples enough: the rule of nvbench, on the interval of the median instead of the deviation.

    Attributes:
        half_width: of the median's 95 % interval, over the median.
        least_samples, least_s: before the interval counts.
        most_s: of sampling; then it ends as it is.
        most_warmup: calls that a workload may take to settle.
    """

    half_width: float = 0.005
    least_samples: int = 10
    least_s: float = 0.5
    most_s: float = 15.0
    most_warmup: int = 50


@dataclass(frozen=True)
class Samples:
    """Times in microseconds, how many calls came before, and why sampling ended."""

    us: tuple[float, ...]
    warmup: int
    stop: str


def sample(next_us: Callable[[], float], rule: StopRule) -> Samples:
    """Call ``next_us`` until the rule says stop; each call gives the time of one run."""
    warmup = _warm_up(next_us, rule)
    started, times = perf_counter(), [next_us()]
    while True:
        elapsed = perf_counter() - started
        stop = _stop(times, elapsed, rule)
        if stop:
            return Samples(tuple(times), warmup, stop)
        times.append(next_us())


def _warm_up(next_us: Callable[[], float], rule: StopRule) -> int:
    """Run until two windows agree; the first call, which compiles and touches pages, counts as one of them."""
    times: list[float] = []
    started = perf_counter()
    while len(times) < rule.most_warmup and perf_counter() - started < rule.most_s / 3:
        times.append(next_us())
        if len(times) >= 2 * WINDOW:
            before, now = statistics.median(times[-2 * WINDOW : -WINDOW]), statistics.median(times[-WINDOW:])
            if abs(now - before) <= SETTLED * now:
                break
    return len(times)


def _stop(times: Sequence[float], elapsed_s: float, rule: StopRule) -> str | None:
    if len(times) >= MOST_SAMPLES:
        return "most samples"
    if elapsed_s >= rule.most_s and len(times) >= min(3, rule.least_samples):
        return "most time"
    if len(times) < rule.least_samples or elapsed_s < rule.least_s:
        return None
    found = statistics_of(times)
    assert found is not None, "there are samples"
    return "precise" if (found.high - found.low) / 2 <= rule.half_width * found.median else None
