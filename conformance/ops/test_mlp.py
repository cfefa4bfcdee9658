"""Checks of the row ``mlp``."""

import pytest
import torch

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact, legal
from ..strategies import Case, for_cases, token_counts
from ..tolerance import Envelope, bit_exact
from ..under_test import UnderTest

SHAPES = [(5, 96, 40), (1, 264, 130), (17, 48, 200), (0, 24, 16), *token_counts(24, 40)]  # T, D, F
SHARED_EXPERT = (65, 4096, 1280)  # its published widths
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(engine: UnderTest, case: Case) -> Inputs:
    num_tokens, hidden_size, intermediate_size = case.shape
    dtype = engine.profile.weights
    return (
        case.activations(num_tokens, hidden_size, dtype=engine.profile.activations),
        case.weights(intermediate_size, hidden_size, dtype=dtype, what="gate"),
        case.weights(intermediate_size, hidden_size, dtype=dtype, what="up"),
        case.weights(hidden_size, intermediate_size, dtype=dtype, what="down"),
    )


@clause("MLP-1")
@pytest.mark.parametrize("limit", [0.0, 7.0])
@for_cases(["randn", "saturating", "one_loud_channel", "mixed_rows", "zeros"], SHAPES)
def test_projects_up_activates_within_the_limit_and_projects_down(
    engine: UnderTest, counters: Counters, case: Case, limit: float
) -> None:
    x, gate_weight, up_weight, down_weight = inputs(engine, case)
    args = (x, gate_weight, up_weight, down_weight, limit)
    got = engine.op("mlp")(*args)
    up = exact("linear", x, up_weight)
    counters.add("ups_beyond_7", int((up.abs() > 7).sum()))
    counters.add("gates_beyond_7", int((exact("linear", x, gate_weight) > 7).sum()))
    Envelope(legal("mlp", engine.profile, *args), exact("mlp", *args)).check(got, counters, case)


@clause("MLP-1")
@pytest.mark.full
def test_a_shared_expert_of_published_widths(engine: UnderTest, counters: Counters) -> None:
    case = Case("randn", SHARED_EXPERT, 0)
    args = (*inputs(engine, case), 16.0)
    counters.add("tokens", len(args[0]))
    Envelope(legal("mlp", engine.profile, *args), exact("mlp", *args)).check(engine.op("mlp")(*args), counters, case)


@clause("MLP-1")
def test_one_hot_weights_pick_single_products(engine: UnderTest, counters: Counters) -> None:
    """Independent of the reference: gate reads input 0, up input 1; gates of 20 pass unchanged to every digit held."""
    dtype = engine.profile.activations
    x = torch.tensor([[20.0, 3.0], [20.0, -2.0]], dtype=dtype)
    gate_weight = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]).to(engine.profile.weights)
    up_weight = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]).to(engine.profile.weights)
    down_weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]).to(engine.profile.weights)
    got = engine.op("mlp")(x, gate_weight, up_weight, down_weight, 7.0)
    bit_exact(got, torch.tensor([[21.0, 0.0], [-14.0, 0.0]], dtype=dtype), counters, "gate 20, up 3 and -2, limit 7")
