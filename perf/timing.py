"""Time something that is shorter than its own launch: many copies in a CUDA graph, replayed, inputs rotating.

An event around one launch is wrong by 10 to 30 us. Here a replay lasts ``REPLAY_US`` or more, holds nothing but the
kernels, and steps through sets of inputs that together exceed the L2 cache.
"""

import contextlib
import gc
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MAX_COPIES = 2048
REPLAY_US = 2000.0  # at least: an event's own error is some microseconds
REPLAYS = 15
BUDGET_US = 120_000.0  # of one case's replays; slower calls are replayed less often
LEAST_REPLAYS = 3


@dataclass(frozen=True)
class Timing:
    """What was measured.

    Attributes:
        us: median over replays, of one call.
        spread: (90th - 10th percentile) / median.
        copies: calls in a replay.
        method: "graph", or "events" and why.
    """

    us: float
    spread: float
    copies: int
    replays: int
    method: str


class Stopwatch(Protocol):
    """Runs calls and says how long they took."""

    method: str

    def prepare(self, call: Callable[[int], Any], copies: int) -> Callable[[], float]:
        """Get ready to run ``call(0)`` to ``call(copies - 1)``; each use of the answer runs them and returns us."""
        ...


def time_calls(call: Callable[[int], Any], num_sets: int, stopwatch: Stopwatch, most_replays: int = REPLAYS) -> Timing:
    """Time ``call(i)``, where i counts up and ``call`` takes set ``i % num_sets``.

    A probe of one round finds how many copies a replay needs: whole rounds, so that every replay reads the same.
    """
    copies = num_sets
    replay = stopwatch.prepare(call, copies)
    replay()  # the first one uploads the graph
    probe_us = replay() / copies
    if probe_us * copies < REPLAY_US:
        wanted = min(math.ceil(REPLAY_US / max(probe_us, 1e-3)), MAX_COPIES)
        copies = num_sets * math.ceil(wanted / num_sets)
        replay = stopwatch.prepare(call, copies)
        replay()
    fitting = int(BUDGET_US / max(probe_us * copies, 1e-3))
    replays = max(LEAST_REPLAYS, min(most_replays, fitting))
    samples_us = [replay() / copies for _ in range(replays)]
    return Timing(statistics.median(samples_us), spread(samples_us), copies, replays, stopwatch.method)


def spread(samples: Sequence[float]) -> float:
    """(90th - 10th percentile) / median; of few samples, the whole range."""
    ordered = sorted(samples)
    cut = len(ordered) // 10
    return (ordered[len(ordered) - 1 - cut] - ordered[cut]) / statistics.median(ordered)


class GraphStopwatch:
    """Captures the calls into a CUDA graph on a stream of its own.

    Raises:
        CaptureError: from ``prepare``, if the calls cannot be captured.
    """

    method = "graph"

    def __init__(self) -> None:
        import torch

        self.stream = torch.cuda.Stream()

    def prepare(self, call: Callable[[int], Any], copies: int) -> Callable[[], float]:
        import torch

        self.stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            call(0)  # compiles, and allocates what lives longer than a call, outside of the capture
            self.stream.synchronize()
            gc_was_on = gc.isenabled()
            gc.disable()  # a collection could free a tensor of another stream, which a capture forbids
            try:
                _capture(graph, call, copies)
            finally:
                if gc_was_on:
                    gc.enable()
        return lambda: _elapsed_us(graph.replay, self.stream)


class EventStopwatch:
    """Launches the calls one after another between two events: what it says holds the host's time, too."""

    def __init__(self, why: str) -> None:
        import torch

        self.method = f"events ({why})"
        self.stream = torch.cuda.current_stream()

    def prepare(self, call: Callable[[int], Any], copies: int) -> Callable[[], float]:
        def calls() -> None:
            for copy in range(copies):
                call(copy)

        call(0)
        return lambda: _elapsed_us(calls, self.stream)


class CaptureError(RuntimeError):
    """Calls that a CUDA graph cannot hold."""


def time_on_device(call: Callable[[int], Any], num_sets: int, waits: bool = False) -> Timing:
    """Time on the current CUDA device: in a graph, or with events where no graph can hold the calls.

    Args:
        waits: the call is known to wait for the device.
    """
    if waits:
        return time_calls(call, num_sets, EventStopwatch("the call waits for the device"))
    try:
        return time_calls(call, num_sets, GraphStopwatch())
    except CaptureError as error:
        import torch

        torch.cuda.synchronize()
        return time_calls(call, num_sets, EventStopwatch(f"capture failed: {error}"))


def _elapsed_us(work: Callable[[], Any], stream: Any) -> float:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        start.record(stream)
        work()
        end.record(stream)
    end.synchronize()
    return start.elapsed_time(end) * 1000


def _capture(graph: Any, call: Callable[[int], Any], copies: int) -> None:
    is_capturing = True
    try:
        graph.capture_begin()
        for copy in range(copies):
            call(copy)
        is_capturing = False
        graph.capture_end()
    except Exception as error:
        if is_capturing:
            with contextlib.suppress(RuntimeError):  # ending a capture that failed fails, too, which is no news
                graph.capture_end()
        said = str(error).strip().splitlines() or [""]
        raise CaptureError(f"{type(error).__name__}: {said[0][:120]}") from error
