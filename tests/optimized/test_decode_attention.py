"""``decode_attention`` against the rows it replaces, over scattered pages whose unused slots hold NaN."""

from dataclasses import replace
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    from optimized.interpreter import interpret

    interpret()

from optimized.fused import decode_attention as module
from optimized.fused.decode_attention import Workspace, decode_attention, fits, workspace_for
from optimized.launch import fixed_order, trying

from .attention_cases import DEVICE, Pages, assert_attends, normal

BF16, F32 = torch.bfloat16, torch.float32
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
EARLY = {"BLOCK_S": 64, "PROGRAMS_PER_SM": 1, "num_warps": 4, "launch_pdl": True}
FEW_ROWS = EARLY | {"PATH": "few_rows"}
MANY_ROWS = EARLY | {"PATH": "many_rows"}


def needs_hopper(test: Any) -> Any:
    return pytest.mark.cuda(pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")(test))


def attend(
    pages: Pages, q: torch.Tensor, window: int | None, gate: torch.Tensor | None = None, space: Workspace | None = None
) -> torch.Tensor:
    tensors = (q, pages.k_cache, pages.v_cache, pages.block_table, pages.context_lens)
    return decode_attention(*tensors, window, gate, space)


def check(
    lengths: list[int],
    query_len: int,
    window: int | None,
    group: int,
    *,
    dtype: torch.dtype = BF16,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    page_size: int = 64,
    gated: bool = False,
) -> None:
    pages = Pages.of(lengths, num_kv_heads, head_dim, page_size, dtype)
    num_tokens, num_heads = len(lengths) * query_len, num_kv_heads * group
    q = normal(num_tokens, num_heads, head_dim, dtype=dtype, seed=1)
    gate = normal(num_tokens, num_heads, dtype=dtype, seed=2) if gated else None
    space = workspace_for(q, pages.k_cache, pages.block_table, window)
    got = attend(pages, q, window, gate, space)
    for i, length in enumerate(lengths):
        own = slice(i * query_len, (i + 1) * query_len)
        args = (pages.k[i], pages.v[i], length - query_len, window, None if gate is None else gate[own])
        assert_attends(got[own], q[own], *args, splits=space.partials.shape[2])


@pytest.mark.parametrize("group", [1, 3, 8, 12])
@pytest.mark.parametrize("window", [None, 100])
def test_any_group_of_heads_attends_as_the_reference(group: int, window: int | None) -> None:
    check([201], 1, window, group)


@pytest.mark.parametrize("query_len", [2, 3, 4, 8])
@pytest.mark.parametrize("window", [None, 100])
def test_several_new_tokens_attend_as_the_reference(query_len: int, window: int | None) -> None:
    check([150], query_len, window, 12)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 127, 128, 129, 500])
def test_lengths_around_a_page(length: int) -> None:
    check([length], 1, None, 8, num_kv_heads=1)


@pytest.mark.parametrize("length", [5, 99, 100, 101, 103, 104, 163, 164, 165, 229])
def test_lengths_around_the_window_with_four_new_tokens(length: int) -> None:
    check([length], 4, 100, 3, num_kv_heads=1)


@pytest.mark.parametrize("page_size", [16, 48, 128])
@pytest.mark.parametrize("window", [None, 100])
def test_pages_narrower_and_wider_than_a_block(page_size: int, window: int | None) -> None:
    check([175], 2, window, 3, page_size=page_size, num_kv_heads=1)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("window", [None, 70])
def test_sequences_of_different_length_with_a_gate(dtype: torch.dtype, window: int | None) -> None:
    check([3, 300, 64], 2, window, 3, dtype=dtype, head_dim=24, gated=True)


def test_published_shape_of_a_sliding_layer() -> None:
    check([700], 1, 512, 12, num_kv_heads=8, head_dim=128, gated=True)


@pytest.mark.parametrize("page_size", [48, 64])
def test_an_empty_sequence_gives_zeros(page_size: int) -> None:
    pages = Pages.of([70, 70], 2, 32, page_size, BF16)
    pages.context_lens[0] = 0
    got = attend(pages, normal(2, 6, 32, dtype=BF16, seed=1), None)
    assert not got[0].any()
    assert got[1].all()


@pytest.mark.parametrize("window", [None, 100])
def test_row_bits_do_not_depend_on_neighbours(window: int | None) -> None:
    pages = Pages.of([200, 333], 2, 32, 64, BF16)
    q = normal(4, 6, 32, dtype=BF16, seed=1)
    got = attend(pages, q, window)
    q[2:], pages.context_lens[1] = 30, 77
    assert torch.equal(attend(pages, q, window)[:2], got[:2])


