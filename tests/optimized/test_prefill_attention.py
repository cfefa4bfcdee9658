"""``prefill_attention`` against the rows it replaces: chunks after a prefix, in pages or in one piece."""

import math

import pytest
import torch

if not torch.cuda.is_available():
    from optimized.interpreter import interpret

    interpret()

from optimized.fused import prefill_attention as module
from optimized.fused.prefill_attention import prefill_attention
from optimized.launch import launch_for

from .attention_cases import DEVICE, Pages, assert_attends, normal

BF16, F32 = torch.bfloat16, torch.float32


@pytest.fixture(params=[False, True], ids=["pointers", "descriptors"])
def descriptors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways to load tiles, whatever the device's file says."""
    set_options(monkeypatch, DESCRIPTORS=request.param)
    return request.param


def set_options(monkeypatch: pytest.MonkeyPatch, **options: bool) -> None:
    def with_options(*args: object, **sizes: int | str) -> object:
        launch = launch_for(*args, **sizes)
        return type(launch)({**launch.options, **options}, launch.origin)

    monkeypatch.setattr(module, "launch_for", with_options)


def check(
    num_tokens: int,
    start: int,
    window: int | None,
    group: int,
    *,
    dtype: torch.dtype = BF16,
    num_kv_heads: int = 1,
    head_dim: int = 32,
    page_size: int | None = 64,
    gated: bool = False,
) -> None:
    pages = Pages.of([start + num_tokens], num_kv_heads, head_dim, page_size or 16, dtype)
    q = normal(num_tokens, num_kv_heads * group, head_dim, dtype=dtype, seed=1)
    gate = normal(num_tokens, num_kv_heads * group, dtype=dtype, seed=2) if gated else None
    if page_size is None:
        unused = torch.full_like(pages.k[0][:5], math.nan)  # a cache that is longer than its contents
        k, v = (torch.cat((own[0], unused)).to(DEVICE) for own in (pages.k, pages.v))
        got = prefill_attention(q, k, v, None, start, window, gate)
    else:
        got = prefill_attention(q, pages.k_cache, pages.v_cache, pages.block_table[0], start, window, gate)
    assert_attends(got, q, pages.k[0], pages.v[0], start, window, gate)


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("group", [1, 3, 8, 12])
@pytest.mark.parametrize("window", [None, 40])
def test_any_group_of_heads_attends_as_the_reference(group: int, window: int | None) -> None:
    check(70, 0, window, group)


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("num_tokens", [1, 32, 63, 64, 65, 129])
@pytest.mark.parametrize("start", [0, 1, 63, 65])
def test_lengths_around_pages_and_blocks(num_tokens: int, start: int) -> None:
    check(num_tokens, start, None, 2)


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("window", [1, 31, 32, 33, 64, 65, 96, 129, 500])
@pytest.mark.parametrize("start", [0, 150])
def test_windows_around_blocks_and_tiles(window: int, start: int) -> None:
    check(130, start, window, 1)


@pytest.mark.parametrize("window", [None, 1, 40, 500])
def test_one_loop_attends_as_the_reference(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_options(monkeypatch, ONE_LOOP=True)
    check(97, 50, window, 2)


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("page_size", [None, 16, 128])
@pytest.mark.parametrize("window", [None, 40])
def test_one_piece_and_pages_of_other_sizes(page_size: int | None, window: int | None) -> None:
    check(75, 45, window, 3, page_size=page_size, num_kv_heads=2)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("page_size", [None, 64])
def test_gate_and_odd_head_dim(dtype: torch.dtype, window: int | None, page_size: int | None) -> None:
    check(66, 30, window, 3, dtype=dtype, head_dim=24, page_size=page_size, gated=True, num_kv_heads=2)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_published_head_dim_with_window_512(dtype: torch.dtype) -> None:
    check(66, 600, 512, 12, dtype=dtype, head_dim=128, gated=True)


def test_query_bits_do_not_depend_on_later_queries() -> None:
    pages = Pages.of([160], 2, 32, 64, BF16)
    q = normal(130, 6, 32, dtype=BF16, seed=1)
    args = (pages.k_cache, pages.v_cache, pages.block_table[0], 30, None)
    got = prefill_attention(q, *args)
    q[70:] = 30
    assert torch.equal(prefill_attention(q, *args)[:70], got[:70])


def test_no_tokens() -> None:
    pages = Pages.of([20], 2, 32, 16, BF16)
    q = normal(0, 6, 32, dtype=BF16, seed=1)
    assert prefill_attention(q, pages.k_cache, pages.v_cache, pages.block_table[0], 20, None).shape == (0, 6, 32)


REFUSED = {
    "q": lambda q, k, table: (q[0], k, k, table, 0, None),
    "k": lambda q, k, table: (q[:, :5], k, k, table, 0, None),
    "v": lambda q, k, table: (q, k, k.float(), table, 0, None),
    "block_table": lambda q, k, table: (q, k, k, table[:1], 0, None),
    "start": lambda q, k, table: (q, k, k, table, -1, None),
    "window": lambda q, k, table: (q, k, k, table, 0, 0),
    "k is .* pages of a power of two": lambda q, k, table: (q, k[:, :12], k[:, :12], table, 0, None),
    "k is .* at least start": lambda q, k, table: (q, k[0], k[0], None, 0, None),
    "gate": lambda q, k, table: (q, k, k, table, 0, None, q[:, 0]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses_and_names(what: str) -> None:
    pages = Pages.of([20], 2, 32, 16, BF16)
    args = REFUSED[what](normal(20, 6, 32, dtype=BF16, seed=1), pages.k_cache, pages.block_table[0])
    with pytest.raises(ValueError, match=f"prefill_attention: {what}"):
        prefill_attention(*args)


def test_names_the_rows_it_replaces() -> None:
    assert module.REPLACES == ("attention", "head_gate")
