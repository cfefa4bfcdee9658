"""Book-keeping of a step that verifies drafts and makes new ones, on the device: which tokens hold, and what follows.

Of each sequence: ``tokens`` is the newest token and its d drafts, Q = d + 1. After a step in which ``accepted`` of them
held, ``extended`` is what came after the newest token: accepted drafts, the token that the model chose itself, and then
new drafts as they are made. Depth k looks at Q + k rows, from k positions before the step's on, whose tokens are the
first Q + k of ``extended``; the newest true row among them is row accepted + k.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel

REPLACES = ("accept_draft",)


@triton.jit
def _accept_greedy_kernel(
    tokens_ptr,  # [B, Q] int64
    targets_ptr,  # [B, Q] int64
    accepted_ptr,  # [B] int64
    following_ptr,  # [B] int64
    Q,
    BLOCK_Q: tl.constexpr,
):
    begin_kernel()
    b = tl.program_id(0)
    q = tl.arange(0, BLOCK_Q)
    targets = tl.load(targets_ptr + b * Q + q, mask=q < Q, other=0)
    drafts = tl.load(tokens_ptr + b * Q + q + 1, mask=q < Q - 1, other=-1)
    accepted = tl.min(tl.where((drafts == targets) & (q < Q - 1), BLOCK_Q, q), axis=0)
    tl.store(accepted_ptr + b, accepted.to(tl.int64))
    tl.store(following_ptr + b, tl.sum(tl.where(q == accepted, targets, 0), axis=0))


@triton.jit
def _extend_kernel(
    tokens_ptr,  # [B, Q] int64
    accepted_ptr,  # [B] int64
    following_ptr,  # [B] int64
    context_lens_ptr,  # [B] int32
    extended_ptr,  # [B, Q + d] int64
    record_ptr,  # [B, 1 + Q] int64: accepted, or -1 where the sequence rests; then what came
    picked_ptr,  # [d, B] int64: the newest true row of each depth, among those of all sequences
    kept_ptr,  # [d, B] int64: the row that the next depth takes up again after the next step
    B,
    Q,
    BLOCK_Q: tl.constexpr,  # power of two >= Q + d
):
    begin_kernel()
    b = tl.program_id(0)
    drafts = Q - 1
    accepted, following = tl.load(accepted_ptr + b), tl.load(following_ptr + b)
    q = tl.arange(0, BLOCK_Q)
    verified = tl.load(tokens_ptr + b * Q + q + 1, mask=q < drafts, other=0)
    came = tl.where(q < accepted, verified, tl.where(q == accepted, following, 0))
    tl.store(extended_ptr + b * (Q + drafts) + q, came, mask=q < Q + drafts)
    tl.store(record_ptr + b * (1 + Q) + 1 + q, came, mask=q < Q)
    works = tl.load(context_lens_ptr + b) > 0
    tl.store(record_ptr + b * (1 + Q), tl.where(works, accepted, -1))
    first = b * (Q + q) + accepted
    tl.store(picked_ptr + q * B + b, first + q, mask=q < drafts)
    tl.store(kept_ptr + q * B + b, first, mask=q < drafts)


@triton.jit
def _place_draft_kernel(
    drafts_ptr,  # [B] int64
    accepted_ptr,  # [B] int64
    extended_ptr,  # [B, Q + d] int64
    tokens_ptr,  # [B, Q] int64
    depth,
    width,  # Q + d
    Q,
):
    begin_kernel()
    b = tl.program_id(0)
    draft = tl.load(drafts_ptr + b)
    tl.store(extended_ptr + b * width + tl.load(accepted_ptr + b) + depth + 1, draft)
    tl.store(tokens_ptr + b * Q + depth + 1, draft)


@triton.jit
def _advance_kernel(
    accepted_ptr,  # [B] int64
    following_ptr,  # [B] int64
    context_lens_ptr,  # [B] int32
    lengths_ptr,  # [B] int64
    tokens_ptr,  # [B, Q] int64
    Q,
):
    begin_kernel()
    b = tl.program_id(0)
    if tl.load(context_lens_ptr + b) > 0:
        tl.store(lengths_ptr + b, tl.load(lengths_ptr + b) + tl.load(accepted_ptr + b) + 1)
        tl.store(tokens_ptr + b * Q, tl.load(following_ptr + b))


def accept_greedy(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """How many drafts equal what the model chooses, and what it chooses after them.

    Args:
        tokens: [B, Q] int64, the newest token and its drafts; targets: [B, Q] int64, the choice after each of them.

    Returns:
        accepted [B] and following [B], int64.
    """
    batch, query_len = tokens.shape
    accepted, following = torch.empty((2, batch), dtype=torch.int64, device=tokens.device)
    block = triton.next_power_of_2(query_len)
    _accept_greedy_kernel[(batch,)](tokens, targets, accepted, following, query_len, BLOCK_Q=block, num_warps=1)
    return accepted, following


def extend(
    tokens: Tensor, accepted: Tensor, following: Tensor, context_lens: Tensor, record: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What came in a step, and where its rows lie.

    Args:
        record: [B, 1 + Q] int64, written: accepted drafts, -1 of a sequence that rests, and the tokens that came.

    Returns:
        extended [B, Q + d], picked [d, B] and kept [d, B], int64.
    """
    batch, query_len = tokens.shape
    drafts = query_len - 1
    extended = torch.empty((batch, query_len + drafts), dtype=torch.int64, device=tokens.device)
    picked, kept = torch.empty((2, drafts, batch), dtype=torch.int64, device=tokens.device)
    _extend_kernel[(batch,)](
        *(tokens, accepted, following, context_lens, extended, record, picked, kept, batch, query_len),
        BLOCK_Q=triton.next_power_of_2(query_len + drafts),
        num_warps=1,
    )
    return extended, picked, kept


def place_draft(drafts: Tensor, accepted: Tensor, extended: Tensor, tokens: Tensor, depth: int) -> None:
    """Write a depth's drafts [B] behind what came, and among the tokens of the next step."""
    args = (drafts, accepted, extended, tokens, depth, extended.shape[1], tokens.shape[1])
    _place_draft_kernel[(len(tokens),)](*args, num_warps=1)


def advance(accepted: Tensor, following: Tensor, context_lens: Tensor, lengths: Tensor, tokens: Tensor) -> None:
    """Count what came, and make what the model chose the newest token; a sequence that rests stays as it is."""
    args = (accepted, following, context_lens, lengths, tokens, tokens.shape[1])
    _advance_kernel[(len(tokens),)](*args, num_warps=1)
