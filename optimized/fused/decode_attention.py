"""Decode attention over paged keys and values: 1 to 8 new tokens of each sequence, split over the context.

A program's rows are the query heads of one key-value head times the new tokens, so four tokens read the cache once.
``launch_configs`` chooses who attends, by ``PATH``:

    "blocks"      decode_attention_kernel: any shape, dtype and device, and a fixed order
    "few_rows"    decode_attention_early, for what ``fits`` it: up to 16 rows
    "many_rows"   the same: up to 64 rows
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ..dependent_launch import COMPILES
from ..launch import is_fixed_order, launch_for, multiprocessors
from ..ops.attention import LOG2_E, MAX_HEAD_DIM, SMALLEST_TILE
from ..ops.layout import require, require_float
from .decode_attention_early import MANY_ROWS, few_rows_kernel, many_rows_kernel
from .decode_attention_kernel import combine_kernel, decode_attention_kernel

REPLACES = ("attention", "head_gate")
MAX_QUERY_LEN = 8
KERNELS = {"blocks": decode_attention_kernel, "few_rows": few_rows_kernel, "many_rows": many_rows_kernel}
EARLY_HEAD_DIM = 128
EARLY_KEYS = 64  # that a page is made of
WORD = 8  # bfloat16 in 16 bytes
FIXED_ROWS = 64  # of a program in a fixed order, at least: three drafts and a token of twelve heads


@dataclass(frozen=True)
class Workspace:
    """Where the splits of a launch meet; launches that may run at the same time want one each.

    Attributes:
        partials: [B, K, splits, rows, H padded] float32; log_sums: [B, K, splits, rows] float32, of base 2.
    """

    partials: Tensor
    log_sums: Tensor


def workspace_for(q: Tensor, k_cache: Tensor, block_table: Tensor, window: int | None) -> Workspace:
    """Allocate what ``decode_attention`` needs for arguments of these shapes; keep it, and pass it to every call.

    Raises:
        ValueError: as ``decode_attention``.
    """
    return _workspace(_plan(q, k_cache, block_table, window))


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    window: int | None,
    gate: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Attend from the last tokens of each sequence to its cached keys, and scale by the head gate where there is one.

    Nothing is read back to the host and the grid depends on shapes only, so the call can be captured in a CUDA graph;
    a captured call wants a workspace. The very kernel before (see ``dependent_launch``) may write q, and keys and
    values of the new tokens, but neither older ones nor lengths nor pages. A sequence's bits do not depend on the other
    sequences of the batch; in a fixed order a query's depend neither on how many more its sequence has in this call, up
    to four of twelve heads, nor on the length of the context.

    Args:
        q: [T, N, H], T = B * query length, 1 to 8 tokens of each sequence, in order; the last is at context_len - 1.
        k_cache, v_cache: [num_pages, page_size, K, H] in the dtype of q, with the new tokens already written.
        block_table: [B, max_pages] int32: the pages of each sequence, in order; entries beyond its length are free.
        context_lens: [B] int32, cached tokens of each sequence, at most max_pages * page_size.
        window: how many keys a query sees, itself included; None sees all. Pages before the window are not read.
        gate: [T, N], as in ``head_gate``, column stride 1, or None.
        workspace: from ``workspace_for``; None allocates one.

    Returns:
        [T, N, H] in the dtype of q. A query that sees no key (an empty sequence, say) gives zeros.

    Raises:
        ValueError: a shape or dtype that this kernel does not take; the message names it.
    """
    plan = _plan(q, k_cache, block_table, window, v_cache)
    op = "decode_attention"
    require(v_cache.shape == k_cache.shape, op, "v_cache", v_cache, f"{tuple(k_cache.shape)}, as k_cache")
    require(v_cache.dtype == q.dtype and v_cache.stride(-1) == 1, op, "v_cache", v_cache, f"{q.dtype}, column stride 1")
    is_lens = context_lens.shape == (plan.batch,) and context_lens.dtype == torch.int32
    require(is_lens and context_lens.is_contiguous(), op, "context_lens", context_lens, f"[{plan.batch}] int32")
    if gate is not None:
        want = f"{tuple(q.shape[:2])}, column stride 1"
        require(gate.shape == q.shape[:2] and gate.stride(-1) == 1, op, "gate", gate, want)
    space = workspace or _workspace(plan)
    require(space.partials.shape == plan.partials, op, "workspace.partials", space.partials, f"{plan.partials}")
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if y.numel() > 0:
        strides = (*q.stride()[:2], *k_cache.stride()[:3], *v_cache.stride()[:3], block_table.stride(0))
        gate_stride = 0 if gate is None else gate.stride(0)
        KERNELS[plan.path][plan.grid](
            *(q, k_cache, v_cache, block_table, context_lens, q if gate is None else gate, y),
            *(space.partials, space.log_sums, *strides, gate_stride),
            *(window or 0, LOG2_E / math.sqrt(q.shape[-1])),
            *(len(q) // plan.batch, q.shape[1] // k_cache.shape[2], q.shape[-1], k_cache.shape[1]),
            *(window is not None, gate is not None),
            **plan.options,
        )
        if plan.grid[1] > 1:
            _combine(plan, space, context_lens, q, gate, y, window)
    return y


def _combine(
    plan: "_Plan",
    space: Workspace,
    context_lens: Tensor,
    q: Tensor,
    gate: Tensor | None,
    y: Tensor,
    window: int | None,
) -> None:
    (num_kv_heads, num_splits, batch), options = plan.grid, plan.options
    query_len, heads = len(q) // batch, q.shape[1] // num_kv_heads
    names = ("BLOCK_S", "MIN_BLOCKS", "BLOCK_R", "BLOCK_H", "SHARE")
    launch = launch_for("decode_attention_combine", q.device, rows=options["BLOCK_R"], splits=num_splits).options
    at_once = min(launch["COMBINE_SPLITS"], triton.next_power_of_2(num_splits))
    combine_kernel[num_kv_heads, triton.cdiv(query_len * heads, launch["BLOCK_V"]), batch](
        *(context_lens, q if gate is None else gate, y, space.partials, space.log_sums),
        *(0 if gate is None else gate.stride(0), num_splits, window or 0),
        *(query_len, heads, q.shape[-1], window is not None, gate is not None),
        **{name: options[name] for name in names},
        **{**launch, "COMBINE_SPLITS": at_once, "ALL_AT_ONCE": num_splits <= at_once},
    )


@dataclass(frozen=True)
class _Plan:
    batch: int
    path: str  # of KERNELS
    grid: tuple[int, int, int]  # K, splits, B
    options: dict[str, Any]
    device: torch.device

    @property
    def partials(self) -> tuple[int, ...]:
        num_kv_heads, num_splits, batch = self.grid
        return batch, num_kv_heads, num_splits, self.options["BLOCK_R"], self.options["BLOCK_H"]


def fits(q: Tensor, rows: int, *caches: Tensor) -> bool:
    """Whether the kernels of ``decode_attention_early`` take these: bfloat16, heads of 128, whole words and blocks.

    A fixed order wants splits that do not depend on the length, and rows that do not depend on the queries: it stays
    with the kernel that was judged in it.
    """
    is_read = COMPILES.value and not is_fixed_order() and q.dtype == torch.bfloat16 and q.shape[-1] == EARLY_HEAD_DIM
    return is_read and rows <= MANY_ROWS.value and all(_in_words(cache) for cache in caches)


def _in_words(cache: Tensor) -> bool:
    in_words = cache.storage_offset() % WORD == 0 and all(stride % (2 * WORD) == 0 for stride in cache.stride()[:3])
    return in_words and cache.shape[1] % EARLY_KEYS == 0


def _plan(q: Tensor, k_cache: Tensor, block_table: Tensor, window: int | None, v_cache: Tensor | None = None) -> _Plan:
    op = "decode_attention"
    require(q.ndim == 3 and q.stride(-1) == 1, op, "q", q, "[T, N, H] with column stride 1")
    require_float(op, q=q, k_cache=k_cache)
    num_tokens, num_heads, head_dim = q.shape
    require(0 < head_dim <= MAX_HEAD_DIM, op, "q", q, f"heads of 1 to {MAX_HEAD_DIM}")
    is_cache = k_cache.ndim == 4 and k_cache.shape[-1] == head_dim and k_cache.dtype == q.dtype
    is_cache = is_cache and k_cache.stride(-1) == 1 and k_cache.shape[2] > 0 and num_heads % k_cache.shape[2] == 0
    want = f"[num_pages, page_size, K, {head_dim}] {q.dtype}, K a divisor of {num_heads}, column stride 1"
    require(is_cache, op, "k_cache", k_cache, want)
    is_table = block_table.ndim == 2 and block_table.dtype == torch.int32 and block_table.stride(-1) == 1
    require(is_table and block_table.shape[1] > 0, op, "block_table", block_table, "[B, max_pages] int32")
    batch, query_len = len(block_table), num_tokens // max(len(block_table), 1)
    is_whole = query_len * batch == num_tokens and (query_len <= MAX_QUERY_LEN)
    require(is_whole, op, "q", q, f"1 to {MAX_QUERY_LEN} tokens for each of {batch} sequences")
    if window is not None and window < 1:
        raise ValueError(f"{op}: window is {window}; want 1 or more keys, self included, or None")

    page_size, num_kv_heads = k_cache.shape[1:3]
    least = FIXED_ROWS if is_fixed_order() else SMALLEST_TILE
    rows = max(least, triton.next_power_of_2(query_len * (num_heads // num_kv_heads)))
    longest = block_table.shape[1] * page_size
    windowed = int(window is not None)
    dtype = str(q.dtype).removeprefix("torch.")
    sizes = {"rows": rows, "windowed": windowed, "context": longest}
    sizes["early"] = int(fits(q, rows, k_cache, k_cache if v_cache is None else v_cache))
    options = dict(launch_for(op, q.device, dtype=dtype, **sizes).options)
    path = options.pop("PATH", "blocks")
    if path != "blocks" and not sizes["early"]:
        raise LookupError(f"{op}: path {path!r} does not take these; want 'blocks' in launch_configs")
    programs = options.pop("PROGRAMS_PER_SM") * multiprocessors(q.device)
    if window is not None:
        longest = min(longest, window + query_len - 1 + options["BLOCK_S"] - 1)
    most = triton.cdiv(triton.cdiv(longest, options["BLOCK_S"]), options["MIN_BLOCKS"])
    sharing = num_kv_heads * (1 if is_fixed_order() else max(batch, 1))  # what the device is shared by
    splits = max(1, min(programs // sharing, most))
    options["SHARE"] = 0
    if is_fixed_order() and window is None:
        options["SHARE"] = max(triton.cdiv(triton.cdiv(longest, options["BLOCK_S"]), splits), options["MIN_BLOCKS"])
    elif is_fixed_order() and window is not None:
        options["SHARE"] = options["MIN_BLOCKS"]
        keys = options["SHARE"] * options["BLOCK_S"]
        splits = triton.cdiv(window + MAX_QUERY_LEN - 1, keys) + 1
    options |= {"BLOCK_R": rows, "BLOCK_H": max(SMALLEST_TILE, triton.next_power_of_2(head_dim))}
    return _Plan(batch, path, (num_kv_heads, splits, batch), options, q.device)


def _workspace(plan: _Plan) -> Workspace:
    return Workspace(
        torch.empty(plan.partials, dtype=torch.float32, device=plan.device),
        torch.empty(plan.partials[:-1], dtype=torch.float32, device=plan.device),
    )
