"""From contexts and numbers of new tokens to a ``Step``: what a scheduler knows, as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .fused.step_inputs import StepInputs
from .kv_cache import MAX_STEP, PAGE_SIZE, Context, KVCache, on_device
from .launch import is_fixed_order
from .runner import Chunk, Step


@dataclass(frozen=True)
class Piece:
    """New tokens of one context.

    Attributes:
        start: tokens before them.
        count: how many; room for them is reserved.
        origin: positions before it are not seen; only where ``count`` is above MAX_STEP may it be above 0.
    """

    context: Context
    start: int
    count: int
    origin: int = 0


@dataclass(frozen=True)
class Ordered:
    """A step, and the order of the pieces in it: those that decode first."""

    step: Step
    order: list[int]


def step_of(cache: KVCache, pieces: Sequence[Piece]) -> Ordered:
    """One step over pieces of any lengths: those of the most frequent short length decode, the rest are chunks.

    In a fixed order all are chunks: a token's bits do not depend on how many come with it.
    """
    short = [] if is_fixed_order() else [piece.count for piece in pieces if piece.count <= MAX_STEP]
    query_len = max(set(short), key=short.count) if short else 0
    decoding = [number for number, piece in enumerate(pieces) if piece.count == query_len]
    others = [number for number, piece in enumerate(pieces) if piece.count != query_len]
    order = decoding + others
    positions = torch.cat([torch.arange(pieces[n].start, pieces[n].start + pieces[n].count) for n in order])
    page_slots, ring_slots = (
        torch.cat([_slots(pieces[n], table) for n in order]) for table in (_page_of, _ring_page_of(cache))
    )
    device = cache.device
    ends = torch.tensor([pieces[n].start + pieces[n].count for n in decoding], dtype=torch.int32)
    slots = torch.tensor([pieces[n].context.slot for n in decoding], dtype=torch.int64)
    slots = on_device(slots, device)
    inputs = StepInputs(*(on_device(tensor, device) for tensor in (positions, page_slots, ring_slots, ends)))
    chunks, row = [], query_len * len(decoding)
    for number in others:
        piece = pieces[number]
        chunks.append(_chunk(cache, piece, row))
        row += piece.count
    tables = (cache.page_table.index_select(0, slots), cache.ring_table.index_select(0, slots))
    return Ordered(Step(inputs, query_len, *tables, tuple(chunks)), order)


def _slots(piece: Piece, page_of) -> Tensor:  # type: ignore[no-untyped-def]
    positions = torch.arange(piece.start, piece.start + piece.count)
    return page_of(piece.context, positions // PAGE_SIZE) * PAGE_SIZE + positions % PAGE_SIZE


def _page_of(context: Context, number: Tensor) -> Tensor:
    return torch.tensor(context.pages, dtype=torch.int64)[number]


def _ring_page_of(cache: KVCache):  # type: ignore[no-untyped-def]
    return lambda context, number: context.slot * cache.pages_per_ring + number % cache.pages_per_ring


def _chunk(cache: KVCache, piece: Piece, row: int) -> Chunk:
    context, start, end = piece.context, piece.start, piece.start + piece.count
    # From a whole page on: blocks of keys are then the same whatever chunks a prompt comes in, and so are the bits.
    first = max((start + 1 - (cache.window or 1)) // PAGE_SIZE * PAGE_SIZE, piece.origin)
    before = start - min(first, start)
    return Chunk(
        slice(row, row + piece.count),
        start,
        cache.page_table[context.slot],
        cache.ring_rows(context, start - before, start),
        cache.ring_rows(context, max(start, end - cache.ring_length), end),
    )