def test_in_a_fixed_order_the_bits_of_a_sequence_do_not_depend_on_the_batch() -> None:
    pages = Pages.of([200, 333, 64], 2, 32, 64, BF16)
    q = normal(3, 6, 32, dtype=BF16, seed=1)
    with fixed_order():
        together = attend(pages, q, None)
        for i in range(3):
            alone = replace(pages, block_table=pages.block_table[i : i + 1], context_lens=pages.context_lens[i : i + 1])
            assert torch.equal(attend(alone, q[i : i + 1], None), together[i : i + 1])


def test_a_workspace_serves_call_after_call() -> None:
    pages = Pages.of([333], 2, 32, 64, BF16)
    q = normal(1, 6, 32, dtype=BF16, seed=1)
    space = workspace_for(q, pages.k_cache, pages.block_table, None)
    first = attend(pages, q, None, space=space)
    space.partials.fill_(torch.nan)
    assert torch.equal(attend(pages, q, None, space=space), first)


def test_keys_and_values_may_be_strided() -> None:
    pages = Pages.of([150], 2, 32, 64, BF16)
    q = normal(1, 6, 32, dtype=BF16, seed=1)
    both = torch.cat((pages.k_cache, pages.v_cache), dim=-1)
    tensors = (q, both[..., :32], both[..., 32:], pages.block_table, pages.context_lens)
    assert torch.equal(decode_attention(*tensors, None), attend(pages, q, None))


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs want a CUDA device")
def test_a_captured_call_follows_the_lengths() -> None:
    pages = Pages.of([333], 2, 32, 64, BF16)
    q = normal(1, 6, 32, dtype=BF16, seed=1)
    space = workspace_for(q, pages.k_cache, pages.block_table, None)
    attend(pages, q, None, space=space)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attend(pages, q, None, space=space)
    for length in (333, 100, 64):
        pages.context_lens.fill_(length)
        graph.replay()
        assert torch.equal(captured, attend(pages, q, None))


@pytest.mark.parametrize("lengths", [[30, 70], [700, 900]])  # one split, and several that are combined
def test_a_gate_may_be_part_of_a_wider_projection(lengths: list[int]) -> None:
    pages = Pages.of(lengths, 2, 32, 64, F32)
    q, wide = normal(6, 6, 32, dtype=F32, seed=1), normal(6, 17, dtype=F32, seed=2)
    gate = wide[:, 11:]
    assert not gate.is_contiguous()
    assert torch.equal(attend(pages, q, None, gate), attend(pages, q, None, gate.contiguous()))


