"""What a step of decoding needs to know of its new tokens, from lengths that live on the device: one launch."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..ops.layout import require

REPLACES = ()


@dataclass(frozen=True)
class StepInputs:
    """Of Q new tokens of each of B sequences.

    Attributes:
        positions: [B * Q] int64.
        page_slots, ring_slots: [B * Q] int64: where their keys and values go; -1 nowhere.
        context_lens: [B] int32, new tokens included; 0 of a sequence that rests.
    """

    positions: Tensor
    page_slots: Tensor
    ring_slots: Tensor
    context_lens: Tensor


@triton.jit
def _step_inputs_kernel(
    lengths_ptr,  # [B] int64; negative: the sequence rests
    limits_ptr,  # [B] int64
    pages_ptr,  # [B, width] int32
    rings_ptr,  # [B, width] int32
    positions_ptr,  # [B * Q] int64
    page_slots_ptr,  # [B * Q] int64
    ring_slots_ptr,  # [B * Q] int64
    context_lens_ptr,  # [B] int32
    pages_stride,
    rings_stride,
    before,
    Q,
    PAGE_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    begin_kernel()
    b = tl.program_id(0)
    length = tl.load(lengths_ptr + b)
    end = length - before + Q
    works = (length >= 0) & (end <= tl.load(limits_ptr + b))
    q = tl.arange(0, BLOCK_Q)
    position = length - before + q
    exists = works & (position >= 0) & (q < Q)
    page = tl.load(pages_ptr + b * pages_stride + position // PAGE_SIZE, mask=exists, other=-1).to(tl.int64)
    ring = tl.load(rings_ptr + b * rings_stride + position // PAGE_SIZE, mask=exists, other=-1).to(tl.int64)
    at = b * Q + q
    tl.store(positions_ptr + at, tl.where(exists, position, 0), mask=q < Q)
    tl.store(page_slots_ptr + at, tl.where(page >= 0, page * PAGE_SIZE + position % PAGE_SIZE, -1), mask=q < Q)
    tl.store(ring_slots_ptr + at, tl.where(ring >= 0, ring * PAGE_SIZE + position % PAGE_SIZE, -1), mask=q < Q)
    tl.store(context_lens_ptr + b, tl.where(works, end, 0).to(tl.int32))


def step_inputs(
    lengths: Tensor, limits: Tensor, pages: Tensor, rings: Tensor, page_size: int, query_len: int, before: int = 0
) -> StepInputs:
    """Positions, slots and context lengths of a step's tokens.

    Args:
        lengths: [B] int64, tokens that each sequence holds; negative where it rests.
        limits: [B] int64: a sequence rests, too, that would hold more than this afterwards.
        pages, rings: [B, width] int32, the tables from a position's page to where it lies.
        query_len: Q, new tokens of each sequence.
        before: how many of them come again: their first position is length - before; negative ones go nowhere.

    Raises:
        ValueError: a shape or dtype that this kernel does not take; the message names it.
    """
    op, batch = "step_inputs", len(lengths)
    for name, of_rows in (("lengths", lengths), ("limits", limits)):
        is_row = of_rows.shape == (batch,) and of_rows.dtype == torch.int64 and of_rows.is_contiguous()
        require(is_row, op, name, of_rows, f"[{batch}] int64")
    for name, table in (("pages", pages), ("rings", rings)):
        is_table = table.ndim == 2 and len(table) == batch and table.dtype == torch.int32 and table.stride(1) == 1
        require(is_table, op, name, table, f"[{batch}, width] int32")
    positions, page_slots, ring_slots = torch.empty((3, batch * query_len), dtype=torch.int64, device=lengths.device)
    context_lens = torch.empty(batch, dtype=torch.int32, device=lengths.device)
    _step_inputs_kernel[(batch,)](
        *(lengths, limits, pages, rings, positions, page_slots, ring_slots, context_lens),
        *(pages.stride(0), rings.stride(0), before, query_len, page_size, triton.next_power_of_2(query_len)),
        num_warps=1,
    )
    return StepInputs(positions, page_slots, ring_slots, context_lens)
