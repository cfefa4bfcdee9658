"""Rows sorted by expert, for the grouped products that read them with the copy engine: by counting, without atomics.

A slot is a token and one of its experts, numbered t A + a. Its place is the row it has in the sorted order: experts in
order, slots in order within an expert, and each expert from a new block on. The places between are never read for a
result, and what they hold is left as it was.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from .moe_blocks import max_blocks
from .moe_math import GROUP, codes_of, group_scale

PRODUCTS = 2  # that go through the blocks
CHUNK = 256  # slots that one program counts and places


@dataclass(frozen=True)
class Places:
    """Where the slots of a routing go.

    Attributes:
        of_slot: [R] int32.
        experts: [most blocks] int32; rows: [most blocks] int32, how many places of a block are taken, at least one.
        num_blocks: [1] int32; what ``experts`` and ``rows`` hold beyond is left as it was.
        counters: [2] int32, zero: for programs of either product, which take one tile after the other.
        height: places of a block.
    """

    of_slot: Tensor
    experts: Tensor
    rows: Tensor
    num_blocks: Tensor
    counters: Tensor
    height: int

    @property
    def count(self) -> int:
        return len(self.experts) * self.height


@triton.jit
def _count_chunk_kernel(
    ids_ptr,  # [R]
    counts_ptr,  # [chunks, BLOCK_E] int32
    R,
    BLOCK_E: tl.constexpr,  # a power of two > E
    CHUNK: tl.constexpr,
):
    begin_kernel()
    slot = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    expert = tl.load(ids_ptr + slot, mask=slot < R, other=BLOCK_E - 1).to(tl.int32)
    tl.store(counts_ptr + tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E), tl.histogram(expert, BLOCK_E))


@triton.jit
def _add_chunks_kernel(
    counts_ptr,  # [chunks, BLOCK_E] int32: becomes the number in the chunks before
    totals_ptr,  # [E] int32
    chunks,
    BLOCK_E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    begin_kernel()
    expert = tl.program_id(0)
    before = 0
    for first in range(0, chunks, BLOCK):
        chunk = first + tl.arange(0, BLOCK)
        at = counts_ptr + chunk * BLOCK_E + expert
        count = tl.load(at, mask=chunk < chunks, other=0)
        tl.store(at, before + tl.cumsum(count, axis=0) - count, mask=chunk < chunks)
        before += tl.sum(count, axis=0)
    tl.store(totals_ptr + expert, before)


@triton.jit
def _list_blocks_kernel(
    totals_ptr,  # [E] int32
    first_ptr,  # [E] int32: an expert's first place
    experts_ptr,  # [most blocks] int32
    rows_ptr,  # [most blocks] int32
    num_blocks_ptr,  # [1] int32
    counters_ptr,  # [2] int32
    E,
    HEIGHT: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    begin_kernel()
    tl.store(counters_ptr + tl.arange(0, 2), tl.zeros((2,), tl.int32))
    expert = tl.arange(0, BLOCK_E)
    total = tl.load(totals_ptr + expert, mask=expert < E, other=0)
    blocks = tl.cdiv(total, HEIGHT)
    first = tl.cumsum(blocks, axis=0) - blocks
    tl.store(first_ptr + expert, first * HEIGHT, mask=expert < E)
    tl.store(num_blocks_ptr, tl.sum(blocks, axis=0))
    for n in range(tl.max(blocks, axis=0)):
        tl.store(experts_ptr + first + n, expert, mask=n < blocks)
        tl.store(rows_ptr + first + n, tl.minimum(total - n * HEIGHT, HEIGHT), mask=n < blocks)


@triton.jit
def _place_chunk_kernel(
    ids_ptr,  # [R]
    before_ptr,  # [chunks, BLOCK_E] int32
    first_ptr,  # [E] int32
    places_ptr,  # [R] int32
    R,
    BLOCK_E: tl.constexpr,
    CHUNK: tl.constexpr,
):
    begin_kernel()
    here = tl.arange(0, CHUNK)
    slot = tl.program_id(0) * CHUNK + here
    expert = tl.load(ids_ptr + slot, mask=slot < R, other=-1).to(tl.int32)
    is_ahead = (expert[None, :] == expert[:, None]) & (here[None, :] < here[:, None])
    rank = tl.sum(is_ahead.to(tl.int32), axis=1)
    first = tl.load(first_ptr + expert, mask=slot < R, other=0)
    before = tl.load(before_ptr + tl.program_id(0) * BLOCK_E + expert, mask=slot < R, other=0)
    tl.store(places_ptr + slot, first + before + rank, mask=slot < R)


@triton.jit
def _spread_kernel(
    x_ptr,  # [T, D], row stride x_stride_t, column stride 1
    places_ptr,  # [T, A]
    weights_ptr,  # [T, A]
    y_ptr,  # [places, D], contiguous: x, or its codes
    scale_ptr,  # [places, D / 128] float32, contiguous, of codes
    factors_ptr,  # [places] float32
    x_stride_t,
    D,  # whole groups
    A: tl.constexpr,
    CODES: tl.constexpr,
    BLOCK_G: tl.constexpr,  # groups of a program
):
    begin_kernel()
    t = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    is_there = group < D // GROUP
    d = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    y = tl.load(x_ptr + t * x_stride_t + d, mask=is_there[:, None], other=0.0)
    if CODES:
        x = y.to(tl.float32)
        scale = group_scale(x, 1)
        y = codes_of(x, scale[:, None])
    for a in tl.static_range(A):
        place = tl.load(places_ptr + t * A + a).to(tl.int64)
        tl.store(y_ptr + place * D + d, y, mask=is_there[:, None])
        if CODES:
            tl.store(scale_ptr + place * (D // GROUP) + group, scale, mask=is_there)
        if tl.program_id(1) == 0:
            tl.store(factors_ptr + place, tl.load(weights_ptr + t * A + a).to(tl.float32))


@triton.jit
def _gather_kernel(
    parts_ptr,  # [places, D], contiguous, weighed
    places_ptr,  # [T, A]
    y_ptr,  # [T, D], contiguous
    D,
    A: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    begin_kernel()
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for a in tl.static_range(A):
        place = tl.load(places_ptr + t * A + a).to(tl.int64)
        total += tl.load(parts_ptr + place * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(y_ptr + t * D + d, total.to(y_ptr.dtype.element_ty), mask=d < D)


def places_of(expert_ids: Tensor, num_experts: int, height: int) -> Places:
    """Sort the slots by expert.

    Args:
        expert_ids: [T, A], contiguous, at least one; 0 to ``num_experts`` - 1.
    """
    num_slots, device = expert_ids.numel(), expert_ids.device
    chunks, most = triton.cdiv(num_slots, CHUNK), max_blocks(num_slots, num_experts, height)
    block_e = triton.next_power_of_2(num_experts + 1)
    sizes = (chunks * block_e, num_experts, num_experts, num_slots, most, most, 1, PRODUCTS)
    counts, totals, first, of_slot, experts, rows, num_blocks, counters = (
        torch.empty(size, dtype=torch.int32, device=device) for size in sizes
    )
    options = launch_for("experts_places", device, R=num_slots, E=num_experts).options
    _count_chunk_kernel[(chunks,)](expert_ids, counts, num_slots, BLOCK_E=block_e, CHUNK=CHUNK, **options)
    block = min(1024, triton.next_power_of_2(chunks))
    _add_chunks_kernel[(num_experts,)](counts, totals, chunks, BLOCK_E=block_e, BLOCK=block, **options)
    lists = (first, experts, rows, num_blocks, counters)
    _list_blocks_kernel[(1,)](totals, *lists, num_experts, HEIGHT=height, BLOCK_E=block_e, **options)
    args = (expert_ids, counts, first, of_slot, num_slots)
    _place_chunk_kernel[(chunks,)](*args, BLOCK_E=block_e, CHUNK=CHUNK, **options)
    return Places(of_slot, experts, rows, num_blocks, counters, height)


def spread(x: Tensor, weights: Tensor, places: Places, *, rounds: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Copy each token's row to the places of its slots.

    Args:
        x: [T, D], whole groups of 128, unit column stride.
        weights: [T, A].
        rounds: to e4m3, as ``quantize_activation`` does.

    Returns:
        Rows [places, D]; their scales [places, D / 128] float32, or nothing to read; weights [places] float32.
    """
    (num_tokens, width), device = x.shape, x.device
    y = torch.empty((places.count, width), dtype=torch.float8_e4m3fn if rounds else x.dtype, device=device)
    scale = torch.empty((places.count if rounds else 0, width // GROUP.value), dtype=torch.float32, device=device)
    factors = torch.empty(places.count, dtype=torch.float32, device=device)
    options = launch_for("experts_spread", device, T=num_tokens, D=width).options
    _spread_kernel[(num_tokens, triton.cdiv(width // GROUP.value, options["BLOCK_G"]))](
        x, places.of_slot, weights, y, scale, factors, x.stride(0), width, A=weights.shape[1], CODES=rounds, **options
    )
    return y, scale, factors


def gathered(parts: Tensor, places: Places, shape: tuple[int, int]) -> Tensor:
    """[T, D]: the sums of each token's parts [places, D], in the order of its slots."""
    num_tokens, width = shape
    y = torch.empty(shape, dtype=parts.dtype, device=parts.device)
    options = launch_for("experts_gather", parts.device, T=num_tokens, D=width).options
    per_token = places.of_slot.numel() // num_tokens
    grid = (num_tokens, triton.cdiv(width, options["BLOCK_D"]))
    _gather_kernel[grid](parts, places.of_slot, y, width, A=per_token, **options)
    return y
