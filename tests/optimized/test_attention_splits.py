"""The row ``attention`` where several programs share the keys of a tile."""

import math

import pytest
import torch
from judged import check, moved

from optimized.launch import fixed_order, trying
from optimized.ops.attention import _splits, attention

N, K, H = 6, 2, 24
LAUNCH = {"BLOCK_R": 16, "BLOCK_S": 16, "KEYS_OF_SPLIT": 32, "num_warps": 2, "num_stages": 1}
CPU = torch.device("cpu")


@pytest.mark.parametrize("profile", ["float32", "bf16"])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("num_tokens", "num_keys"), [(1, 250), (3, 130), (2, 31)])
def test_shared_keys_are_within_the_envelope(
    profile: str, window: int | None, num_tokens: int, num_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys in no order, some slots empty; with a window, some splits see nothing."""
    monkeypatch.setattr("optimized.ops.attention.multiprocessors", lambda device: 16)
    random = torch.Generator().manual_seed(num_keys)
    dtype = torch.float32 if profile == "float32" else torch.bfloat16
    q = torch.randn(num_tokens, N, H, generator=random).to(dtype)
    k, v = (torch.randn(num_keys, K, H, generator=random).to(dtype) for _ in range(2))
    key_positions = torch.randperm(num_keys, generator=random)
    key_positions[7] = -1
    k[7] = v[7] = math.nan
    query_positions = torch.arange(num_keys - num_tokens, num_keys)
    args = (q, k, v, query_positions, key_positions, window)
    check("attention", profile, {"attention": LAUNCH}, attention, args)


def test_a_query_that_sees_nothing_gives_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimized.ops.attention.multiprocessors", lambda device: 16)
    q, k = torch.randn(1, N, H), torch.randn(200, K, H)
    args = (q, k, k, torch.tensor([3]), torch.arange(10, 210), None)
    with trying("attention", LAUNCH):
        assert attention(*map(moved, args)).cpu().equal(torch.zeros_like(q))


def test_keys_are_shared_where_there_is_room_and_never_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimized.ops.attention.multiprocessors", lambda device: 132)
    assert _splits(8, 262144, 1024, CPU) == 33
    assert _splits(8, 4096, 1024, CPU) == 4
    assert _splits(8, 512, 1024, CPU) == 1
    assert _splits(2048, 262144, 1024, CPU) == 1
    with fixed_order():
        assert _splits(8, 262144, 1024, CPU) == 1
