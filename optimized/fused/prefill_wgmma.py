"""Launches of ``prefill_wgmma_kernel``, and what it takes."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ..dependent_launch import COMPILES
from ..ops.attention import LOG2_E
from .prefill_wgmma_kernel import BLOCK_S, HALF, HEAD_DIM, Plan, prefill_wgmma_kernel

ALIGNMENT_BYTES = 16  # of addresses and strides that the copy engine takes
MAX_ROWS = 2**31  # it counts rows in 32 bits


def fits(q: Tensor, k_rows: Tensor, v_rows: Tensor) -> bool:
    """Whether the kernel takes queries [T, N, H] and keys and values [rows, K, H], as ``prefill_attention`` does.

    bfloat16, heads of 128, those of a key or value one after the other, at addresses that the copy engine takes.
    """
    is_read = COMPILES.value and q.dtype == torch.bfloat16 and q.shape[-1] == HEAD_DIM.value
    return is_read and _is_aligned(q) and all(_is_matrix(rows) for rows in (k_rows, v_rows))


def _is_aligned(x: Tensor) -> bool:
    places = (x.data_ptr(), *(stride * x.itemsize for stride in x.stride()[:-1]))
    return min(x.stride()) > 0 and all(place % ALIGNMENT_BYTES == 0 for place in places)


def _is_matrix(rows: Tensor) -> bool:
    return _is_aligned(rows) and rows.stride(1) == rows.shape[2] and len(rows) < MAX_ROWS


def wgmma(
    q: Tensor,
    k_rows: Tensor,
    v_rows: Tensor,
    block_table: Tensor | None,
    page_size: int,
    start: int,
    window: int | None,
    gate: Tensor | None,
    y: Tensor,
    launch: Mapping[str, Any],
) -> None:
    """One launch of ``prefill_wgmma_kernel``.

    Args:
        q: [T, N, H], T of at least 1.
        k_rows, v_rows: [rows, K, H].
        block_table: [max_pages] int32, or None.
        page_size: of the rows; 0 without pages.
        start, window, gate: as ``prefill_attention``.
        y: [T, N, H], contiguous; written.
    """
    options = dict(launch)
    (num_tokens, num_heads, head_dim), num_kv_heads = q.shape, k_rows.shape[1]
    group = num_heads // num_kv_heads
    heads = math.gcd(options.pop("HEADS"), group)
    is_windowed, is_gated = window is not None, gate is not None
    plan = Plan(group, heads, page_size, is_windowed, is_gated, options.pop("STAGES"), options.pop("TURNS", False))
    own = [plan.own_tokens, plan.own_heads, head_dim]
    box = min(BLOCK_S.value, page_size or BLOCK_S.value)
    rows = len(k_rows) if page_size else start + num_tokens  # what lies beyond may be NaN, and is read as 0
    matrices = [x.as_strided((rows, num_kv_heads * head_dim), (x.stride(0), 1)) for x in (k_rows, v_rows)]
    whole = [_boxes(x, [box, HALF.value]) for x in matrices]
    tops = whole if plan.top >= box else [_boxes(x, [plan.top, HALF.value]) for x in matrices]
    tiles, columns = triton.cdiv(num_tokens, plan.tokens), num_heads // heads
    programs = min(options.pop("PROGRAMS"), tiles * columns)
    counter = torch.zeros(1, dtype=torch.int32, device=q.device)
    prefill_wgmma_kernel[(programs,)](
        *(_boxes(q, own), *whole, *tops, _boxes(y, own), counter),
        *(q if block_table is None else block_table, q if gate is None else gate),
        *(tiles * columns, tiles, columns, num_tokens, start, window or 0, num_heads, LOG2_E / math.sqrt(head_dim)),
        plan=plan,
        **options,
    )


def _boxes(x: Tensor, box: list[int]) -> TensorDescriptor:
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=len(box))
    return TensorDescriptor.from_tensor(x, box, layout)
