"""Device times through pytest-benchmark's public API: measured outside, replayed by the clock that it is given.

Left alone, ``benchmark(fn)`` times the launch of asynchronous work, which is wrong by a factor of a thousand. The clock
must be set before the fixture ``benchmark`` reads its marker, so a hook adds the marker in front of the test's own.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest

CLOCK: pytest.StashKey["ReplayClock"] = pytest.StashKey()


class ReplayClock:
    """Answers 0, s0, 0, s1, ... for the samples that it was loaded with."""

    __name__ = "replay_clock"  # appears as options.timer in the JSON of pytest-benchmark

    def __init__(self) -> None:
        self.left: deque[float] = deque()

    def load(self, samples_s: Sequence[float]) -> None:
        self.left.clear()
        for sample in samples_s:
            self.left.extend((0.0, sample))

    def __call__(self) -> float:
        return self.left.popleft()


def set_clock(item: pytest.Item) -> None:
    """Give a test that uses ``device_benchmark`` its clock; what its own markers say of the benchmark stays."""
    if "device_benchmark" not in getattr(item, "fixturenames", ()):
        return
    options: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers("benchmark"))):
        options.update(marker.kwargs)
    clock = ReplayClock()
    item.stash[CLOCK] = clock
    options["timer"] = clock
    item.add_marker(pytest.mark.benchmark(**options), append=False)  # in front: the closest marker is the one read


def replay(item: pytest.Item, benchmark: Any, samples_s: Sequence[float], **info: Any) -> None:
    """Let pytest-benchmark see the samples, with everything that it makes of them: statistics, JSON, comparison."""
    clock = item.stash[CLOCK]
    clock.load(samples_s)
    benchmark.extra_info.update(info)
    benchmark.pedantic(_nothing, rounds=len(samples_s), iterations=1)
    if clock.left:
        pytest.fail("replay clock: was not used, so host time would have been reported; want it first", pytrace=False)


def _nothing() -> None:
    """What pytest-benchmark calls: the work was done and timed before."""
