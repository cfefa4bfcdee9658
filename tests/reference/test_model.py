"""The whole model: caches, chunks and rings agree with recomputation, and the MTP layers see what they should."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference.cache import MAX_ROLLBACK, KVCache
from reference.checkpoint import LoadedWeights
from reference.config import LayerConfig, ModelConfig
from reference.model import Model
from reference.operators import Operators
from reference.ops.attention import attention
from reference.synthetic import random_tensors

from .geometry import TINY

CONFIG = ModelConfig.from_dict(TINY)
WINDOW = 7
MODEL = Model(
    CONFIG,
    LoadedWeights.from_flat(CONFIG, {n: t.double() for n, t in random_tensors(CONFIG, seed=4).items()}),
    torch.float64,
)
TOKENS = torch.randint(CONFIG.vocab_size, (60,), generator=torch.Generator().manual_seed(5))
WHOLE = MODEL.logits(MODEL.hidden(TOKENS))
# float64 against float64 in another order: far above rounding, far below what any wrong key would change
ROUNDING = 1e3 * torch.finfo(torch.float64).eps * float(WHOLE.abs().max())


def assert_same(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= ROUNDING


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_any_chunking_gives_the_logits_of_one_pass(cuts: list[int]) -> None:
    cache, outputs, start = MODEL.new_cache(), [], 0
    for size in [*cuts, len(TOKENS)]:
        chunk = TOKENS[start : start + size]
        if len(chunk):
            outputs.append(MODEL.logits(MODEL.hidden(chunk, cache)))
        start += size
    assert_same(torch.cat(outputs), WHOLE)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(length=st.integers(1, 50), wrong=st.integers(1, MAX_ROLLBACK))
def test_what_is_taken_back_leaves_no_trace(length: int, wrong: int) -> None:
    cache = MODEL.new_cache()
    MODEL.hidden(TOKENS[:length], cache)
    MODEL.hidden(TOKENS.flip(0)[:wrong], cache)
    cache.truncate(length)
    assert_same(MODEL.logits(MODEL.hidden(TOKENS[length:], cache)), WHOLE[length:])


def test_a_rollback_that_the_rings_cannot_serve_is_refused() -> None:
    cache = MODEL.new_cache()
    MODEL.hidden(TOKENS[:40], cache)
    with pytest.raises(ValueError, match=r"truncate: 5 positions would be taken back.*; want at most 4"):
        cache.truncate(40 - MAX_ROLLBACK - 1)
    cache.truncate(40 - MAX_ROLLBACK)
    with pytest.raises(ValueError, match=r"truncate: 5 positions"):
        cache.truncate(40 - MAX_ROLLBACK - 1)  # also in two steps
    with pytest.raises(ValueError, match=r"truncate: length is 41; want 0 to 36"):
        cache.truncate(41)
    assert_same(MODEL.logits(MODEL.hidden(TOKENS[36:], cache)), WHOLE[36:])


def test_a_short_context_can_be_taken_back_whole() -> None:
    cache = MODEL.new_cache()
    MODEL.hidden(TOKENS[:9], cache)
    cache.truncate(0)
    assert_same(MODEL.logits(MODEL.hidden(TOKENS, cache)), WHOLE)


def test_rings_hold_one_window_and_the_rollback_however_long_the_context() -> None:
    cache = MODEL.new_cache()
    MODEL.hidden(TOKENS, cache)
    sliding = [cache.layers[layer.index] for layer in CONFIG.layers if layer.sliding_window]
    full = [cache.layers[layer.index] for layer in CONFIG.layers if not layer.sliding_window]
    assert {len(ring.positions_S) for ring in sliding} == {WINDOW - 1 + MAX_ROLLBACK}
    assert {len(whole.positions_S) for whole in full} == {len(TOKENS)}
    slot_bytes = 2 * 2 * 16 * 8  # keys and values, 2 heads of 16, float64
    assert cache.nbytes() == slot_bytes * (len(full) * len(TOKENS) + len(sliding) * (WINDOW - 1 + MAX_ROLLBACK))


def test_a_ring_without_room_for_the_rollback_would_lose_keys() -> None:
    """What MAX_ROLLBACK is for: shrink the ring to the window and the same rollback changes the logits."""
    cache = MODEL.new_cache()
    for layer in CONFIG.layers:
        if layer.sliding_window is not None:
            ring = cache.layers[layer.index]
            ring.capacity = WINDOW
            ring.k_SKH, ring.v_SKH = ring.k_SKH[:WINDOW], ring.v_SKH[:WINDOW]
            ring.positions_S = ring.positions_S[:WINDOW]
    MODEL.hidden(TOKENS[:40], cache)
    MODEL.hidden(TOKENS[:3], cache)
    for layer_cache in cache.layers.values():
        layer_cache.truncate(40)
    cache.length = 40
    got = MODEL.logits(MODEL.hidden(TOKENS[40:], cache))
    assert float((got - WHOLE[40:]).abs().max()) > 1e6 * ROUNDING


def test_later_tokens_do_not_change_earlier_logits() -> None:
    changed = TOKENS.clone()
    changed[30:] = (changed[30:] + 1) % CONFIG.vocab_size
    got = MODEL.logits(MODEL.hidden(changed))
    assert_same(got[:30], WHOLE[:30])  # experts see other row counts, so sums may round otherwise
    assert float((got[30:] - WHOLE[30:]).abs().amax(dim=-1).min()) > 1e6 * ROUNDING


def test_a_batch_gives_each_row_its_own_logits() -> None:
    rows = torch.stack((TOKENS, TOKENS.flip(0)))
    both = MODEL.logits(MODEL.hidden(rows))
    assert_same(both[0], WHOLE)
    assert_same(both[1], MODEL.logits(MODEL.hidden(rows[1])))


def test_mtp_depths_give_the_same_rows_with_and_without_their_caches() -> None:
    hidden = MODEL.hidden(TOKENS)
    for depth in range(3):
        tokens = TOKENS[1 + depth :]
        rows = hidden[: len(tokens)]
        whole = MODEL.mtp_hidden(depth, rows, tokens)
        cache = MODEL.new_mtp_cache(depth)
        steps = [MODEL.mtp_hidden(depth, rows[i : i + 9], tokens[i : i + 9], cache) for i in range(0, len(tokens), 9)]
        assert_same(torch.cat(steps), whole)
        hidden = whole


def test_the_layers_attend_as_their_config_says() -> None:
    seen: list[tuple[int, int, int | None]] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor, k_pos: Tensor, window: int | None) -> Tensor:
        seen.append((q.shape[-2], k.shape[-2], window))
        return attention(q, k, v, q_pos, k_pos, window)

    model = Model(CONFIG, MODEL.weights, torch.float64, ops=Operators(attention=spy))
    hidden = model.hidden(TOKENS[:10])
    model.mtp_hidden(0, hidden, TOKENS[:10])
    full, sliding = (4, 2, None), (6, 2, WINDOW)
    assert seen == [full, sliding, sliding, sliding, full, sliding]


def test_clamps_and_routing_reach_the_layers_that_their_lists_name() -> None:
    limits: list[float] = []
    shared: list[float] = []

    def experts_spy(x: Tensor, ids: Tensor, weights: Tensor, *rest: object) -> Tensor:
        limits.append(rest[-1])  # type: ignore[arg-type]
        return torch.zeros_like(x)

    def mlp_spy(x: Tensor, *rest: object) -> Tensor:
        shared.append(rest[-1])  # type: ignore[arg-type]
        return torch.zeros_like(x)

    Model(CONFIG, MODEL.weights, torch.float64, ops=Operators(experts=experts_spy, mlp=mlp_spy)).hidden(TOKENS[:3])
    assert limits == [0.0, 0.0, 0.5, 0.5]
    assert shared == [0.0, 0.0, 0.0, 0.0, 0.7]


def test_token_ids_and_contexts_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"token ids: range from 0 to 72; want 0 to 71"):
        MODEL.hidden(torch.tensor([0, 72]))
    with pytest.raises(ValueError, match=r"context: would reach 129 tokens; want at most .* 128"):
        MODEL.hidden(torch.zeros(129, dtype=torch.int64))


def test_a_window_of_one_key_more_changes_the_logits() -> None:
    wider = Model(CONFIG.with_window(WINDOW + 1), MODEL.weights, torch.float64)
    difference = (wider.logits(wider.hidden(TOKENS)) - WHOLE).abs().amax(dim=-1)
    assert float(difference[:WINDOW].max()) <= ROUNDING  # nobody has so many keys yet
    assert float(difference[WINDOW:].min()) > 1e3 * ROUNDING


def test_an_empty_slot_is_never_read() -> None:
    layer = CONFIG.layers[1]
    assert isinstance(layer, LayerConfig)
    cache = KVCache((replace(layer, index=0),), torch.float64, torch.device("cpu"))
    ring = cache.layers[0]
    ring.k_SKH.fill_(torch.nan)
    ring.v_SKH.fill_(torch.nan)
    k = torch.randn(3, 2, 16, dtype=torch.float64)
    positions = torch.arange(3)
    keys, values, key_positions = ring.extend(k, k, positions)
    q = torch.randn(3, 6, 16, dtype=torch.float64)
    got = attention(q, keys, values, positions, key_positions, WINDOW)
    assert_same(got, attention(q, k, k, positions, positions, WINDOW))
