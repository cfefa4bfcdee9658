"""Contexts that begin with another's tokens: pages shared, rings their own."""

import pytest
import torch
from fake_lanes import CONFIG, FULL, SLIDING

from optimized.kv_cache import CacheFullError, CacheSizes, Context, KVCache, cache_bytes

SIZES = CacheSizes(num_slots=3, num_pages=6, max_context=256)


@pytest.fixture
def cache() -> KVCache:
    return KVCache(CONFIG, torch.float32, torch.device("cpu"), SIZES, poisons=True)


def filled(cache: KVCache, length: int) -> Context:
    """A context whose every position in the ring holds its number."""
    context = cache.open()
    cache.reserve(context, length)
    for position in range(length):
        cache.k[SLIDING].flatten(0, 1)[cache.ring_rows(context, position, position + 1)] = float(position)
    context.length = context.longest = length
    return context


def test_a_fork_shares_whole_pages_and_copies_the_window(cache: KVCache) -> None:
    context = filled(cache, 140)
    fork = cache.fork(context, 128)
    assert (fork.length, fork.pages) == (128, context.pages[:2])
    assert cache.page_table[fork.slot].tolist()[:3] == [*context.pages[:2], -1]
    window = cache.ring_rows(fork, 128 - CONFIG.layers[SLIDING].sliding_window + 1, 128)
    assert cache.k[SLIDING].flatten(0, 1)[window, 0, 0].tolist() == list(map(float, range(113, 128)))
    cache.close(context)
    assert cache.num_free_pages == 4  # two are still the fork's
    assert not cache.k[SLIDING].flatten(0, 1)[window].isnan().any()
    cache.close(fork)
    assert (cache.num_free_pages, cache.num_free_slots) == (6, 3)
    assert all(cache.k[layer].isnan().all() for layer in (FULL, SLIDING))


@pytest.mark.parametrize(("length", "fork"), [(140, 100), (140, 192), (200, 64)])
def test_no_fork_where_pages_are_not_whole_or_the_window_is_gone(cache: KVCache, length: int, fork: int) -> None:
    with pytest.raises(ValueError, match=f"fork: length is {fork} of {length} tokens"):
        cache.fork(filled(cache, length), fork)


def test_a_fork_wants_a_slot(cache: KVCache) -> None:
    contexts = [filled(cache, 70), cache.open(), cache.open()]
    with pytest.raises(CacheFullError, match="all 3 contexts are in use"):
        cache.fork(contexts[0], 64)
    assert cache.num_free_pages == 4


def test_a_cache_takes_the_bytes_that_were_counted_before(cache: KVCache) -> None:
    assert cache.nbytes == cache_bytes(CONFIG, torch.float32, SIZES)
