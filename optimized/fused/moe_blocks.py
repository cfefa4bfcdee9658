"""Blocks of slots with the same expert, for the grouped products: by counting, without atomics or the host's help."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for


@dataclass(frozen=True)
class Blocks:
    """Slots (a token and one of its experts, numbered t A + a) in blocks of ``height``.

    Attributes:
        experts: [max_blocks] int32; -1 past the last block.
        slots: [max_blocks * height] int32, in order within an expert; the number of slots where a block is not full.
    """

    experts: Tensor
    slots: Tensor
    height: int


@triton.jit
def _count_slots_kernel(
    ids_ptr,  # [R]
    counts_ptr,  # [E] int32
    R,
    BLOCK: tl.constexpr,
):
    begin_kernel()
    expert = tl.program_id(0)
    count = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, R, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        count += (tl.load(ids_ptr + slot, mask=slot < R, other=-1) == expert).to(tl.int32)
    tl.store(counts_ptr + expert, tl.sum(count, axis=0))


@triton.jit
def _place_slots_kernel(
    ids_ptr,  # [R]
    counts_ptr,  # [E] int32
    experts_ptr,  # [max_blocks] int32
    slots_ptr,  # [max_blocks * HEIGHT] int32
    R,
    E,
    max_blocks,
    HEIGHT: tl.constexpr,
    BLOCK_E: tl.constexpr,  # next power of two >= E
    BLOCK: tl.constexpr,
):
    begin_kernel()
    expert = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    blocks = tl.cdiv(tl.load(counts_ptr + e, mask=e < E, other=0), HEIGHT)
    before = tl.sum(tl.where(e < expert, blocks, 0), axis=0)
    own = tl.sum(tl.where(e == expert, blocks, 0), axis=0)
    seen = 0
    for first in range(0, R, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        is_own = tl.load(ids_ptr + slot, mask=slot < R, other=-1) == expert
        place = before * HEIGHT + seen + tl.cumsum(is_own.to(tl.int32), axis=0) - 1
        tl.store(slots_ptr + place, slot, mask=is_own)
        seen += tl.sum(is_own.to(tl.int32), axis=0)
    empty = seen + tl.arange(0, HEIGHT)
    tl.store(slots_ptr + before * HEIGHT + empty, tl.zeros((HEIGHT,), tl.int32) + R, mask=empty < own * HEIGHT)
    for first in range(0, own, BLOCK):
        block = first + tl.arange(0, BLOCK)
        tl.store(experts_ptr + before + block, tl.zeros((BLOCK,), tl.int32) + expert, mask=block < own)
    if expert == E - 1:
        for first in range(before + own, max_blocks, BLOCK):
            block = first + tl.arange(0, BLOCK)
            tl.store(experts_ptr + block, tl.full((BLOCK,), -1, tl.int32), mask=block < max_blocks)


def max_blocks(num_slots: int, num_experts: int, height: int) -> int:
    """As many as there can be: each expert with a slot leaves at most ``height - 1`` places empty."""
    return (num_slots + min(num_slots, num_experts) * (height - 1)) // height


def blocks_of(expert_ids: Tensor, num_experts: int, height: int) -> Blocks:
    """Put the slots of each expert into blocks, experts in order, slots in order.

    Args:
        expert_ids: [T, A], contiguous, at least one; 0 to ``num_experts`` - 1.
    """
    num_slots = expert_ids.numel()
    most = max_blocks(num_slots, num_experts, height)
    counts, experts, slots = (
        torch.empty(size, dtype=torch.int32, device=expert_ids.device) for size in (num_experts, most, most * height)
    )
    launch = launch_for("experts_blocks", expert_ids.device, R=num_slots, E=num_experts)
    _count_slots_kernel[(num_experts,)](expert_ids, counts, num_slots, **launch.options)
    args = (expert_ids, counts, experts, slots, num_slots, num_experts, most)
    block_e = triton.next_power_of_2(num_experts)
    _place_slots_kernel[(num_experts,)](*args, HEIGHT=height, BLOCK_E=block_e, **launch.options)
    return Blocks(experts, slots, height)
