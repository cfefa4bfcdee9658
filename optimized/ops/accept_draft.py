"""Triton kernel for ``reference.ops.accept_draft``: one program for the drafts of a sequence and what follows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from .layout import require


@triton.jit
def _accept_draft_kernel(
    target_ptr,  # [B, N + 1, V] float32, contiguous
    draft_ptr,  # [N, B, V] float32, contiguous
    draft_ids_ptr,  # [B, N] int64, row stride ids_stride
    uniforms_ptr,  # [B, N + 1] float64, row stride uniforms_stride
    accepted_ptr,  # [B] int64
    following_ptr,  # [B] int64
    ids_stride,
    uniforms_stride,
    N,
    V,
    BLOCK_N: tl.constexpr,  # power of two > N
    BLOCK_V: tl.constexpr,
):
    begin_kernel()
    b, batch = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    n = tl.arange(0, BLOCK_N)
    is_draft = n < N
    target_rows = target_ptr + b * (N + 1) * V
    draft_rows = draft_ptr + b * V
    ids = tl.load(draft_ids_ptr + b * ids_stride + n, mask=is_draft, other=0)
    p = tl.load(target_rows + n.to(tl.int64) * V + ids, mask=is_draft, other=0.0).to(tl.float64)
    q = tl.load(draft_rows + n.to(tl.int64) * batch * V + ids, mask=is_draft, other=0.0).to(tl.float64)
    uniforms = tl.load(uniforms_ptr + b * uniforms_stride + n, mask=is_draft, other=0.0)
    rejected = uniforms * q >= p  # every place past the last draft, too
    accepted = tl.min(tl.where(rejected, n, N), axis=0).to(tl.int64)
    target_row, draft_row = target_rows + accepted * V, draft_rows + accepted * batch * V
    is_rejection = accepted < N
    total = tl.zeros((1,), dtype=tl.float64)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        total += tl.sum(_left(target_row, draft_row, v, V, is_rejection), axis=0)
    uniform = tl.load(uniforms_ptr + b * uniforms_stride + N)
    below = tl.zeros((1,), dtype=tl.float64)
    passed = tl.zeros((), dtype=tl.int32)
    last_possible = tl.zeros((), dtype=tl.int32)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        left = _left(target_row, draft_row, v, V, is_rejection)
        share = tl.where(is_rejection, left / total, left)  # a whole row is drawn from as it is
        cumulative = below + tl.cumsum(share, axis=0)
        passed += tl.sum(((v < V) & (cumulative <= uniform)).to(tl.int32), axis=0)
        last_possible = tl.maximum(last_possible, tl.max(tl.where(left > 0, v, 0), axis=0))
        below += tl.sum(share, axis=0)
    tl.store(accepted_ptr + b, accepted)
    tl.store(following_ptr + b, tl.minimum(passed, last_possible).to(tl.int64))


@triton.jit
def _left(target_ptr, draft_ptr, v, V, is_rejection):
    """What the next token is drawn from: the target's excess after a rejection, else the target."""
    p = tl.load(target_ptr + v, mask=v < V, other=0.0)
    q = tl.load(draft_ptr + v, mask=(v < V) & is_rejection, other=0.0)
    return tl.where(is_rejection, tl.maximum(p - q, 0.0), p).to(tl.float64)


def accept_draft(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> tuple[int, int]:
    """Same contract as ``reference.ops.accept_draft``; waits for the device, as it returns numbers.

    Raises:
        ValueError: a shape or dtype that this kernel does not take; the message names it.
    """
    num_drafts, vocab_size = draft_ids.shape[0], target.shape[-1]
    require(target.shape == (num_drafts + 1, vocab_size), "accept_draft", "target", target, f"[{num_drafts + 1}, V]")
    require(draft.shape == (num_drafts, vocab_size), "accept_draft", "draft", draft, f"[{num_drafts}, {vocab_size}]")
    require(target.numel() < 2**31, "accept_draft", "target", target, "fewer than 2**31 elements")
    require(uniforms.shape == (num_drafts + 1,), "accept_draft", "uniforms", uniforms, f"[{num_drafts + 1}]")
    for name, tensor in (("target", target), ("draft", draft)):
        require(tensor.dtype == torch.float32, "accept_draft", name, tensor, "float32")
    args = (target[None], draft[:, None], draft_ids.long()[None], uniforms.double()[None])
    accepted, following = accept_drafts(*args)[:, 0].tolist()
    return accepted, following


def accept_drafts(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> Tensor:
    """``accept_draft`` of each of B sequences, in one launch; nothing is read back.

    Args:
        target: [B, N + 1, V] float32; draft: [N, B, V] float32.
        draft_ids: [B, N] int64; uniforms: [B, N + 1] float64, both with unit column stride.

    Returns:
        [2, B] int64: accepted and following.
    """
    batch, num_drafts = draft_ids.shape
    vocab_size = target.shape[-1]
    outcomes = torch.empty((2, batch), dtype=torch.int64, device=target.device)
    options = launch_for("accept_draft", target.device, V=vocab_size).options
    _accept_draft_kernel[(batch,)](
        *(target.contiguous(), draft.contiguous(), draft_ids, uniforms, *outcomes),
        *(draft_ids.stride(0), uniforms.stride(0), num_drafts, vocab_size, triton.next_power_of_2(num_drafts + 1)),
        **options,
    )
    return outcomes
