"""Timing that cannot be fooled: honest work has a time, cheats have none, and what disturbs a time is said."""

import inspect
import time
from dataclasses import replace
from types import SimpleNamespace

import cheats
import pytest
import torch

from hardware.telemetry import Sample, Telemetry
from perf import measure as measuring
from perf.agreement import compare, whole
from perf.case import Agreement, Case
from perf.catalogue import all_cases
from perf.cost import Cost
from perf.measure import DeviceTimer, HostTimer, measure, throttling
from perf.sampling import StopRule, sample
from perf.trusted import disagreement, patched
from perf.workload import Workload
from reference.ops.linear import linear

QUICK = StopRule(half_width=0.05, least_samples=150, least_s=0.0, most_s=0.5, most_warmup=12)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ANY_NOISE = 1e9


def case_of(T=8, inputs=64, outputs=32):
    def build(maker):
        weight = maker.normal(outputs, inputs, dtype=torch.float32)
        return lambda: (maker.normal(T, inputs, dtype=torch.float32), weight)

    return Case("linear", f"T={T}", "float32", Cost(1, 1), build, whole)


def outcome_of(operator, timer=None, **settings):
    work = Workload(case_of(), operator, linear, "cpu")
    return measure(work, timer or HostTimer("warm"), QUICK, most_noise=ANY_NOISE, **settings)


def test_honest_work_has_a_time_and_nothing_against_it():
    outcome = outcome_of(cheats.honest)
    assert outcome.wrong is None
    assert outcome.suspicions == ()
    assert outcome.samples is not None
    assert len(outcome.samples.us) >= 3
    assert 0 < min(outcome.samples.us) < 1e5
    assert (outcome.clock, outcome.cache) == ("perf_counter", "warm")


@pytest.mark.parametrize("name", cheats.CHEATS)
def test_a_cheat_has_no_time(name, monkeypatch):
    maker, said = cheats.CHEATS[name]
    operator = maker(monkeypatch) if inspect.signature(maker).parameters else maker()
    outcome = outcome_of(operator)
    assert outcome.samples is None
    assert said in (outcome.wrong or "")


def test_there_are_enough_cheats():
    assert len(cheats.CHEATS) >= 10


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device: pytest tests/perf/test_measure.py -m cuda")
class TestOnCuda:
    """Cheats that need a second stream or the L2 cache."""

    def outcome_of(self, operator, **settings):
        work = Workload(case_of(T=512, inputs=4096, outputs=4096), operator, linear, "cuda")
        return measure(work, DeviceTimer("cold"), QUICK, most_noise=ANY_NOISE, **settings)

    def test_honest_work_has_a_time(self):
        outcome = self.outcome_of(cheats.honest)
        assert outcome.wrong is None
        assert outcome.samples is not None
        assert outcome.clock == "cuda_graph"

    def test_work_on_another_stream_has_none(self):
        other = torch.cuda.Stream()

        def operator(x, weight):
            y = torch.zeros(len(x), len(weight), device=x.device)
            with torch.cuda.stream(other):
                torch.cuda._sleep(200_000_000)
                y.copy_(x @ weight.T)
            return y

        assert self.outcome_of(operator).samples is None

    def test_a_cache_that_is_kept_is_seen(self):
        import ctypes

        from perf.carve_out import DRIVER, PERSISTING_L2, DriverCarveOut

        calls = 0

        def operator(x, weight):
            nonlocal calls
            calls += 1
            if calls > 1:
                ctypes.CDLL(DRIVER).cuCtxSetLimit(PERSISTING_L2, ctypes.c_size_t(1 << 24))
            return x @ weight.T

        outcome = self.outcome_of(operator, carve_out=DriverCarveOut())
        assert any("L2 carve-out" in reason for reason in outcome.suspicions)


def test_work_behind_a_queue_is_waited_for(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append(time.perf_counter()))
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.ones(*size))  # there is no such device here
    outcome = outcome_of(cheats.honest, HostTimer("cold", device="mps"))
    assert outcome.samples is not None
    assert len(waits) >= 2 * len(outcome.samples.us)


class Carved:
    """A carve-out that somebody sets again after it was given back."""

    def __init__(self, size):
        self.size, self.resets = size, 0

    def reset(self):
        self.resets += 1

    def size_bytes(self):
        return self.size


def test_a_kept_part_of_the_cache_makes_a_time_suspect():
    carved = Carved(1 << 24)
    outcome = outcome_of(cheats.honest, carve_out=carved)
    assert carved.resets == 1
    assert outcome.suspicions == ("L2 carve-out: 16777216 bytes of the cache are kept for somebody; want none",)
    assert outcome_of(cheats.honest, carve_out=Carved(0)).suspicions == ()


def test_noise_makes_a_time_suspect():
    calls = 0

    def operator(x, weight):
        nonlocal calls
        calls += 1
        time.sleep(0.002 if calls % 2 else 0.0)
        return cheats.honest(x, weight)

    work = Workload(case_of(), operator, linear, "cpu")
    outcome = measure(work, HostTimer("warm"), QUICK)
    assert outcome.samples is not None
    assert outcome.suspicions[0].startswith("noise: samples spread over")


def watched(*samples):
    telemetry = Telemetry()
    telemetry.samples = [Sample(float(at), clock, 100, slowed) for at, (clock, slowed) in enumerate(samples)]
    return telemetry


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([(1980, ()), (1975, ())], []),
        ([(1980, ()), (1900, ("power limit",))], []),  # large products meet the limit: no news
        ([(1980, ()), (1200, ("power limit",))], ["throttling: the clock fell from 1980 to 1200 MHz"]),
        ([(1980, ("temperature",))], ["throttling: temperature"]),
        ([(None, ())], []),
    ],
)
def test_a_device_that_was_held_down_makes_a_time_suspect(samples, said):
    assert throttling(watched(*samples)) == said


