"""``prefill_attention``'s path for Hopper: on a GPU, against the rows it replaces; and what it takes, and refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from optimized.fused.prefill_attention import prefill_attention
from optimized.fused.prefill_wgmma import fits
from optimized.launch import trying

from .attention_cases import DEVICE, Pages, assert_attends, normal

H = 128
BF16 = torch.bfloat16
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


def needs_hopper(test: Any) -> Any:
    return pytest.mark.cuda(pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")(test))


def attend(*args: Any, heads: int = 1) -> Tensor:
    """Five programs, so that each has several tiles."""
    options = {"PATH": "wgmma", "HEADS": heads, "STAGES": 2, "PROGRAMS": 5, "num_warps": 4}
    with trying("prefill_attention", options):
        return prefill_attention(*args)


def check(
    num_tokens: int,
    start: int,
    window: int | None,
    group: int,
    *,
    heads: int = 1,
    num_kv_heads: int = 1,
    page_size: int | None = 64,
    gated: bool = False,
) -> None:
    pages = Pages.of([start + num_tokens], num_kv_heads, H, page_size or 16, BF16)
    q = normal(num_tokens, num_kv_heads * group, H, dtype=BF16, seed=1)
    gate = normal(num_tokens, num_kv_heads * group, dtype=BF16, seed=2) if gated else None
    if page_size is None:
        unused = torch.full_like(pages.k[0][:5], math.nan)  # a cache that is longer than its contents
        k, v = (torch.cat((own[0], unused)).to(DEVICE) for own in (pages.k, pages.v))
        got = attend(q, k, v, None, start, window, gate, heads=heads)
    else:
        got = attend(q, pages.k_cache, pages.v_cache, pages.block_table[0], start, window, gate, heads=heads)
    assert_attends(got, q, pages.k[0], pages.v[0], start, window, gate)


@needs_hopper
@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 127, 128, 129, 300])
@pytest.mark.parametrize("start", [0, 1, 63, 65, 200])
def test_lengths_around_pages_blocks_and_tiles(num_tokens: int, start: int) -> None:
    check(num_tokens, start, None, 2, num_kv_heads=2)


@needs_hopper
@pytest.mark.parametrize("window", [1, 31, 32, 33, 127, 128, 129, 160, 500, 512])
@pytest.mark.parametrize("start", [0, 33, 150, 511])
def test_windows_around_blocks_and_tiles(window: int, start: int) -> None:
    check(130, start, window, 12, heads=4, page_size=None)


@needs_hopper
@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_heads_of_a_tile(heads: int) -> None:
    check(131, 70, 150, 8, heads=heads, page_size=None, num_kv_heads=2, gated=True)


@needs_hopper
@pytest.mark.parametrize(("group", "window"), [(1, None), (3, 40)])
def test_groups_that_heads_of_a_tile_do_not_divide(group: int, window: int | None) -> None:
    check(70, 45, window, group, heads=4, page_size=None, num_kv_heads=2)


@needs_hopper
@pytest.mark.parametrize(("page_size", "window", "heads"), [(16, 40, 4), (128, None, 2), (256, 200, 1)])
def test_pages_of_other_sizes_with_the_gate(page_size: int, window: int | None, heads: int) -> None:
    check(140, 45, window, 4, heads=heads, page_size=page_size, num_kv_heads=2, gated=True)


@needs_hopper
@pytest.mark.parametrize("window", [None, 150])
def test_query_bits_repeat_and_do_not_depend_on_later_queries(window: int | None) -> None:
    q, k, v = (normal(400, heads, H, dtype=BF16, seed=heads) for heads in (8, 2, 1))
    v = v.expand(-1, 2, -1).contiguous()
    whole = attend(q[30:], k, v, None, 30, window, heads=4)
    assert torch.equal(attend(q[30:], k, v, None, 30, window, heads=4), whole)
    for num_tokens in (1, 33, 129, 200):
        part = attend(q[30 : 30 + num_tokens], k, v, None, 30, window, heads=4)
        assert torch.equal(part, whole[:num_tokens]), num_tokens


@needs_hopper
def test_parts_of_a_projection_and_of_a_wider_cache() -> None:
    q = normal(90, 7 * H, dtype=BF16, seed=1).unflatten(1, (7, H))[:, 1:7]
    k, v = (normal(90, 3, H, dtype=BF16, seed=seed)[:, 1:] for seed in (2, 3))
    assert fits(q, k, v)
    assert_attends(attend(q, k, v, None, 0, None), q, k.cpu(), v.cpu(), 0, None)


@pytest.fixture
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.language import constexpr

    monkeypatch.setattr("optimized.fused.prefill_wgmma.COMPILES", constexpr(True))


def zeros(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.usefixtures("_compiled")
def test_bf16_with_heads_of_128_fits() -> None:
    assert fits(zeros(5, 8, H), zeros(70, 2, H), zeros(70, 2, H))


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize(
    ("what", "q", "k"),
    [
        ("float32", zeros(5, 8, H, dtype=torch.float32), zeros(70, 2, H, dtype=torch.float32)),
        ("another width of a head", zeros(5, 8, 64), zeros(70, 2, 64)),
        ("one query for all", zeros(1, 8, H).expand(5, -1, -1), zeros(70, 2, H)),
        ("queries that begin within 16 bytes", zeros(5, 8, H + 4)[:, :, :H], zeros(70, 2, H)),
        ("keys with room between heads", zeros(5, 8, H), zeros(70, 2, H + 8)[:, :, :H]),
        ("keys that begin within 16 bytes", zeros(5, 8, H), zeros(70, 2 * H + 4)[:, : 2 * H].unflatten(1, (2, H))),
    ],
)
def test_what_does_not_fit_goes_another_way(what: str, q: Tensor, k: Tensor) -> None:
    assert not fits(q, k, k), what


def test_a_configuration_that_asks_for_it_where_it_does_not_fit_is_refused() -> None:
    q, k = normal(5, 4, 32, dtype=BF16, seed=1), normal(5, 2, 32, dtype=BF16, seed=2)
    with pytest.raises(LookupError, match="prefill_attention: path 'wgmma' does not take these"):
        attend(q, k, k, None, 0, None)
