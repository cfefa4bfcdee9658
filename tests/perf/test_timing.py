"""The timer's decisions, with a clock that the test sets."""

import contextlib
import gc

import pytest

from perf import timing
from perf.timing import LEAST_REPLAYS, MAX_COPIES, REPLAY_US, REPLAYS, spread, time_calls


class SetClock:
    """Every call takes ``call_us``; a replay ``overhead_us`` more, the first one much more."""

    method = "set"

    def __init__(self, call_us, overhead_us=0.0):
        self.call_us, self.overhead_us = call_us, overhead_us
        self.copies, self.first_replays = [], 0

    def prepare(self, call, copies):
        self.copies.append(copies)
        ran = []

        def replay():
            for copy in range(copies):
                call(copy)
            ran.append(copies)
            cold_us = 1e6 if len(ran) == 1 else 0.0
            return copies * self.call_us + self.overhead_us + cold_us

        return replay


def test_a_short_call_is_copied_until_a_replay_is_long_enough():
    clock = SetClock(call_us=3.0)
    found = time_calls(lambda copy: None, 7, clock)
    assert clock.copies == [7, 672]
    assert found.us == pytest.approx(3.0)
    assert found.copies * 3.0 >= REPLAY_US
    assert (found.replays, found.spread, found.method) == (REPLAYS, 0, "set")


def test_a_long_call_is_not_copied_and_replayed_less_often():
    clock = SetClock(call_us=50_000.0)
    found = time_calls(lambda copy: None, 2, clock)
    assert clock.copies == [2]
    assert (found.us, found.replays) == (50_000.0, LEAST_REPLAYS)


def test_a_call_that_takes_no_time_ends_at_the_most_copies():
    found = time_calls(lambda copy: None, 1, SetClock(call_us=1e-6))
    assert found.copies == MAX_COPIES


def test_the_overhead_of_a_replay_is_spread_over_its_copies():
    found = time_calls(lambda copy: None, 16, SetClock(call_us=2.0, overhead_us=8.0))
    assert found.us == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("num_sets", [1, 3, 16])
def test_every_replay_uses_every_set_equally_often(num_sets):
    used = [0] * num_sets
    clock = SetClock(call_us=700.0)

    def call(copy):
        used[copy % num_sets] += 1

    time_calls(call, num_sets, clock)
    assert min(used) == max(used) > 0


def test_calls_that_no_graph_holds_are_timed_with_events_and_say_so(monkeypatch):
    class Refusing:
        method = "graph"

        def prepare(self, call, copies):
            raise timing.CaptureError("the call waits")

    class Events(SetClock):
        def __init__(self, why):
            super().__init__(5.0)
            self.method = f"events ({why})"

    monkeypatch.setattr(timing, "GraphStopwatch", Refusing)
    monkeypatch.setattr(timing, "EventStopwatch", Events)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    assert timing.time_on_device(lambda copy: None, 1).method == "events (capture failed: the call waits)"
    assert timing.time_on_device(lambda copy: None, 1, waits=True).method == "events (the call waits for the device)"


def test_the_spread_leaves_out_a_tenth_at_each_end():
    assert spread([10.0] * 9 + [1000.0]) == 0
    assert spread([9.0, 10.0, 11.0]) == pytest.approx(0.2)


class FakeCuda:
    """Notes what the graph stopwatch asks of torch.cuda, in order."""

    def __init__(self, monkeypatch):
        notes = self.notes = []

        class Stream:
            def wait_stream(self, other):
                notes.append("wait")

            def synchronize(self):
                notes.append("synchronize")

        class Graph:
            def capture_begin(self):
                notes.append("begin")

            def capture_end(self):
                notes.append("end")

            def replay(self):
                notes.append("replay")

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self, stream):
                notes.append("record")

            def synchronize(self):
                notes.append("synchronize")

            def elapsed_time(self, end):
                return 0.25  # ms

        monkeypatch.setattr("torch.cuda.Stream", Stream)
        monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
        monkeypatch.setattr("torch.cuda.Event", Event)
        monkeypatch.setattr("torch.cuda.current_stream", Stream)
        monkeypatch.setattr("torch.cuda.stream", lambda stream: contextlib.nullcontext())


def test_a_graph_is_captured_after_a_warm_up_and_replayed_between_events(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    replay = timing.GraphStopwatch().prepare(lambda copy: cuda.notes.append(copy), 3)
    assert cuda.notes == ["wait", 0, "synchronize", "begin", 0, 1, 2, "end"]
    cuda.notes.clear()
    assert replay() == 250.0
    assert cuda.notes == ["record", "replay", "record", "synchronize"]


def test_a_capture_that_fails_is_ended_and_garbage_is_collected_again(monkeypatch):
    cuda = FakeCuda(monkeypatch)

    def call(copy):
        if "begin" in cuda.notes:
            raise RuntimeError("it waits\nfor the device")

    with pytest.raises(timing.CaptureError, match=r"^RuntimeError: it waits$"):
        timing.GraphStopwatch().prepare(call, 2)
    assert cuda.notes[-2:] == ["begin", "end"]
    assert gc.isenabled()
