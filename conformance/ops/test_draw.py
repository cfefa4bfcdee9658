"""Checks of the row ``draw``."""

import torch

from ..clauses import clause
from ..counters import Counters
from ..strategies import Case, for_cases, token_counts
from ..tolerance import ConformanceError, bit_exact, gamma
from ..under_test import UnderTest

NEAR = 1.25  # times what is allowed: the smallest fault that shows
SHAPES = [(16, 7), (5, 130), (64, 3), *token_counts(11)]  # T, V


@clause("DRAW-1")
@for_cases(["randn", "saturating", "some_zero_rows"], SHAPES)
def test_the_cumulative_probability_passes_the_uniform_number(
    engine: UnderTest, counters: Counters, case: Case
) -> None:
    """In float64; a neighbour is legal only as near to the border as a float32 sum can err.

    Every second uniform number lies just beyond that distance from a border.
    """
    num_rows, vocab_size = case.shape
    probabilities = case.activations(*case.shape, dtype=torch.float32).softmax(dim=-1)
    removed = torch.rand(*case.shape, generator=case.random("removed")) < 0.3
    removed[:, int(case.seed % vocab_size)] = False
    probabilities = probabilities * ~removed
    probabilities /= probabilities.sum(dim=-1, keepdim=True)
    upper = probabilities.double().cumsum(dim=-1)
    lower = upper - probabilities.double()
    allowed = gamma(vocab_size, torch.float32)
    uniforms = torch.rand(num_rows, generator=case.random("uniforms"), dtype=torch.float64)
    borders = upper.gather(-1, torch.randint(vocab_size, (num_rows, 1), generator=case.random("borders")))[::2, 0]
    sides = torch.tensor([-NEAR, NEAR], dtype=torch.float64).repeat(num_rows)[: len(borders)]
    uniforms[::2] = (borders + sides * allowed).clamp(0, 1 - 2.0**-53)
    got = engine.op("draw")(probabilities, uniforms)
    counters.add("numbers_near_a_border", int(((uniforms - upper.T).abs() <= 2 * NEAR * allowed).any(dim=0).sum()))
    counters.add("tokens_of_probability_zero", int(removed.sum()))
    for row, token in enumerate(got.tolist()):
        if not 0 <= token < vocab_size or probabilities[row, token] == 0:
            raise ConformanceError(f"{case}, row {row}: drew {token}; want a token of probability above 0")
        off = max(lower[row, token].item() - uniforms[row].item(), uniforms[row].item() - upper[row, token].item(), 0.0)
        last_possible = not probabilities[row, token + 1 :].any()
        if last_possible and uniforms[row] > upper[row, token]:
            off = 0.0  # rounding left nothing above it to draw
        counters.compared(f"a float32 sum of {vocab_size}", off, allowed, f"{case}, row {row}")
        if off > allowed:
            raise ConformanceError(
                f"{case}, row {row}: drew {token}, whose cumulative probability runs from "
                f"{lower[row, token].item():.9g} to {upper[row, token].item():.9g}, for the uniform number "
                f"{uniforms[row].item():.9g}; "
                f"off by {off:.3g}, bound {allowed:.3g} (a float32 sum of {vocab_size})"
            )


@clause("DRAW-1")
def test_borders_belong_to_the_next_token(engine: UnderTest, counters: Counters) -> None:
    """Shares of a quarter sum exactly, so that the borders are exact."""
    row = torch.tensor([0.25, 0.25, 0.0, 0.5, 0.0])
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.4999, 0.5, 0.75, 0.9999], dtype=torch.float64)
    got = engine.op("draw")(row.expand(7, 5).contiguous(), uniforms)
    bit_exact(got, torch.tensor([0, 0, 1, 1, 3, 3, 3]), counters, "shares 1/4 1/4 0 1/2 0")


@clause("DRAW-1")
def test_a_sum_below_one_draws_nothing_impossible(engine: UnderTest, counters: Counters) -> None:
    """Thirds of float32 may sum to less than one: beyond the sum, the last possible token is drawn."""
    row = torch.tensor([[0.0, 0.333333, 0.333333, 0.333333, 0.0, 0.0]])
    got = engine.op("draw")(row, torch.tensor([0.99999999], dtype=torch.float64))
    bit_exact(got, torch.tensor([3]), counters, "a sum of 0.999999")
