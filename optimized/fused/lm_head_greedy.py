"""Output head and greedy choice in one launch: the logits never reach memory.

Each program takes a tile of the vocabulary, rounds its logits as ``linear`` would, and keeps the largest with its
lowest id; the program that finishes last compares the tiles, in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arrival import arrived_last
from ..dependent_launch import begin_kernel
from ..launch import launch_for
from ..ops.layout import require, require_float, rows_of
from ..workspace import counters

REPLACES = ("linear", "sampling")
MAX_TOKENS = 64  # rows of one tile


@triton.jit
def _lm_head_greedy_kernel(
    x_ptr,  # [T, D], row stride x_stride_t, column stride 1
    weight_ptr,  # [V, D], contiguous
    largest_ptr,  # [T, tiles] float32
    ids_ptr,  # [T, tiles] int32
    y_ptr,  # [T] int64
    arrived_ptr,  # [1] int32, zero before and after
    T,
    D,
    V,
    x_stride_t,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    begin_kernel()
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    t = tl.arange(0, BLOCK_T)
    v = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    total = tl.zeros((BLOCK_T, BLOCK_V), dtype=tl.float32)
    weight_rows = weight_ptr + v.to(tl.int64)[None, :] * D
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = tl.load(x_ptr + t[:, None] * x_stride_t + d[None, :], mask=(t < T)[:, None] & (d < D)[None, :], other=0.0)
        weight = tl.load(weight_rows + d[:, None], mask=(v < V)[None, :] & (d < D)[:, None], other=0.0)
        total = tl.dot(x, weight, total, input_precision="ieee")
    logits = total.to(x_ptr.dtype.element_ty).to(tl.float32)  # as linear rounds them
    logits = tl.where((v < V)[None, :], logits, -float("inf"))
    here, place = tl.max(logits, axis=1, return_indices=True, return_indices_tie_break_left=True)
    tl.store(largest_ptr + t * tiles + tile, here, mask=t < T)
    tl.store(ids_ptr + t * tiles + tile, tile * BLOCK_V + place, mask=t < T)
    if arrived_last(arrived_ptr, tiles):
        largest = tl.full((BLOCK_T,), -float("inf"), dtype=tl.float32)
        chosen = tl.zeros((BLOCK_T,), dtype=tl.int32)
        for start in range(0, tiles, BLOCK_TILES):
            n = start + tl.arange(0, BLOCK_TILES)
            inside = (t < T)[:, None] & (n < tiles)[None, :]
            at = t[:, None] * tiles + n[None, :]
            values = tl.load(largest_ptr + at, mask=inside, other=-float("inf"), cache_modifier=".cg")
            ids = tl.load(ids_ptr + at, mask=inside, other=0, cache_modifier=".cg")
            best = tl.max(values, axis=1)
            lowest = tl.min(tl.where(values == best[:, None], ids, 2147483647), axis=1)
            chosen = tl.where(best > largest, lowest, chosen)
            largest = tl.maximum(largest, best)
        tl.store(y_ptr + t, chosen.to(tl.int64), mask=t < T)


def lm_head_greedy(x: Tensor, weight: Tensor) -> Tensor:
    """The likeliest token after each row; the lower id where logits are equal.

        y[t] = argmax_v linear(x, weight)[t, v]

    Args:
        x: [T, D], at most 64 rows, after the final norm.
        weight: [V, D], contiguous, in the dtype of ``x``.

    Returns:
        [T] int64.

    Raises:
        ValueError: a shape, layout or dtype that this kernel does not take; the message names it.
    """
    rows = rows_of("lm_head_greedy", "x", x)
    num_rows, width = rows.shape
    require(num_rows <= MAX_TOKENS, "lm_head_greedy", "x", x, f"at most {MAX_TOKENS} rows")
    require(weight.ndim == 2 and weight.shape[1] == width, "lm_head_greedy", "weight", weight, f"[V, {width}]")
    require(weight.is_contiguous() and weight.dtype == x.dtype, "lm_head_greedy", "weight", weight, f"{x.dtype} rows")
    require_float("lm_head_greedy", x=x, weight=weight)
    y = torch.empty(num_rows, dtype=torch.int64, device=x.device)
    if num_rows > 0:
        options = launch_for("lm_head_greedy", x.device, T=num_rows, V=len(weight)).options
        tiles = triton.cdiv(len(weight), options["BLOCK_V"])
        largest = torch.empty((num_rows, tiles), dtype=torch.float32, device=x.device)
        ids = torch.empty((num_rows, tiles), dtype=torch.int32, device=x.device)
        buffers = (rows, weight, largest, ids, y, counters(x.device, 1))
        block = max(16, triton.next_power_of_2(num_rows))
        sizes = (num_rows, width, len(weight), rows.stride(0))
        _lm_head_greedy_kernel[(tiles,)](*buffers, *sizes, BLOCK_T=block, BLOCK_TILES=128, **options)
    return y
