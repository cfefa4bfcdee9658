"""The likeliest token of each row of logits: tiles of the vocabulary, compared in order by the program that is last."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..ops.layout import require, rows_of
from ..workspace import counters

REPLACES = ("sampling", "draw")
BLOCK_V = 4096
NOTHING: tl.constexpr = tl.constexpr(2147483647)


@triton.jit
def _argmax_kernel(
    logits_ptr,  # [T, V], row stride stride_t, column stride 1
    largest_ptr,  # [T, tiles] float32
    ids_ptr,  # [T, tiles] int32
    y_ptr,  # [T] int64
    arrived_ptr,  # [T] int32, zero before and after
    stride_t,
    V,
    BLOCK_V: tl.constexpr,
    BLOCK_TILES: tl.constexpr,  # power of two >= tiles
):
    begin_kernel()
    t, tile, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    v = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    row = logits_ptr + t.to(tl.int64) * stride_t
    logits = tl.load(row + v, mask=v < V, other=-float("inf")).to(tl.float32)
    here = tl.max(logits, axis=0)
    lowest = tl.min(tl.where(logits == here, v, NOTHING), axis=0)
    tl.store(largest_ptr + t * tiles + tile, here)
    tl.store(ids_ptr + t * tiles + tile, lowest)
    tl.debug_barrier()  # this tile's values are written before the program counts itself
    if tl.atomic_add(arrived_ptr + t, 1, sem="acq_rel") == tiles - 1:
        n = tl.arange(0, BLOCK_TILES)
        values = tl.load(largest_ptr + t * tiles + n, mask=n < tiles, other=-float("inf"), cache_modifier=".cg")
        ids = tl.load(ids_ptr + t * tiles + n, mask=n < tiles, other=NOTHING, cache_modifier=".cg")
        best = tl.max(values, axis=0)
        chosen = tl.min(tl.where(values == best, ids, NOTHING), axis=0)
        tl.store(y_ptr + t, tl.minimum(chosen, V - 1).to(tl.int64))  # rows of NaN choose the last token
        tl.store(arrived_ptr + t, 0)


def argmax(logits: Tensor) -> Tensor:
    """The token with the largest logit of each row; the lower id where logits are equal.

    Args:
        logits: [T, V], float32, bfloat16 or float16.

    Returns:
        [T] int64.

    Raises:
        ValueError: a shape or dtype that this kernel does not take; the message names it.
    """
    require(logits.ndim == 2 and logits.shape[1] > 0, "argmax", "logits", logits, "[T, V]")
    rows = rows_of("argmax", "logits", logits)
    num_rows, vocab_size = rows.shape
    y = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows > 0:
        tiles = triton.cdiv(vocab_size, BLOCK_V)
        largest = torch.empty((num_rows, tiles), dtype=torch.float32, device=logits.device)
        ids = torch.empty((num_rows, tiles), dtype=torch.int32, device=logits.device)
        _argmax_kernel[(num_rows, tiles)](
            *(rows, largest, ids, y, counters(logits.device, num_rows), rows.stride(0), vocab_size),
            BLOCK_V=BLOCK_V,
            BLOCK_TILES=triton.next_power_of_2(tiles),
            num_warps=4,
        )
    return y
