"""Checks of the row ``swiglu``."""

import math

import pytest
import torch

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact
from ..strategies import Case, for_cases, token_counts
from ..tolerance import UlpBound, within
from ..under_test import UnderTest

SHAPES = [(5, 40), (1, 1280), (0, 24), *token_counts(22)]  # T, F
TOLERANCE = UlpBound(ulps=2, roundings=5)  # exp (2), 1 + it, the quotient, the product; and exp's argument, by its size
LIMITS = (0.0, 7.0, 16.0)  # the published ones

# gate, up and the product at limit 7; clamping before the activation would give 6.99362 in the fourth
VECTORS = [(10, 3, 21), (10, -9, -49), (-20, 8, -2.8856e-7), (7.01, 1, 7.0), (3, 7.5, 20.00406), (-100, -50, 0.0)]


@clause("ACT-1")
@pytest.mark.parametrize("limit", LIMITS)
@for_cases(["randn", "saturating", "one_loud_channel", "mixed_rows", "tiny_scale", "zeros", "denormals"], SHAPES)
def test_multiplies_the_activated_gate_by_up_each_within_its_limit(
    engine: UnderTest, counters: Counters, case: Case, limit: float
) -> None:
    gate = case.activations(*case.shape, dtype=engine.profile.activations, what="gate")
    up = case.activations(*case.shape, dtype=engine.profile.activations, what="up")
    got = engine.op("swiglu")(gate, up, limit)
    beyond = limit or 7.0  # where there is no limit, what one would clamp
    counters.add("gates_above_the_limit", int((gate > beyond).sum()))
    counters.add("ups_beyond_the_limit_on_either_side", int((up.abs() > beyond).sum()))
    counters.add("gates_below_the_negative_limit", int((gate < -beyond).sum()))
    TOLERANCE.check(got, exact("swiglu", gate, up, limit), counters, case, gate)


@clause("ACT-1")
@pytest.mark.parametrize(("gate", "up", "want"), VECTORS)
def test_published_vectors(engine: UnderTest, counters: Counters, gate: float, up: float, want: float) -> None:
    """To the digits they are given in, with the inputs as this profile can hold them."""
    dtype = engine.profile.activations
    inputs = torch.tensor([[gate]], dtype=dtype), torch.tensor([[up]], dtype=dtype)
    got = engine.op("swiglu")(*inputs, 7.0)
    held_gate, held_up = inputs[0].item(), inputs[1].item()
    silu = held_gate / (1 + math.exp(-held_gate))
    closed_form = min(silu, 7.0) * max(-7.0, min(7.0, held_up))
    exact_result = torch.tensor([[closed_form]], dtype=torch.float64)
    TOLERANCE.check(got, exact_result, counters, f"gate {gate}, up {up}", inputs[0])
    if dtype == torch.float32:
        digits = torch.tensor([[max(abs(want) * 1e-5, 1e-7)]])  # six digits are given
        within(got, torch.tensor([[want]], dtype=torch.float64), digits, "published digits", counters, f"{gate}, {up}")


@clause("ACT-1")
def test_the_clamp_follows_the_activation(engine: UnderTest, counters: Counters) -> None:
    """Gates just above the limit: silu of the clamped gate would be 7 * sigmoid(7), 0.09 percent less than 7."""
    dtype = engine.profile.activations
    gate = torch.tensor([[7.25, 7.5, 8.0, 20.0, 300.0]], dtype=dtype)
    got = engine.op("swiglu")(gate, torch.full_like(gate, 0.75), 7.0)
    want = torch.full((1, 5), 7 * 0.75, dtype=torch.float64)
    TOLERANCE.check(got, want, counters, "gates above 7", gate)


@clause("ACT-1")
def test_no_limit_does_not_clamp(engine: UnderTest, counters: Counters) -> None:
    dtype = engine.profile.activations
    gate, up = torch.tensor([[40.0, 500.0, 3.0]], dtype=dtype), torch.tensor([[30.0, -2.0, -700.0]], dtype=dtype)
    want = exact("swiglu", gate, up, 0.0)
    assert want[0, 0].item() == pytest.approx(1200.0)
    TOLERANCE.check(engine.op("swiglu")(gate, up, 0.0), want, counters, "no limit", gate)
