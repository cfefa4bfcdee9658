"""Checks of the row ``attention``."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact
from ..strategies import LAST_POSITION, TOKEN_COUNTS, Case, for_cases
from ..tolerance import bit_exact, gamma, ulp, within
from ..under_test import UnderTest

SHAPES = [
    (5, 17, 6, 2, 32),
    (1, 40, 12, 1, 16),
    (9, 33, 8, 4, 24),
    (3, 7, 96, 8, 128),
    (2, 9, 64, 8, 128),
]  # T, S, N, K, H
SHAPES += [(count, count + 5, 6, 2, 16) for count in TOKEN_COUNTS]
WINDOW = 512
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs(engine: UnderTest, case: Case, start: int = 0) -> Inputs:
    """The last T of S positions are queries; ``start`` is the position of the first key."""
    num_queries, num_keys, num_heads, num_kv_heads, head_dim = case.shape
    dtype = engine.profile.activations
    positions = torch.arange(start, start + num_keys)
    return (
        case.activations(num_queries, num_heads, head_dim, dtype=dtype, what="q"),
        case.activations(num_keys, num_kv_heads, head_dim, dtype=dtype, what="k"),
        case.activations(num_keys, num_kv_heads, head_dim, dtype=dtype, what="v"),
        positions[num_keys - num_queries :],
        positions,
    )


def loop(q: Tensor, k: Tensor, v: Tensor, query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """The same in float64, one query and head at a time: written apart from the reference."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    y = torch.zeros_like(q)
    for i, at in enumerate(query_positions.tolist()):
        low = 0 if window is None else max(at - window + 1, 0)
        seen = [j for j, position in enumerate(key_positions.tolist()) if low <= position <= at]
        for head in range(q.shape[1]):
            scores = k[seen, head // group] @ q[i, head] / math.sqrt(q.shape[2])
            powers = (scores - scores.max()).exp()
            y[i, head] = (powers / powers.sum()) @ v[seen, head // group]
    return y


def check(
    engine: UnderTest, got: Tensor, args: tuple[Any, ...], want: Tensor, counters: Counters, where: object
) -> None:
    """Compare with the forward error bound of softmax attention.

    A score is off by gamma_H sum|q||k| / sqrt(H), its exponential by twice the largest such error in the row (its own
    and the maximum's) and a few roundings; both sums over S round; a narrow profile may round the weights, too.
    """
    q, k, v, query_positions, key_positions, window = args
    accumulate = engine.profile.accumulate
    head_dim, num_keys, group = q.shape[-1], k.shape[0], q.shape[1] // k.shape[1]
    sizes = torch.einsum("tnh,snh->tns", q.double().abs(), k.double().abs().repeat_interleave(group, dim=1))
    distance = query_positions[:, None] - key_positions
    seen = (distance >= 0) & (distance < (window or math.inf))
    largest = (sizes * seen[:, None, :]).amax(dim=-1) / math.sqrt(head_dim)
    relative = (2 * gamma(head_dim + 4, accumulate) * largest).expm1() + gamma(2 * num_keys + 6, accumulate)
    if engine.profile.is_narrow:
        relative = relative + torch.finfo(engine.profile.activations).eps
    mixed = exact("attention", q, k, v.abs(), *args[3:])
    error = relative[..., None] * mixed
    bound = error + ulp(want.abs() + error, got.dtype) / 2
    within(got, want, bound, "forward bound of softmax attention + 1/2 ulp", counters, where)


@clause("ATT-4")
@pytest.mark.parametrize("window", [None, 6], ids=["full", "window 6"])
@for_cases(["randn", "one_loud_channel", "mixed_rows", "tiny_scale", "saturating", "zeros"], SHAPES)
def test_mixes_values_by_the_softmax_of_scaled_scores(
    engine: UnderTest, counters: Counters, case: Case, window: int | None
) -> None:
    args = (*inputs(engine, case), window)
    counters.add("heads_that_share_a_key_value_head", case.shape[2] > case.shape[3])
    check(engine, engine.op("attention")(*args), args, loop(*args), counters, case)


@clause("ATT-4")
def test_query_head_n_reads_key_value_head_n_over_g(engine: UnderTest, counters: Counters) -> None:
    """Each key-value head holds its own number, so whatever the weights, a head's output is that number."""
    case = Case("randn", (2, 5, 12, 3, 8), 0)
    q, k, v, query_positions, key_positions = inputs(engine, case)
    args = (
        q,
        k,
        (torch.arange(3.0)[None, :, None] * 16).expand_as(v).to(v.dtype),
        query_positions,
        key_positions,
        None,
    )
    want = torch.arange(12).div(4, rounding_mode="floor")[None, :, None].double() * 16
    check(engine, engine.op("attention")(*args), args, want.expand(q.shape), counters, "12 heads on 3")


@clause("ATT-4")
def test_scores_are_divided_by_the_root_of_head_dim(engine: UnderTest, counters: Counters) -> None:
    """Two keys whose scores differ by d: the weights are the sigmoids of d / sqrt(H) and its negative."""
    head_dim, product = 64, 12.0
    dtype = engine.profile.activations
    q, k, v = torch.zeros(1, 2, head_dim), torch.zeros(2, 1, head_dim), torch.zeros(2, 1, head_dim)
    q[:, :, 0], k[0, 0, 0], v[0] = 4, product / 4, 1
    args = (*(t.to(dtype) for t in (q, k, v)), torch.tensor([1]), torch.tensor([0, 1]), None)
    want = torch.full((1, 2, head_dim), 1 / (1 + math.exp(-product / math.sqrt(head_dim))), dtype=torch.float64)
    check(engine, engine.op("attention")(*args), args, want, counters, "scores 12 and 0")


@clause("ATT-4")
def test_a_key_that_dominates_is_retrieved(engine: UnderTest, counters: Counters) -> None:
    """Logits of hundreds: softmax without its maximum taken away would overflow."""
    case = Case("randn", (1, 33, 6, 2, 32), 0)
    q, k, v, query_positions, key_positions = inputs(engine, case)
    q, k = torch.zeros_like(q), torch.zeros_like(k)
    q[..., 3], k[20, :, 3] = 96, 64
    got = engine.op("attention")(q, k, v, query_positions, key_positions, None)
    bit_exact(got[0], v[20].repeat_interleave(3, dim=0), counters, "score 1086 against 0")


@clause("ATT-1")
@for_cases(["randn", "one_loud_channel", "mixed_rows"], SHAPES)
def test_later_keys_change_nothing(engine: UnderTest, counters: Counters, case: Case) -> None:
    q, k, v, _, key_positions = inputs(engine, case)
    num_queries, num_keys = case.shape[:2]
    first_later = num_keys - 3
    query_positions = torch.arange(first_later - num_queries, first_later)
    attend = engine.op("attention")
    got = attend(q, k, v, query_positions, key_positions, None)
    louder_k, louder_v = k.clone(), v.clone()
    louder_k[first_later:] = 30
    louder_v[first_later:] = -1000
    later = attend(q, louder_k, louder_v, query_positions, key_positions, None)
    bit_exact(later, got, counters, f"{case}, keys after the last query changed")
    seen = attend(q, louder_k, louder_v, query_positions + 1, key_positions, None)
    counters.add("the_same_change_one_position_earlier_shows", int((seen != got).sum()))


@clause("ATT-1")
@pytest.mark.parametrize("window", [None, 6], ids=["full", "window 6"])
@pytest.mark.parametrize("filling", [1e30, -1e30])
def test_keys_out_of_sight_may_hold_anything_finite(
    engine: UnderTest, counters: Counters, window: int | None, filling: float
) -> None:
    """Later positions, and those that a window has left: a mask that is added after the exponential shows."""
    case = Case("randn", (4, 21, 6, 2, 16), 0)
    q, k, v, _, key_positions = inputs(engine, case)
    query_positions = torch.tensor([12, 13, 14, 15])
    hidden = key_positions > 15
    if window is not None:
        hidden |= key_positions <= 12 - window
    filled_k, filled_v = k.clone(), v.clone()
    filled_k[hidden], filled_v[hidden] = 1e4, filling
    attend = engine.op("attention")
    got = attend(q, k, v, query_positions, key_positions, window)
    filled = attend(q, filled_k, filled_v, query_positions, key_positions, window)
    counters.add("keys_out_of_sight", int(hidden.sum()))
    bit_exact(filled, got, counters, f"keys out of sight filled with {filling}")


@clause("ATT-2")
@pytest.mark.parametrize("at", [WINDOW - 1, WINDOW, WINDOW + 100, LAST_POSITION])
@pytest.mark.parametrize("window", [WINDOW, 31])
def test_exactly_the_last_window_positions_are_seen(
    engine: UnderTest, counters: Counters, window: int, at: int
) -> None:
    """One loud value at each distance around the window: it shows up to window - 1 and not from window on."""
    case = Case("randn", (1, window + 3, 4, 2, 8), at)
    q, k, v, _, _ = inputs(engine, case)
    key_positions = torch.arange(at - window - 2, at + 1)
    kept = key_positions >= 0
    k, v, key_positions = k[kept], v[kept], key_positions[kept]
    query_position = torch.tensor([at])
    attend = engine.op("attention")
    got = attend(q, k, v, query_position, key_positions, window)
    for distance in (0, 1, window - 2, window - 1, window, window + 1, window + 2):
        slot = (key_positions == at - distance).nonzero().flatten()
        if len(slot) == 0:
            continue
        louder = v.clone()
        louder[slot] += 1000
        changed = attend(q, k, louder, query_position, key_positions, window)
        if distance >= window:
            bit_exact(changed, got, counters, f"query at {at}, window {window}, value at distance {distance}")
        else:
            moved = (changed.double() - got.double()).abs().amax(dim=-1)
            expected = (exact("attention", q, k, louder, query_position, key_positions, window) - got.double()).abs()
            counters.add("distances_inside", 1)
            bit_exact(moved > expected.amax(dim=-1) / 2, torch.ones_like(moved, dtype=torch.bool), counters,
                      f"query at {at}, window {window}: the value at distance {distance} must show; it")  # fmt: skip


@clause("ATT-3")
@pytest.mark.parametrize("at", [WINDOW, 4_097, LAST_POSITION])
def test_without_a_window_the_first_position_is_seen(engine: UnderTest, counters: Counters, at: int) -> None:
    """A sparse cache, so that the distance is long and the check is not: position 0 holds the loud key."""
    case = Case("randn", (1, 5, 4, 2, 16), at)
    q, k, v, _, _ = inputs(engine, case)
    key_positions = torch.tensor([0, 1, at // 2, at - 1, at])
    k[0] = 0
    k[0, :, 0], q[..., 0] = 40, 8
    args = (q, k, v, torch.tensor([at]), key_positions, None)
    want = loop(*args)
    counters.add("without_position_0_it_would_differ", int((loop(*args[:-1], at) - want).abs().max() > 0.1))
    check(engine, engine.op("attention")(*args), args, want, counters, f"query at {at}")


@clause("ATT-5")
@pytest.mark.parametrize("window", [None, 6], ids=["full", "window 6"])
@for_cases(["randn", "mixed_rows"], SHAPES)
def test_the_order_of_cached_keys_is_free(
    engine: UnderTest, counters: Counters, case: Case, window: int | None
) -> None:
    q, k, v, query_positions, key_positions = inputs(engine, case, start=1000)
    order = torch.randperm(len(key_positions), generator=case.random("order"))
    args = (q, k[order], v[order], query_positions, key_positions[order], window)
    counters.add("keys_out_of_order", int((order.diff() < 0).sum()))
    want = loop(q, k, v, query_positions, key_positions, window)
    check(engine, engine.op("attention")(*args), args, want, counters, case)


@clause("ATT-5")
@pytest.mark.parametrize("filling", [math.nan, math.inf, 1e30])
def test_empty_slots_are_never_read(engine: UnderTest, counters: Counters, filling: float) -> None:
    case = Case("randn", (3, 11, 6, 2, 16), 0)
    q, k, v, query_positions, key_positions = inputs(engine, case)
    key_positions[[1, 4, 7]] = -1
    k[[1, 4, 7]], v[[1, 4, 7]] = filling, filling
    got = engine.op("attention")(q, k, v, query_positions, key_positions, None)
    used = key_positions >= 0
    args = (q, k[used], v[used], query_positions, key_positions[used], None)
    check(engine, got, args, loop(*args), counters, f"empty slots filled with {filling}")
