"""Checks of the row ``router``."""

import torch
from torch import Tensor

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact, legal
from ..strategies import ROUTER_FAMILIES, Case, for_cases, router_inputs, token_counts
from ..tolerance import DotBound, Envelope, bit_exact, gamma, near_tie, within
from ..under_test import UnderTest
from .test_experts import stored

SHAPES: list[tuple[int, ...]] = [
    (33, 96, 24, 8),
    (40, 128, 288, 8),
    (1, 64, 9, 2),
    (5, 40, 6, 1),
    (3, 4096, 288, 8),
]  # T, D, E, A
SHAPES += token_counts(20, 24, 7)
SCALING = 3.0
SIGMOID = 5  # roundings: exp (2), 1 + it, the quotient, adding the bias


def scores(x: Tensor, weight: Tensor) -> Tensor:
    """[T, E] float64, without the bias; written apart from the reference."""
    return 1 / (1 + (-(x.double() @ weight.double().T)).exp())


def logit_errors(engine: UnderTest, x: Tensor, weight: Tensor) -> Tensor:
    """[T, E]: how far a logit accumulated in the profile's dtype may be off; a sigmoid, at most a quarter of it."""
    return DotBound(x.shape[-1], engine.profile.accumulate).error(x.double().abs() @ weight.double().abs().T)


@clause("ROUT-1")
@for_cases(list(ROUTER_FAMILIES), SHAPES)
def test_chooses_the_top_experts_by_biased_score(engine: UnderTest, counters: Counters, case: Case) -> None:
    x, weight, bias = router_inputs(case, engine.profile)
    top_k = case.shape[3]
    ids, _ = engine.op("router")(x, weight, bias, top_k, SCALING)
    plain = scores(x, weight)
    errors = logit_errors(engine, x, weight) / 4 + gamma(SIGMOID, engine.profile.accumulate)
    biased = plain + bias.double()
    by_score, by_biased = (values.topk(top_k).indices.sort().values for values in (plain, biased))
    counters.add("tokens_whose_choice_the_bias_changes", int((by_score != by_biased).any(dim=-1).sum()))
    counters.add("all_negative_logits", int((plain.amax(dim=-1) < 0.5).sum()))
    counters.add("tokens", len(x))
    for token, chosen in enumerate(ids.tolist()):
        near_tie(set(chosen), biased[token], errors[token], top_k, counters, f"{case}, token {token}")


@clause("ROUT-2")
@for_cases(list(ROUTER_FAMILIES), SHAPES)
def test_weights_are_unbiased_scores_renormalised_and_scaled(engine: UnderTest, counters: Counters, case: Case) -> None:
    """Judged for the experts that the engine chose: one legal near-tie hides nothing."""
    x, weight, bias = router_inputs(case, engine.profile)
    top_k = case.shape[3]
    ids, got = engine.op("router")(x, weight, bias, top_k, SCALING)
    chosen = scores(x, weight).gather(-1, ids)
    want = chosen / (chosen.sum(dim=-1, keepdim=True) + 1e-20) * SCALING
    relative = (1 - chosen) * logit_errors(engine, x, weight).gather(-1, ids).expm1() + gamma(SIGMOID, torch.float32)
    bound = want * (relative + relative.amax(dim=-1, keepdim=True) + gamma(top_k + 3, torch.float32))
    counters.add("weights_of_biased_experts", int((bias[ids] != 0).sum()))
    within(got, want, bound, "both errors of a quotient of sigmoids", counters, case)


@clause("ROUT-2")
@for_cases(list(ROUTER_FAMILIES), SHAPES)
def test_weights_of_a_token_sum_to_the_scaling_factor(engine: UnderTest, counters: Counters, case: Case) -> None:
    x, weight, bias = router_inputs(case, engine.profile)
    for scaling in (SCALING, 1.0):
        _, got = engine.op("router")(x, weight, bias, case.shape[3], scaling)
        total = got.double().sum(dim=-1)
        bound = torch.full_like(total, scaling * gamma(2 * case.shape[3] + 2, torch.float32))
        within(
            total, torch.full_like(total, scaling), bound, "roundings of a quotient", counters, f"{case}, x {scaling}"
        )


@clause("ROUT-2")
def test_a_large_bias_chooses_but_does_not_weigh(engine: UnderTest, counters: Counters) -> None:
    """Closed form: logits 0 everywhere, so that each of the chosen weighs 3 / 2, whatever the bias that chose it."""
    x = torch.zeros(1, 16, dtype=engine.profile.activations)
    weight = torch.ones(5, 16, dtype=engine.profile.weights)
    ids, got = engine.op("router")(x, weight, torch.tensor([0.0, 9.0, -9.0, 0.5, 0.0]), 2, SCALING)
    bit_exact(ids.sort().values, torch.tensor([[1, 3]]), counters, "biases 0 9 -9 0.5 0")
    bit_exact(got, torch.tensor([[1.5, 1.5]]), counters, "weights of equal scores")


@clause("ROUT-3")
@for_cases(["randn", "one_loud_channel", "all_negative", "biased"], SHAPES)
def test_permuting_the_experts_permutes_the_choice(engine: UnderTest, counters: Counters, case: Case) -> None:
    x, weight, bias = router_inputs(case, engine.profile)
    top_k = case.shape[3]
    order = torch.randperm(len(weight), generator=case.random("order"))
    ids, _ = engine.op("router")(x, weight[order], bias[order], top_k, SCALING)
    biased = scores(x, weight) + bias.double()
    errors = logit_errors(engine, x, weight) / 4 + gamma(SIGMOID, engine.profile.accumulate)
    counters.add("experts_that_moved", int((order != torch.arange(len(order))).sum()))
    for token, chosen in enumerate(order[ids].tolist()):
        near_tie(set(chosen), biased[token], errors[token], top_k, counters, f"{case}, token {token}, experts permuted")


@clause("ROUT-3")
@for_cases(["randn", "one_loud_channel", "biased"], [(17, 40, 12, 3), (1, 64, 9, 2)])
def test_permuting_experts_and_their_weights_leaves_what_they_add_up_to(
    engine: UnderTest, counters: Counters, case: Case
) -> None:
    """Router and experts together: ids are places among the weights, and no place is special."""
    x, weight, bias = router_inputs(case, engine.profile)
    _, hidden_size, num_experts, top_k = case.shape
    dtype, width = engine.profile.weights, 24
    sizes = {"gate": (width, hidden_size), "up": (width, hidden_size), "down": (hidden_size, width)}
    stacked = [
        torch.stack([case.weights(*size, dtype=dtype, what=f"{name}{expert}") for expert in range(num_experts)])
        for name, size in sizes.items()
    ]
    order = torch.randperm(num_experts, generator=case.random("order"))
    ids, weights = engine.op("router")(x, weight[order], bias[order], top_k, SCALING)
    moved = [stored(one[order], engine.profile) for one in stacked]
    got = engine.op("experts")(x, ids, weights, *moved, 7.0)
    args = (x, order[ids], weights, *(stored(one, engine.profile) for one in stacked), 7.0)
    counters.add("experts_that_moved", int((order != torch.arange(num_experts)).sum()))
    Envelope(legal("experts", engine.profile, *args), exact("experts", *args)).check(got, counters, case)
