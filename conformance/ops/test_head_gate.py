"""Checks of the row ``head_gate``."""

import math

import torch

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact
from ..strategies import Case, for_cases, token_counts
from ..tolerance import UlpBound, bit_exact
from ..under_test import UnderTest

SHAPES = [(5, 12, 32), (1, 96, 128), (0, 6, 16), *token_counts(6, 14)]  # T, N, H
TOLERANCE = UlpBound(ulps=2, roundings=5)  # exp (2), 1 + it, the quotient, the product; and exp's argument, by its size


@clause("GATE-1")
@for_cases(["randn", "saturating", "mixed_rows", "one_loud_channel", "tiny_scale", "zeros", "denormals"], SHAPES)
def test_scales_each_head_by_the_sigmoid_of_its_gate(engine: UnderTest, counters: Counters, case: Case) -> None:
    num_tokens, num_heads, _ = case.shape
    x = case.activations(*case.shape, dtype=engine.profile.activations)
    gate = case.activations(num_tokens, num_heads, dtype=engine.profile.activations, what="gate").clamp(-30, 30)
    got = engine.op("head_gate")(x, gate)
    counters.add("heads_with_a_gate_of_their_own", int((gate.float() != gate.float()[:, :1]).sum()) if len(x) else 0)
    TOLERANCE.check(got, exact("head_gate", x, gate), counters, case, gate[..., None])


@clause("GATE-1")
def test_known_gates_give_known_factors(engine: UnderTest, counters: Counters) -> None:
    """Head by head: 0 halves, ln 3 leaves three quarters, -ln 3 one quarter, and 100 everything."""
    gate = torch.tensor([[0.0, math.log(3), -math.log(3), 100.0]]).to(engine.profile.activations)
    x = torch.arange(1.0, 21.0).view(1, 4, 5).to(engine.profile.activations)
    got = engine.op("head_gate")(x, gate)
    factors = [1 / (1 + math.exp(-value)) for value in gate[0].tolist()]
    want = x.double() * torch.tensor(factors, dtype=torch.float64)[None, :, None]
    TOLERANCE.check(got, want, counters, "gates 0, ln 3, -ln 3, 100", gate[..., None])


@clause("GATE-1")
def test_a_shut_head_leaves_the_other_heads_alone(engine: UnderTest, counters: Counters) -> None:
    case = Case("randn", (3, 7, 16), 0)
    x = case.activations(*case.shape, dtype=engine.profile.activations)
    gate = case.activations(3, 7, dtype=engine.profile.activations, what="gate")
    shut = gate.clone()
    shut[:, 4] = -80
    got, beside = engine.op("head_gate")(x, gate), engine.op("head_gate")(x, shut)
    others = [0, 1, 2, 3, 5, 6]
    bit_exact(beside[:, others], got[:, others], counters, "heads beside a shut one")
    TOLERANCE.check(beside[:, 4], exact("head_gate", x, shut)[:, 4], counters, "the shut head", shut[:, 4:5])
