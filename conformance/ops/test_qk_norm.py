"""Checks of the row ``qk_norm``."""

import torch

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact
from ..strategies import Case, for_cases, token_counts
from ..tolerance import bit_exact
from ..under_test import UnderTest
from .test_rms_norm import EPS, tolerance

SHAPES = [(5, 12, 3, 128), (1, 8, 2, 32), (0, 6, 2, 16), *token_counts(6, 2, 16)]  # T, N, K, H


def inputs(engine: UnderTest, case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    num_tokens, num_heads, num_kv_heads, head_dim = case.shape
    activations, weights = engine.profile.activations, engine.profile.weights
    return (
        case.activations(num_tokens, num_heads, head_dim, dtype=activations, what="q"),
        case.activations(num_tokens, num_kv_heads, head_dim, dtype=activations, what="k"),
        case.norm_weight(head_dim, weights, "q_norm"),
        case.norm_weight(head_dim, weights, "k_norm"),
    )


@clause("QKN-1")
@for_cases(["randn", "mixed_rows", "tiny_scale", "huge_scale", "one_loud_channel", "zeros"], SHAPES)
def test_normalises_every_head_with_the_weight_of_its_kind(engine: UnderTest, counters: Counters, case: Case) -> None:
    q, k, q_weight, k_weight = inputs(engine, case)
    got_q, got_k = engine.op("qk_norm")(q, k, q_weight, k_weight, EPS)
    want_q, want_k = exact("qk_norm", q, k, q_weight, k_weight, EPS)
    counters.add("heads_of_different_size", int((q.float().norm(dim=-1).std(dim=-1) > 0).sum()) if len(q) else 0)
    tolerance(case.shape[-1]).check(got_q, want_q, counters, f"{case}, q")
    tolerance(case.shape[-1]).check(got_k, want_k, counters, f"{case}, k")


@clause("QKN-1")
def test_a_louder_head_leaves_the_other_heads_alone(engine: UnderTest, counters: Counters) -> None:
    q, k, q_weight, k_weight = inputs(engine, Case("randn", SHAPES[0], 0))
    louder_q, louder_k = q.clone(), k.clone()
    louder_q[:, 5] *= 1000
    louder_k[:, 1] *= 1000
    got = engine.op("qk_norm")(q, k, q_weight, k_weight, EPS)
    beside = engine.op("qk_norm")(louder_q, louder_k, q_weight, k_weight, EPS)
    bit_exact(beside[0][:, 6:], got[0][:, 6:], counters, "q heads after one that became 1000 times as large")
    bit_exact(beside[1][:, ::2], got[1][:, ::2], counters, "k heads beside one that became 1000 times as large")


@clause("QKN-1")
def test_every_head_of_unit_weight_has_unit_mean_square(engine: UnderTest, counters: Counters) -> None:
    """Closed form: heads of one magnitude a become a / sqrt(a^2 + eps), whatever a is."""
    sizes = torch.tensor([0.25, 1.0, 3.0, 64.0]).to(engine.profile.activations)
    q = sizes[None, :, None].repeat(2, 1, 16)
    zero = torch.zeros(16, dtype=engine.profile.weights)
    got_q, got_k = engine.op("qk_norm")(q, q[:, :2].contiguous(), zero, zero, EPS)
    want = q.double() / (q.double().square() + EPS).sqrt()
    tolerance(16).check(got_q, want, counters, "q of constant heads")
    tolerance(16).check(got_k, want[:, :2], counters, "k of constant heads")
