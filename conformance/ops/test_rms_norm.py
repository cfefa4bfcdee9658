"""Checks of the row ``rms_norm``."""

import math

import pytest
import torch

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact
from ..strategies import Case, for_cases, token_counts
from ..tolerance import UlpBound, bit_exact, sum_roundings
from ..under_test import UnderTest

EPS = 1e-5
SHAPES = [(1, 4096), (7, 129), (0, 96), (5, 24), *token_counts(40)]  # axes that differ: a swapped one cannot pass
FAMILIES = ["randn", "tiny_scale", "huge_scale", "one_loud_channel", "mixed_rows", "zeros", "some_zero_rows"]


def tolerance(size: int) -> UlpBound:
    """Square, eps, root, reciprocal, x times it, 1 + w, their product; and half of the sum's error, under the root."""
    return UlpBound(ulps=2, roundings=8 + sum_roundings(size))


@clause("NORM-1")
@for_cases(FAMILIES, SHAPES)
def test_divides_by_the_root_mean_square_and_scales_by_one_plus_weight(
    engine: UnderTest, counters: Counters, case: Case
) -> None:
    x = case.activations(*case.shape, dtype=engine.profile.activations)
    weight = case.norm_weight(case.shape[1], engine.profile.weights)
    got = engine.op("rms_norm")(x, weight, EPS)
    counters.add("rows_that_are_not_zero", int((x != 0).any(dim=-1).sum()))
    counters.add("rows_in_which_eps_matters", int((x.double().square().mean(dim=-1) < EPS).sum()))
    tolerance(case.shape[1]).check(got, exact("rms_norm", x, weight, EPS), counters, case)


@clause("NORM-1")
def test_a_row_of_known_size_gives_known_numbers(engine: UnderTest, counters: Counters) -> None:
    """Mean square of (3, -4, 0, 0) is 6.25; the weights 0, 1 and -1 scale by 1, 2 and 0."""
    dtype = engine.profile.activations
    got = engine.op("rms_norm")(
        torch.tensor([[3.0, -4.0, 0.0, 0.0]], dtype=dtype), torch.tensor([0.0, 1.0, -1.0, 0.5]).to(dtype), EPS
    )
    root = math.sqrt(6.25 + EPS)
    want = torch.tensor([[3 / root, -8 / root, 0.0, 0.0]], dtype=torch.float64)
    tolerance(4).check(got, want, counters, "(3, -4, 0, 0)")


@clause("NORM-1")
def test_eps_is_added_before_the_root(engine: UnderTest, counters: Counters) -> None:
    """A mean square of eps gives 1 / sqrt(2); eps after the root would give nearly 1."""
    x = torch.full((1, 64), math.sqrt(EPS), dtype=engine.profile.activations)
    got = engine.op("rms_norm")(x, torch.zeros(64, dtype=engine.profile.weights), EPS)
    size = x[0, 0].item()
    want = torch.full((1, 64), size / math.sqrt(size**2 + EPS), dtype=torch.float64)
    tolerance(64).check(got, want, counters, "mean square = eps")


@clause("NORM-1")
def test_a_row_does_not_depend_on_the_rows_beside_it(engine: UnderTest, counters: Counters) -> None:
    case = Case("mixed_rows", (6, 40), 0)
    x = case.activations(*case.shape, dtype=engine.profile.activations)
    weight = case.norm_weight(40, engine.profile.weights)
    louder = x.clone()
    louder[3] *= 1000
    got, beside = engine.op("rms_norm")(x, weight, EPS), engine.op("rms_norm")(louder, weight, EPS)
    kept = [0, 1, 2, 4, 5]
    bit_exact(beside[kept], got[kept], counters, "rows beside one that became 1000 times as large")


@clause("NORM-1")
@pytest.mark.parametrize("power", [1, 5, 9])
def test_the_size_of_a_large_row_does_not_matter(engine: UnderTest, counters: Counters, power: int) -> None:
    """Four is exact in every format and leaves every mantissa and every root as it is; eps is far below an ulp here."""
    case = Case("huge_scale", (7, 96), power)
    x = case.activations(*case.shape, dtype=engine.profile.activations)
    weight = case.norm_weight(96, engine.profile.weights)
    share = EPS / x.double().square().mean(dim=-1).amin().item()
    counters.add("eps_is_too_small_to_show", share < torch.finfo(torch.float32).eps / 4)
    norm = engine.op("rms_norm")
    bit_exact(norm(x * 4**power, weight, EPS), norm(x, weight, EPS), counters, f"{case}, rows 4^{power} times as large")