def test_throttling_while_sampling_is_in_the_outcome(monkeypatch):
    class Held(Telemetry):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.samples = [Sample(0.0, 1980, 100, ("temperature",))]

    outcome = outcome_of(cheats.honest, watch=Held)
    assert outcome.suspicions == ("throttling: temperature",)


def test_clocks_that_differ_make_a_time_suspect(monkeypatch):
    monkeypatch.setattr(measuring, "disagreement", lambda: 0.5)
    assert outcome_of(cheats.honest).suspicions[0].startswith("clocks: two clocks of the host differ by 50%")


def test_a_clock_of_half_the_speed_differs_from_another():
    assert disagreement() < 0.05
    start = time.perf_counter()
    assert disagreement(clock=lambda: start + (time.perf_counter() - start) / 2) == pytest.approx(0.5, abs=0.05)
    assert patched() == []


class Times:
    """Gives these, then the last for ever."""

    def __init__(self, *us):
        self.us, self.calls = list(us), 0

    def __call__(self):
        self.calls += 1
        return self.us.pop(0) if len(self.us) > 1 else self.us[0]


def test_sampling_stops_when_the_median_is_known_and_says_so():
    found = sample(Times(10.0), StopRule(least_s=0.0))
    assert (found.stop, len(found.us)) == ("precise", 10)


def test_sampling_stops_when_it_takes_too_long_and_says_so():
    rule = StopRule(half_width=0.0, least_s=0.0, most_s=0.05)
    found = sample(Times(*map(float, range(1, 100_000))), rule)
    assert found.stop in ("most time", "most samples")


def test_warming_up_goes_on_until_times_settle():
    falling = [100.0, 90, 80, 70, 60, 50, 40, 30, 20, 10]
    assert sample(Times(*falling, 10.0), StopRule(least_s=0.0)).warmup > len(falling)
    assert sample(Times(10.0), StopRule(least_s=0.0)).warmup == 10


def test_a_cold_call_does_not_find_its_inputs():
    flushed = HostTimer("cold")
    outcome = outcome_of(cheats.honest, timer=flushed)
    assert (outcome.cache, outcome.wrong) == ("cold", None)


def test_inputs_are_new_where_they_are_checked_and_weights_stay():
    work = Workload(case_of(), cheats.honest, linear, "cpu")
    first = [tensor.clone() for tensor in work.sets[0]]
    addresses = [tensor.data_ptr() for tensor in work.sets[0]]
    work.refresh(0)
    assert [tensor.data_ptr() for tensor in work.sets[0]] == addresses
    assert not torch.equal(work.sets[0][0], first[0])
    assert torch.equal(work.sets[0][1], first[1])


class FakeStopwatch:
    """Runs the calls on the CPU as a graph would replay them: the outputs' places stay, what lies there is new."""

    method = "graph"

    def prepare(self, call, copies):
        call(0)  # the warm-up before a capture
        outputs = [call(copy) for copy in range(copies)]

        def replay():
            for copy, place in enumerate(outputs):
                place.copy_(call(copy))
            return 3.0 * copies

        return replay


@pytest.fixture
def device_timer(monkeypatch):
    """A timer of a device that is not here."""
    monkeypatch.setattr(measuring, "GraphStopwatch", FakeStopwatch)
    timer = DeviceTimer("cold")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None))
    return timer


def test_calls_in_a_graph_are_copied_until_a_replay_is_long_enough(device_timer):
    work = Workload(case_of(), cheats.honest, linear, "cpu")
    next_us = device_timer.prepare(work)
    assert next_us() == pytest.approx(3.0)
    assert device_timer.verify(work) is None
    assert device_timer.clock == "cuda_graph"


def test_a_graph_that_replays_an_old_answer_is_seen_after_timing(device_timer):
    work = Workload(case_of(), cheats.cached_by_address(), linear, "cpu")
    device_timer.prepare(work)
    wrong = device_timer.verify(work)
    assert wrong is not None
    assert "times the tolerance" in wrong.reason


def test_numbers_are_an_output_and_a_fused_kernel_may_write_to_its_workspace():
    def kernel(x, weight):
        y = cheats.honest(x, weight)
        x.copy_(torch.arange(x.numel()).view_as(x))  # as if it were a workspace
        return y

    def agrees(reference, args, got):
        return Agreement(0.0, "numbers")

    row, fused = replace(case_of(), check=agrees), replace(case_of(), check=agrees, fused="module:kernel")
    assert Workload(fused, kernel, linear, "cpu").run_checked() is None
    assert Workload(row, kernel, linear, "cpu").run_checked() is not None
    assert Workload(row, lambda *_: (3, 0.5), linear, "cpu").run_checked() is None


def test_what_a_fused_kernel_wrote_for_one_set_of_inputs_stays_when_the_next_set_is_run():
    case = next(case for case in all_cases() if case.op == "qk_norm_rope_cache")

    def writes(q, k, v, q_weight, k_weight, eps, positions, frequencies, k_cache, v_cache, slots):
        k_cache.flatten(0, 1)[slots], v_cache.flatten(0, 1)[slots] = k, v
        return q

    def compare_keys(reference, args, got):
        k, k_cache, slots = args[1], args[8], args[10]
        return compare(k_cache.flatten(0, 1)[slots], k, "k's slots")

    work = Workload(replace(case, check=compare_keys), writes, linear, "cpu", num_sets=2)
    got = work.call(0)
    work.call(1)
    assert work.check(0, got) is None
