"""Negative controls: on this machine, in this session, the judge rejects wrong engines and accepts the right one."""

import pytest
import torch

from ..clauses import clause
from ..counters import Counters
from ..guard import Operator, guarded
from ..isolation import EngineProcess
from ..ops import test_attention, test_rms_norm, test_router, test_swiglu
from ..strategies import Case
from ..tolerance import ConformanceError, bit_exact
from ..under_test import UnderTest

CONTROLS = ("norm_without_one", "norm_in_place", "router_unbiased", "swiglu_unclamped", "attention_window_one_more")
JUDGES = {  # row: a check of it, called as a function
    "rms_norm": lambda engine, counters: test_rms_norm.test_a_row_of_known_size_gives_known_numbers(engine, counters),
    "router": lambda engine, counters: test_router.test_a_large_bias_chooses_but_does_not_weigh(engine, counters),
    "swiglu": lambda engine, counters: test_swiglu.test_the_clamp_follows_the_activation(engine, counters),
    "attention": lambda engine, counters: test_attention.test_exactly_the_last_window_positions_are_seen(
        engine, counters, 31, 511
    ),
}


@clause("AWAKE-1")
@pytest.mark.parametrize("fault", CONTROLS)
def test_a_wrong_engine_is_rejected(counters: Counters, fault: str) -> None:
    rejected = _rejected(f"conformance.faults.catalogue:{fault}", counters)
    bit_exact(torch.tensor([rejected]), torch.tensor([True]), counters, f"{fault}: whether it was rejected")


@clause("AWAKE-1")
def test_the_reference_is_accepted(counters: Counters) -> None:
    rejected = _rejected("reference.engine:engine", counters)
    bit_exact(torch.tensor([rejected]), torch.tensor([False]), counters, "the reference: whether it was rejected")


@clause("AWAKE-1")
def test_an_operator_that_writes_nothing_is_seen(counters: Counters) -> None:
    """Memory that torch hands out uninitialised is poisoned in the engine's process, whatever it held before."""
    process = EngineProcess("conformance.faults.attacks:stale_buffer")
    try:
        norm: Operator = guarded("rms_norm", process)
        x = Case("randn", (), 0).activations(3, 64, dtype=torch.float32)
        with pytest.raises(ConformanceError, match="want a finite number"):
            norm(x, torch.zeros(64), 1e-5)
        counters.compared("an unwritten result is refused", 0, 0, "stale_buffer")
    finally:
        process.stop()


def _rejected(engine: str, counters: Counters) -> bool:
    process = EngineProcess(engine)
    try:
        under_test = UnderTest(process)
        for judge in JUDGES.values():
            try:
                judge(under_test, Counters())
            except ConformanceError:
                return True
        counters.add("checks_of_the_reference", len(JUDGES))
        return False
    finally:
        process.stop()