REFUSED = {
    "q": lambda q, k, table, lens: (q[:, :5], k, k, table, lens),
    "sequences": lambda q, k, table, lens: (q[:1].repeat(3, 1, 1), k, k, table, lens),
    "k_cache": lambda q, k, table, lens: (q, k.float(), k, table, lens),
    "v_cache": lambda q, k, table, lens: (q, k, k[:, :8], table, lens),
    "block_table": lambda q, k, table, lens: (q, k, k, table.long(), lens),
    "context_lens": lambda q, k, table, lens: (q, k, k, table, lens.long()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses_and_names(what: str) -> None:
    pages = Pages.of([20, 20], 2, 32, 16, BF16)
    q = normal(2, 6, 32, dtype=BF16, seed=1)
    args = REFUSED[what](q, pages.k_cache, pages.block_table, pages.context_lens)
    name = {"q": "k_cache", "sequences": "2 sequences"}.get(what, what)
    with pytest.raises(ValueError, match=f"decode_attention: .*{name}"):
        decode_attention(*args, None)


def test_refuses_a_window_of_none() -> None:
    pages = Pages.of([20], 2, 32, 16, BF16)
    with pytest.raises(ValueError, match="window is 0"):
        attend(pages, normal(1, 6, 32, dtype=BF16, seed=1), 0)


def test_refuses_a_workspace_of_another_shape() -> None:
    pages = Pages.of([20], 2, 32, 16, BF16)
    q = normal(1, 6, 32, dtype=BF16, seed=1)
    space = workspace_for(q.repeat(8, 4, 1)[:, :24], pages.k_cache, pages.block_table, None)
    with pytest.raises(ValueError, match="workspace"):
        attend(pages, q, None, space=space)


def test_names_the_rows_it_replaces() -> None:
    assert module.REPLACES == ("attention", "head_gate")


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("length", [4, 64, 66, 130, 200, 333])
def test_in_a_fixed_order_queries_of_one_call_have_the_bits_of_calls_of_their_own(
    window: int | None, length: int
) -> None:
    pages = Pages.of([length], 2, 32, 64, BF16)
    q = normal(4, 6, 32, dtype=BF16, seed=1)
    with fixed_order():
        together = attend(pages, q, window)
        for i in range(4):
            shorter = replace(pages, context_lens=pages.context_lens - 3 + i)
            assert torch.equal(attend(shorter, q[i : i + 1], window), together[i : i + 1]), i


@pytest.mark.parametrize("at_once", [2, 64])
def test_partial_results_are_added_up_in_turns_or_at_once(at_once: int) -> None:
    combine = {"BLOCK_V": 1, "COMBINE_SPLITS": at_once, "num_warps": 1}
    blocks = {"BLOCK_S": 16, "MIN_BLOCKS": 1, "PROGRAMS_PER_SM": 600, "num_warps": 4, "num_stages": 1}
    with trying("decode_attention", blocks), trying("decode_attention_combine", combine):
        check([90, 7, 16], 2, None, 3, gated=True)
        check([90, 7, 16], 2, 40, 3, gated=True)


def test_kernels_that_begin_early_take_whole_words_and_blocks_of_bfloat16() -> None:
    q, cache = torch.empty(1, 16, 128, dtype=BF16), torch.empty(3, 64, 2, 128, dtype=BF16)
    refused = [
        fits(q.float(), 16, cache),
        fits(q[..., :64], 16, cache[..., :64]),
        fits(q, 128, cache),
        fits(q, 16, cache, torch.empty(3, 48, 2, 128, dtype=BF16)),
        fits(q, 16, torch.empty(3, 64, 2, 129, dtype=BF16)[..., 1:]),
    ]
    with fixed_order():
        refused.append(fits(q, 16, cache))
    assert refused == [False] * len(refused)
    assert fits(q, 16, cache) == (DEVICE == "cuda")


def test_refuses_a_path_that_does_not_take_the_inputs() -> None:
    pages = Pages.of([20], 2, 32, 64, BF16)
    with (
        trying("decode_attention", FEW_ROWS | {"MIN_BLOCKS": 1, "STAGES": 2}),
        pytest.raises(LookupError, match="few_"),
    ):
        attend(pages, normal(1, 6, 32, dtype=BF16, seed=1), None)


@needs_hopper
@pytest.mark.parametrize(("query_len", "group", "options"), [
    (1, 8, FEW_ROWS),
    (1, 12, FEW_ROWS),
    (2, 8, FEW_ROWS),
    (1, 12, MANY_ROWS),
    (4, 8, MANY_ROWS),
    (4, 12, MANY_ROWS),
    (8, 8, MANY_ROWS),
])  # fmt: skip
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("min_blocks", "stages"), [(1, 2), (4, 5)])
@pytest.mark.parametrize("lengths", [[8], [63, 64, 65], [71], [127, 700, 9], [2048], [4097]])
def test_kernels_that_begin_early_attend_as_the_reference(
    query_len: int,
    group: int,
    options: dict[str, Any],
    window: int | None,
    min_blocks: int,
    stages: int,
    lengths: list[int],
) -> None:
    with trying("decode_attention", options | {"MIN_BLOCKS": min_blocks, "STAGES": stages}):
        check(lengths, query_len, window, group, head_dim=128, gated=True)


@needs_hopper
@pytest.mark.parametrize("options", [FEW_ROWS, MANY_ROWS])
def test_kernels_that_begin_early_give_zeros_for_an_empty_sequence(options: dict[str, Any]) -> None:
    pages = Pages.of([70, 70], 2, 128, 64, BF16)
    pages.context_lens[0] = 0
    q = normal(2, 16, 128, dtype=BF16, seed=1)
    torch.cuda.synchronize()  # lengths are older than the kernel before
    with trying("decode_attention", options | {"MIN_BLOCKS": 1, "STAGES": 3}):
        got = attend(pages, q, None)
    assert not got[0].any()
    assert got[1].all()


@needs_hopper
@pytest.mark.parametrize("length", [64, 65, 130, 700])
@pytest.mark.parametrize(("query_len", "options"), [(1, FEW_ROWS), (2, FEW_ROWS), (4, MANY_ROWS)])
@pytest.mark.parametrize("window", [None, 100])
def test_the_kernel_before_may_write_the_new_tokens(
    length: int, query_len: int, options: dict[str, Any], window: int | None
) -> None:
    pages = Pages.of([length], 2, 128, 64, BF16)
    q = normal(query_len, 16, 128, dtype=BF16, seed=1)
    new = torch.arange(length - query_len, length, device=DEVICE)
    slots = pages.block_table[0].long()[new // 64] * 64 + new % 64
    rows = torch.stack((pages.k_cache, pages.v_cache))  # one tensor: one kernel writes keys and values
    pages = replace(pages, k_cache=rows[0], v_cache=rows[1])
    written = rows.flatten(1, 2)[:, slots].clone()
    with trying("decode_attention", options | {"MIN_BLOCKS": 1, "STAGES": 3}):
        space = workspace_for(q, pages.k_cache, pages.block_table, window)
        want = attend(pages, q, window, space=space)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            rows.flatten(1, 2).index_copy_(1, slots, written)
            got = attend(pages, q, window, space=space)
    for _ in range(20):
        rows.flatten(1, 2)[:, slots] = torch.nan
        graph.replay()
        assert torch.equal(got, want)
