"""Prefill attention of a chunk of one sequence over its cached prefix and itself, with the head gate: one launch.

The launch configuration names a path: "wgmma" is ``prefill_wgmma``, for bf16 and heads of 128 on Hopper; none named,
``prefill_attention_kernel`` takes everything, anywhere.
"""

import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..launch import is_fixed_order, launch_for
from ..ops.attention import LOG2_E, MAX_HEAD_DIM, SMALLEST_TILE
from ..ops.layout import require, require_float
from .prefill_attention_kernel import prefill_attention_kernel
from .prefill_wgmma import fits, wgmma

REPLACES = ("attention", "head_gate")
ALIGNMENT_BYTES = 16  # of a tensor descriptor's address and strides


def prefill_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_table: Tensor | None,
    start: int,
    window: int | None,
    gate: Tensor | None = None,
) -> Tensor:
    """Attend from T tokens at positions start to start + T - 1, and scale by the head gate where there is one.

    A query's bits do not depend on later queries of the chunk.

    Args:
        q: [T, N, H].
        k, v: in the dtype of q, with the chunk's own keys and values already written: [S, K, H] at positions 0 and on
            without a block table; [num_pages, page_size, K, H] with one, pages one after the other in memory,
            page_size a power of two of 16 or more.
        block_table: [max_pages] int32, the sequence's pages in order, or None.
        start: cached tokens before the chunk.
        window: how many keys a query sees, itself included; None sees all. Keys before the window count for nothing;
            on the path "wgmma" up to 127 of them are read, and their values must be finite.
        gate: [T, N], as in ``head_gate``, or None.

    Returns:
        [T, N, H] in the dtype of q.

    Raises:
        ValueError: a shape, layout or dtype that this kernel does not take; the message names it.
        LookupError: the configuration names a path that does not take these.
    """
    op = "prefill_attention"
    k_rows, v_rows, page_size = _checked(op, q, k, v, block_table, start, window)
    num_tokens, num_heads, head_dim = q.shape
    if gate is not None:
        require(gate.shape == q.shape[:2] and gate.is_contiguous(), op, "gate", gate, f"{tuple(q.shape[:2])}")
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if y.numel() == 0:
        return y
    takes_wgmma = fits(q, k_rows, v_rows) and not is_fixed_order()  # where blocks begin would depend on the chunk
    sizes: dict[str, int | str] = {"T": num_tokens, "dtype": str(q.dtype).removeprefix("torch.")}
    sizes |= {"windowed": int(window is not None), "wgmma": int(takes_wgmma)}
    options: dict[str, Any] = dict(launch_for(op, q.device, **sizes).options)
    if options.pop("PATH", "blocks") == "wgmma":
        if not takes_wgmma:
            raise LookupError(f"{op}: path 'wgmma' does not take these; want an entry without it in launch_configs")
        wgmma(q, k_rows, v_rows, block_table, page_size, start, window, gate, y, options)
        return y
    options["BLOCK_S"] = min(options["BLOCK_S"], page_size or options["BLOCK_S"])
    options["BLOCK_H"] = max(SMALLEST_TILE, triton.next_power_of_2(head_dim))
    options["DESCRIPTORS"] = options["DESCRIPTORS"] and _is_describable(k_rows) and _is_describable(v_rows)
    sources = [_described(rows, options["BLOCK_S"]) if options["DESCRIPTORS"] else rows for rows in (k_rows, v_rows)]
    prefill_attention_kernel[(num_heads, triton.cdiv(num_tokens, options["BLOCK_T"]))](
        *(q, *sources, q if block_table is None else block_table, q if gate is None else gate, y),
        *(*q.stride()[:2], *k_rows.stride()[:2], *v_rows.stride()[:2]),
        *(num_tokens, start, window or 0, LOG2_E / math.sqrt(head_dim)),
        *(num_heads // k_rows.shape[1], head_dim, page_size, window is not None, gate is not None),
        **options,
    )
    return y


def _checked(
    op: str, q: Tensor, k: Tensor, v: Tensor, block_table: Tensor | None, start: int, window: int | None
) -> tuple[Tensor, Tensor, int]:
    """Keys and values as [rows, K, H], and the page size; 0 without pages."""
    require(q.ndim == 3 and q.stride(-1) == 1, op, "q", q, "[T, N, H] with column stride 1")
    require_float(op, q=q, k=k, v=v)
    num_tokens, num_heads, head_dim = q.shape
    require(0 < head_dim <= MAX_HEAD_DIM, op, "q", q, f"heads of 1 to {MAX_HEAD_DIM}")
    if start < 0:
        raise ValueError(f"{op}: start is {start}; want 0 or more cached tokens")
    if window is not None and window < 1:
        raise ValueError(f"{op}: window is {window}; want 1 or more keys, self included, or None")
    axes = "[S, K, H]" if block_table is None else "[num_pages, page_size, K, H]"
    is_cache = k.ndim == (3 if block_table is None else 4) and k.shape[-1] == head_dim and k.dtype == q.dtype
    is_cache = is_cache and k.stride(-1) == 1 and k.shape[-2] > 0 and num_heads % k.shape[-2] == 0
    require(is_cache, op, "k", k, f"{axes} {q.dtype} with H = {head_dim}, K a divisor of {num_heads}, column stride 1")
    is_same = v.shape == k.shape and v.dtype == k.dtype and v.stride(-1) == 1
    require(is_same, op, "v", v, f"{tuple(k.shape)} {k.dtype} with column stride 1, as k")
    needed = start + num_tokens
    if block_table is None:
        require(len(k) >= needed, op, "k", k, f"at least start + T = {needed} keys")
        return k, v, 0
    page_size = k.shape[1]
    is_power = page_size >= SMALLEST_TILE and page_size & (page_size - 1) == 0
    require(is_power, op, "k", k, f"pages of a power of two of {SMALLEST_TILE} or more keys")
    for name, cache in (("k", k), ("v", v)):
        in_order = cache.stride(0) == page_size * cache.stride(1)
        require(in_order, op, name, cache, "pages one after the other in memory")
    is_table = block_table.ndim == 1 and block_table.dtype == torch.int32 and block_table.is_contiguous()
    is_table = is_table and len(block_table) * page_size >= needed
    require(is_table, op, "block_table", block_table, f"[max_pages] int32 with pages for start + T = {needed} keys")
    return k.flatten(0, 1), v.flatten(0, 1), page_size


def _is_describable(rows: Tensor) -> bool:
    """Whether [rows, K, H] is a matrix of whole heads that a tensor descriptor takes."""
    head_dim = rows.shape[-1]
    is_matrix = rows.stride(1) == head_dim and head_dim >= SMALLEST_TILE and head_dim & (head_dim - 1) == 0
    stride_bytes = rows.stride(0) * rows.element_size()
    return is_matrix and stride_bytes % ALIGNMENT_BYTES == 0 and rows.data_ptr() % ALIGNMENT_BYTES == 0


def _described(rows: Tensor, block_s: int) -> TensorDescriptor:
    num_rows, num_kv_heads, head_dim = rows.shape
    return TensorDescriptor(rows, [num_rows, num_kv_heads * head_dim], [rows.stride(0), 1], [block_s, head_dim])
