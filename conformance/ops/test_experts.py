"""Checks of the row ``experts``."""

from typing import Any

import pytest
import torch
from torch import Tensor

from reference.quantization import FORMATS, QuantizedWeight, dense

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact, legal
from ..profiles import Profile
from ..strategies import Case, for_cases
from ..tolerance import Envelope, Residual, bit_exact
from ..under_test import UnderTest

SHAPES = [(11, 48, 40, 7, 3), (1, 264, 32, 12, 8), (33, 24, 18, 9, 2), (0, 16, 8, 4, 2)]  # T, D, F, E, A
PUBLISHED = {"widths": (65, 4096, 1280, 3, 2), "number of experts": (9, 40, 24, 288, 8)}
FAMILIES = ["randn", "saturating", "one_loud_channel", "mixed_rows", "zeros"]
Weight = Tensor | QuantizedWeight
Inputs = tuple[Tensor, Tensor, Tensor, Weight, Weight, Weight]


def stored(weight: Tensor, profile: Profile) -> Weight:
    """A weight of the routed experts as the profile stores it."""
    return FORMATS[profile.expert_weights].quantize(weight) if profile.expert_weights else weight


def dense_inputs(
    profile: Profile, case: Case, used: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Before the weights are stored as the profile does; ``used``: how many experts tokens are routed to."""
    num_tokens, hidden_size, intermediate_size, num_experts, top_k = case.shape
    random, dtype = case.random("ids"), profile.weights
    ids = torch.stack([
        torch.randperm(used or num_experts, generator=random)[:top_k] for _ in range(num_tokens)
    ]) if num_tokens else torch.zeros(0, top_k, dtype=torch.int64)  # fmt: skip
    weights = torch.rand(num_tokens, top_k, generator=random) + 0.1
    sizes = {"gate": (intermediate_size, hidden_size), "up": (intermediate_size, hidden_size)}
    sizes["down"] = (hidden_size, intermediate_size)
    gate_weight, up_weight, down_weight = (
        torch.stack([case.weights(*size, dtype=dtype, what=f"{name}{e * e}") for e in range(num_experts)])
        for name, size in sizes.items()
    )
    x = case.activations(num_tokens, hidden_size, dtype=profile.activations)
    return x, ids, weights / weights.sum(dim=-1, keepdim=True) * 3, gate_weight, up_weight, down_weight


def inputs(engine: UnderTest, case: Case, used: int | None = None) -> Inputs:
    x, ids, weights, *stacked = dense_inputs(engine.profile, case, used)
    gate_weight, up_weight, down_weight = (stored(weight, engine.profile) for weight in stacked)
    return x, ids, weights, gate_weight, up_weight, down_weight


def contributions(op: str, x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> dict[str, Tensor]:
    """What each expert adds to the result [T, D], float64."""
    parts = {}
    for expert in ids.unique().tolist():
        alone = torch.where(ids == expert, weights, 0.0)
        parts[f"expert {expert}"] = exact(op, x, ids, alone, *rest)
    return parts


def loop(
    x: Tensor, ids: Tensor, weights: Tensor, gate_weight: Weight, up_weight: Weight, down_weight: Weight, limit: float
) -> Tensor:
    """The same in float64, one token and slot at a time: written apart from the reference."""
    gate_weight, up_weight, down_weight = (dense(w, torch.float64) for w in (gate_weight, up_weight, down_weight))
    y = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(len(x)):
        for expert, weight in zip(ids[token].tolist(), weights[token].tolist(), strict=True):
            gate = gate_weight[expert] @ x[token].double()
            up = up_weight[expert] @ x[token].double()
            activated = gate / (1 + (-gate).exp())
            if limit:
                activated, up = activated.clamp(max=limit), up.clamp(-limit, limit)
            y[token] += weight * (down_weight[expert] @ (activated * up))
    return y


@clause("MOE-1")
@pytest.mark.parametrize("limit", [0.0, 7.0])
@for_cases(FAMILIES, SHAPES)
def test_adds_up_the_weighted_chosen_experts(engine: UnderTest, counters: Counters, case: Case, limit: float) -> None:
    args = (*inputs(engine, case), limit)
    got = engine.op("experts")(*args)
    ups = torch.einsum("td,efd->tef", args[0].double(), dense(args[4], torch.float64))
    counters.add("ups_beyond_7", int((ups.abs() > 7).sum()))
    Envelope(legal("experts", engine.profile, *args), loop(*args)).check(got, counters, case)


@clause("MOE-1")
@for_cases(["randn", "one_loud_channel"], [(33, 24, 18, 9, 2), (65, 48, 40, 5, 2)])
def test_each_expert_counts_once(engine: UnderTest, counters: Counters, case: Case) -> None:
    """Each element may be off by its rounding, but no expert as a whole: small systematic faults show here."""
    args = (*inputs(engine, case), 7.0)
    parts = contributions("experts", *args)
    got = engine.op("experts")(*args)
    Residual(legal("experts", engine.profile, *args), loop(*args), parts).check(got, counters, case)


@clause("MOE-1")
@pytest.mark.full
@pytest.mark.parametrize("what", PUBLISHED)
def test_experts_of_published_sizes(engine: UnderTest, counters: Counters, what: str) -> None:
    case = Case("randn", PUBLISHED[what], 0)
    args = (*inputs(engine, case), 7.0)
    counters.add("experts_with_tokens", len(args[1].unique()))
    Envelope(legal("experts", engine.profile, *args), exact("experts", *args)).check(
        engine.op("experts")(*args), counters, case
    )


@clause("MOE-1")
def test_experts_without_tokens_and_experts_with_all_of_them(engine: UnderTest, counters: Counters) -> None:
    """Every token on the same three of seven experts."""
    case = Case("randn", SHAPES[0], 0)
    args = (*inputs(engine, case, used=3), 0.0)
    counters.add("experts_without_tokens", case.shape[3] - len(args[1].unique()))
    Envelope(legal("experts", engine.profile, *args), loop(*args)).check(engine.op("experts")(*args), counters, case)


@clause("MOE-2")
@for_cases(["randn", "mixed_rows", "one_loud_channel"], SHAPES[:3])
def test_permuting_the_tokens_permutes_the_result(engine: UnderTest, counters: Counters, case: Case) -> None:
    x, ids, weights, *stacked = inputs(engine, case)
    order = torch.randperm(len(x), generator=case.random("order"))
    args = (x[order], ids[order], weights[order], *stacked, 7.0)
    want = exact("experts", x, ids, weights, *stacked, 7.0)[order]
    Envelope(legal("experts", engine.profile, *args), want).check(engine.op("experts")(*args), counters, case)


@clause("MOE-2")
@for_cases(["randn", "mixed_rows"], SHAPES[:3])
def test_the_order_of_a_tokens_experts_is_free(engine: UnderTest, counters: Counters, case: Case) -> None:
    x, ids, weights, *stacked = inputs(engine, case)
    args = (x, ids.flip(-1), weights.flip(-1), *stacked, 7.0)
    want = exact("experts", x, ids, weights, *stacked, 7.0)
    Envelope(legal("experts", engine.profile, *args), want).check(engine.op("experts")(*args), counters, case)


@clause("MOE-3")
@for_cases(["randn", "saturating", "mixed_rows"], SHAPES[:3])
def test_doubling_the_weights_doubles_the_result(engine: UnderTest, counters: Counters, case: Case) -> None:
    """A factor of two is exact in every binary format."""
    x, ids, weights, *stacked = inputs(engine, case)
    run = engine.op("experts")
    bit_exact(run(x, ids, 2 * weights, *stacked, 7.0), 2 * run(x, ids, weights, *stacked, 7.0), counters, case)


@clause("MOE-3")
def test_a_weight_of_zero_removes_its_expert(engine: UnderTest, counters: Counters) -> None:
    case = Case("randn", SHAPES[0], 0)
    x, ids, weights, *stacked = inputs(engine, case)
    weights[:, 1] = 0
    run = engine.op("experts")
    other = ids.clone()
    other[:, 1] = torch.tensor([min(set(range(7)) - set(row)) for row in ids.tolist()])
    legal_results = legal("experts", engine.profile, x, other, weights, *stacked, 0.0)
    got = run(x, other, weights, *stacked, 0.0)
    want = exact("experts", x, ids, weights, *stacked, 0.0)
    Envelope(legal_results, want).check(got, counters, "the expert of weight 0 replaced by another")


@clause("MOE-4")
def test_an_experts_weights_reach_only_its_own_tokens(engine: UnderTest, counters: Counters) -> None:
    case = Case("randn", SHAPES[0], 0)
    x, ids, weights, *stacked = dense_inputs(engine.profile, case)
    profile, run = engine.profile, engine.op("experts")
    got = run(x, ids, weights, *(stored(weight, profile) for weight in stacked), 7.0)
    for expert in range(case.shape[3]):
        changed = [weight.clone() for weight in stacked]
        for weight in changed:
            weight[expert] = -3 * weight[expert] + 0.5
        after = run(x, ids, weights, *(stored(weight, profile) for weight in changed), 7.0)
        routed = (ids == expert).any(dim=-1)
        bit_exact(after[~routed], got[~routed], counters, f"tokens that are not routed to expert {expert}")
        counters.add("tokens_routed_to_a_changed_expert", int(routed.sum()))
        unmoved = (after[routed] == got[routed]).all(dim=-1)
        bit_exact(unmoved, torch.zeros_like(unmoved), counters, f"whether tokens of expert {expert} stayed the same")
