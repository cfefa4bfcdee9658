"""Checks of the row ``linear``."""

import pytest
import torch

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact
from ..strategies import Case, for_cases, token_counts
from ..tolerance import DotBound, bit_exact
from ..under_test import UnderTest

SHAPES = [(5, 96, 40), (1, 1280, 257), (33, 130, 7), (0, 24, 16), *token_counts(24, 18)]  # T, I, O
# Published projections: k and v, and in the full tier the widest in and out.
PUBLISHED = [
    (3, 4096, 1024),
    *(
        pytest.param(shape, marks=pytest.mark.full)
        for shape in [(2, 4096, 12_288), (3, 12_288, 4096), (2, 11_264, 4096), (9, 4096, 4096)]
    ),
]


@clause("LIN-1")
@for_cases(["randn", "one_loud_channel", "mixed_rows", "tiny_scale", "huge_scale", "zeros"], SHAPES)
def test_multiplies_rows_by_the_transposed_weight(engine: UnderTest, counters: Counters, case: Case) -> None:
    check(engine, counters, case)


@clause("LIN-1")
@pytest.mark.parametrize("shape", PUBLISHED, ids=str)
def test_multiplies_at_the_published_widths(engine: UnderTest, counters: Counters, shape: tuple[int, ...]) -> None:
    check(engine, counters, Case("one_loud_channel", shape, 0))


def check(engine: UnderTest, counters: Counters, case: Case) -> None:
    """Compare one product with the bound of its sum."""
    num_tokens, num_inputs, num_outputs = case.shape
    x = case.activations(num_tokens, num_inputs, dtype=engine.profile.activations)
    weight = case.weights(num_outputs, num_inputs, dtype=engine.profile.weights, what="weight")
    got = engine.op("linear")(x, weight)
    magnitude = exact("linear", x.abs(), weight.abs())
    dot = DotBound(num_inputs, engine.profile.accumulate)
    counters.add("products_that_are_not_zero", int((magnitude > 0).sum()))
    dot.check(got, exact("linear", x, weight), magnitude, counters, case)


@clause("LIN-1")
def test_whole_numbers_multiply_without_error(engine: UnderTest, counters: Counters) -> None:
    """Sums below 256 are exact in every profile: this is the arithmetic itself, from a loop in Python."""
    x = torch.tensor([[1.0, -2.0, 3.0], [0.0, 5.0, -1.0]])
    weight = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, -3.0], [0.0, 7.0, 0.0], [4.0, 4.0, 1.0]])
    want = [[sum(a * b for a, b in zip(row, out, strict=True)) for out in weight.tolist()] for row in x.tolist()]
    activations = engine.profile.activations
    got = engine.op("linear")(x.to(activations), weight.to(engine.profile.weights))
    bit_exact(got, torch.tensor(want, dtype=activations), counters, "whole numbers")


@clause("LIN-1")
def test_long_sums_that_cancel_keep_the_accumulate_dtype(engine: UnderTest, counters: Counters) -> None:
    """11,264 products of alternating sign: a sum kept in the output's dtype drifts far beyond the bound."""
    size = 11_264
    x = Case("randn", (), 0).activations(2, size, dtype=engine.profile.activations)
    weight = torch.stack([torch.tensor([1.0, -1.0]).repeat(size // 2), torch.ones(size), torch.linspace(-1, 1, size)])
    weight = weight.to(engine.profile.weights)
    got = engine.op("linear")(x, weight)
    dot = DotBound(size, engine.profile.accumulate)
    dot.check(got, exact("linear", x, weight), exact("linear", x.abs(), weight.abs()), counters, "11,264 terms")
