"""Checks, outcomes and inputs of the sweep, on the CPU with a timer that measures nothing."""

import pytest
import torch

from conformance.engine import find_engine
from perf import sweep
from perf.agreement import compare
from perf.catalogue import all_cases, rows, select
from perf.cost import Ceilings
from perf.maker import Maker
from perf.result import Outcome, table
from perf.timing import Timing
from perf.workload import tensors_of

CEILINGS = Ceilings(1000.0, {"bf16": 100.0, "fp8": 200.0}, {})
CHEAP = ["rms_norm", "qk_norm", "rope", "head_gate", "swiglu", "router", "draw", "accept_draft", "quantize_activation"]


@pytest.fixture
def on_cpu(monkeypatch):
    """Inputs on the CPU, a cache of 1 KB, and every call 10 us long."""

    class Properties:
        L2_cache_size = 1024

    monkeypatch.setattr(sweep, "Maker", lambda device: Maker("cpu"))
    monkeypatch.setattr(sweep, "time_on_device", lambda call, num_sets, waits: Timing(10.0, 0.0, 1, 1, "graph"))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: Properties)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)


def measure(case, ops):
    engine, reference = find_engine("reference-bf16"), find_engine("reference").ops()
    (result,) = sweep._measure(case, engine, ops, reference, CEILINGS, ())
    return result


@pytest.mark.parametrize("op", CHEAP)
def test_the_reference_in_bfloat16_is_right(on_cpu, op):
    result = measure(select([op])[0], find_engine("reference-bf16").ops())
    assert (result.outcome, result.reason, result.us) == (Outcome.TIMED, "", 10.0)
    assert result.error <= 1
    assert result.share == pytest.approx(result.floor_us / 10.0)


@pytest.mark.parametrize("op", ["rms_norm", "rope", "swiglu", "router", "quantize_activation"])
def test_a_wrong_output_has_no_time(on_cpu, op):
    right = find_engine("reference-bf16").ops()[op]

    def wrong(*args):
        got = right(*args)
        return tuple(part.double().flip(0, -1) for part in got) if isinstance(got, tuple) else got.flip(0, -1)

    result = measure(select([op])[1], {op: wrong})
    assert (result.outcome, result.us) == (Outcome.FAIL, None)
    assert "times the tolerance" in result.reason
    assert table([result]).splitlines()[1].split()[-1] != ""


def test_an_operator_that_raises_or_is_absent_says_so(on_cpu):
    def broken(*args):
        raise RuntimeError("no such\nluck")

    case = select(["rms_norm"])[0]
    assert measure(case, {"rms_norm": broken}).reason == "RuntimeError: no such"
    assert measure(case, {}).outcome is Outcome.NOT_OFFERED
    assert measure(select(["decode_attention"])[0], {}).reason == "reference-bf16 has no decode_attention"


def test_sets_of_inputs_outgrow_the_cache_and_differ(on_cpu):
    sets = sweep.sets_of(select(["rms_norm"])[0])
    assert len(sets) == 2  # each is more than five times the kilobyte of this test
    assert not torch.equal(sets[0][0], sets[1][0])
    assert sets[0][1] is sets[1][1]  # the weight is the layer's


def test_nan_is_never_right():
    assert not compare(torch.tensor([[float("nan")]]), torch.ones(1, 1), "x").holds
    assert not compare(torch.ones(1, 2), torch.ones(1, 1), "x").holds


def test_every_row_has_cases_and_each_builds_its_inputs_without_memory():
    cases = all_cases()
    assert set(rows()) <= {case.op for case in cases}
    names = [case.name for case in cases]
    assert len(names) == len(set(names))
    for case in cases:
        if case.fused is None:
            args = case.build(Maker("meta"))()
            assert all(tensor.is_meta for tensor in tensors_of(args))
            assert case.cost.hbm_bytes > 0
