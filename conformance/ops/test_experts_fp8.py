"""Checks of the row ``experts_fp8``, in the arithmetic of profile fp8 whatever the engine's: bf16 in and out."""

from typing import Any

import pytest
import torch

from reference.quantization import FORMATS

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact, legal
from ..profiles import PROFILES
from ..strategies import Case, for_cases
from ..tolerance import Envelope, Residual, bit_exact
from ..under_test import UnderTest
from .test_experts import PUBLISHED, contributions, dense_inputs

# T, D, F, E, A; widths with several groups of 128 and short last ones
SHAPES = [(9, 264, 136, 7, 3), (1, 256, 130, 5, 4), (33, 130, 128, 9, 2), (17, 264, 264, 6, 2), (0, 128, 40, 4, 2)]
ISOLATED = (9, 136, 130, 7, 3)  # judged once for each of its experts
FAMILIES = ["randn", "saturating", "one_loud_channel", "mixed_rows", "zeros"]
PROFILE = PROFILES["fp8"]
LOUD = 64  # times another block: bfloat16 sums then err by an eighth
Inputs = tuple[Any, ...]


def inputs(case: Case) -> Inputs:
    x, ids, weights, *stacked = dense_inputs(PROFILE, case)
    return x, ids, weights, *(FORMATS["fp8"].quantize(weight) for weight in stacked)


def envelope(args: Inputs) -> Envelope:
    """Around the oracle on rounded activations; its ideal is the one whose activations are not rounded."""
    legal_results = legal("experts_fp8", PROFILE, *args)
    return Envelope(legal_results, exact("experts_fp8", *args), ideal=exact("experts", *args))


@clause("MOE-5")
@pytest.mark.parametrize("limit", [0.0, 7.0])
@for_cases(FAMILIES, SHAPES)
def test_adds_up_experts_of_rounded_activations(
    engine: UnderTest, counters: Counters, case: Case, limit: float
) -> None:
    args = (*inputs(case), limit)
    bounds = envelope(args)
    assert bounds.ideal is not None
    counters.add("elements_that_rounding_changes", int((bounds.exact != bounds.ideal).sum()))
    bounds.check(engine.op("experts_fp8")(*args), counters, case)


@clause("MOE-5")
@for_cases(["randn", "one_loud_channel"], [(33, 130, 128, 9, 2), (65, 256, 136, 5, 2)])
def test_each_expert_counts_once(engine: UnderTest, counters: Counters, case: Case) -> None:
    """Rounding moves every element by percents, but no expert as a whole."""
    args = (*inputs(case), 7.0)
    bounds = envelope(args)
    parts = contributions("experts_fp8", *args)
    Residual(bounds.legal, bounds.exact, parts).check(engine.op("experts_fp8")(*args), counters, case)


@clause("MOE-5")
@pytest.mark.full
@pytest.mark.parametrize("what", PUBLISHED)
def test_experts_of_published_sizes(engine: UnderTest, counters: Counters, what: str) -> None:
    case = Case("randn", PUBLISHED[what], 0)
    args = (*inputs(case), 7.0)
    counters.add("experts_with_tokens", len(args[1].unique()))
    envelope(args).check(engine.op("experts_fp8")(*args), counters, case)


@clause("MOE-5")
def test_sums_of_blocks_are_added_in_float32(engine: UnderTest, counters: Counters) -> None:
    """Two loud blocks of inputs cancel exactly; between them lies a block that a narrow sum would lose."""
    case = Case("randn", (9, 384, 128, 7, 3), 0)
    x, ids, weights, gate, up, down = dense_inputs(PROFILE, case)
    x[:, 256:] = x[:, :128]
    for weight in (gate, up):
        weight[..., :128] *= LOUD
        weight[..., 256:] = -weight[..., :128]
    args = (x, ids, weights, *(FORMATS["fp8"].quantize(weight) for weight in (gate, up, down)), 0.0)
    counters.add("rows_with_blocks_that_cancel", len(x))
    envelope(args).check(engine.op("experts_fp8")(*args), counters, case)


@clause("MOE-5")
def test_a_token_does_not_depend_on_its_neighbours(engine: UnderTest, counters: Counters) -> None:
    """A row's scales are its own: beside rows of other sizes it stays within its envelope."""
    case = Case("mixed_rows", SHAPES[0], 1)
    x, ids, weights, *stacked = inputs(case)
    louder = x * torch.where(torch.arange(len(x)) % 2 == 0, 1, 256)[:, None]
    args = (louder.to(x.dtype), ids, weights, *stacked, 0.0)
    counters.add("rows_beside_louder_ones", len(x) // 2)
    envelope(args).check(engine.op("experts_fp8")(*args), counters, case)


@clause("MOE-4")
def test_an_experts_codes_and_scales_reach_only_its_own_tokens(engine: UnderTest, counters: Counters) -> None:
    case = Case("randn", ISOLATED, 0)
    x, ids, weights, *stacked = dense_inputs(PROFILE, case)
    quantize, run = FORMATS["fp8"].quantize, engine.op("experts_fp8")
    got = run(x, ids, weights, *map(quantize, stacked), 7.0)
    for expert in range(case.shape[3]):
        changed = [weight.clone() for weight in stacked]
        for weight in changed:
            weight[expert] = -3 * weight[expert] + 0.5
        after = run(x, ids, weights, *map(quantize, changed), 7.0)
        routed = (ids == expert).any(dim=-1)
        bit_exact(after[~routed], got[~routed], counters, f"tokens that are not routed to expert {expert}")
        counters.add("tokens_routed_to_a_changed_expert", int(routed.sum()))
