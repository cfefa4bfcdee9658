"""Triton kernel for ``reference.ops.head_gate``: a tile of heads for each program, one trip to memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from .layout import require, require_float, rows_of

MAX_HEAD_DIM = 1024


@triton.jit
def _head_gate_kernel(
    x_ptr,  # [rows, H], row stride x_stride, column stride 1
    gate_ptr,  # [rows]
    y_ptr,  # [rows, H], contiguous
    x_stride,
    num_rows,
    H,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,  # next power of two >= H
):
    begin_kernel()
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    h = tl.arange(0, BLOCK_H)
    exists = (r < num_rows)[:, None] & (h < H)[None, :]
    x = tl.load(x_ptr + r[:, None] * x_stride + h[None, :], mask=exists, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + r, mask=r < num_rows, other=0.0).to(tl.float32)
    y = x * (1.0 / (1.0 + tl.exp(-gate)))[:, None]
    tl.store(y_ptr + r[:, None] * H + h[None, :], y.to(y_ptr.dtype.element_ty), mask=exists)


def head_gate(x: Tensor, gate: Tensor) -> Tensor:
    """Same contract as ``reference.ops.head_gate``.

    Raises:
        ValueError: a shape or dtype that this kernel does not take; the message names it.
    """
    rows = rows_of("head_gate", "x", x)
    head_dim = x.shape[-1]
    require_float("head_gate", x=x, gate=gate)
    require(gate.shape == x.shape[:-1], "head_gate", "gate", gate, f"{tuple(x.shape[:-1])}")
    require(head_dim <= MAX_HEAD_DIM, "head_gate", "x", x, f"heads of at most {MAX_HEAD_DIM}")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows.numel() > 0:
        options = dict(launch_for("head_gate", x.device, H=head_dim).options)
        options["BLOCK_R"] = min(options["BLOCK_R"], triton.next_power_of_2(len(rows)))
        grid = (triton.cdiv(len(rows), options["BLOCK_R"]),)
        args = (rows, gate.contiguous(), y, rows.stride(0), len(rows), head_dim)
        _head_gate_kernel[grid](*args, BLOCK_H=triton.next_power_of_2(head_dim), **options)
    return y
