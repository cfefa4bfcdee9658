"""Triton kernel for ``reference.ops.qk_norm``: a tile of heads for each program, one trip to memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from .layout import require, rows_of

MAX_HEAD_DIM = 1024


@triton.jit
def unit_rms(x, H: tl.constexpr, eps):
    """Rows of float32 x divided by their root mean square; lanes beyond H hold 0."""
    mean_square = tl.sum(x * x, axis=1) / H
    return x * (1.0 / tl.sqrt(mean_square + eps))[:, None]


@triton.jit
def _head_norm_kernel(
    x_ptr,  # [rows, H], row stride x_stride, column stride 1
    weight_ptr,  # [H]
    y_ptr,  # [rows, H], contiguous
    x_stride,
    num_rows,
    eps,
    H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,  # next power of two >= H
):
    begin_kernel()
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    h = tl.arange(0, BLOCK_H)
    exists = (r < num_rows)[:, None] & (h < H)[None, :]
    x = tl.load(x_ptr + r[:, None] * x_stride + h[None, :], mask=exists, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + h, mask=h < H, other=0.0).to(tl.float32)
    y = unit_rms(x, H, eps) * (1.0 + weight)[None, :]
    tl.store(y_ptr + r[:, None] * H + h[None, :], y.to(y_ptr.dtype.element_ty), mask=exists)


def qk_norm(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Same contract as ``reference.ops.qk_norm``; a head's bits do not depend on the other heads.

    Raises:
        ValueError: a shape or dtype that this kernel does not take; the message names it.
    """
    return _normed("q", q, q_weight, eps), _normed("k", k, k_weight, eps)


def _normed(name: str, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows = rows_of("qk_norm", name, x)
    head_dim = x.shape[-1]
    require(weight.shape == (head_dim,), "qk_norm", f"{name}_weight", weight, f"[{head_dim}]")
    require(head_dim <= MAX_HEAD_DIM, "qk_norm", name, x, f"heads of at most {MAX_HEAD_DIM}")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows.numel() > 0:
        options = launch_for("qk_norm", x.device, H=head_dim).options
        grid = (triton.cdiv(len(rows), options["BLOCK_R"]),)
        args = (rows, weight.contiguous(), y, rows.stride(0), len(rows), eps, head_dim)
        _head_norm_kernel[grid](*args, BLOCK_H=triton.next_power_of_2(head_dim), **options)
    return y
