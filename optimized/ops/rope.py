"""Triton kernel for ``reference.ops.rope``: angles in float64, reduced to one turn before they become float32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from .layout import require, require_float

MAX_HEAD_DIM = 1024


@triton.jit
def cos_sin(positions, frequencies):
    """Float32 cosine and sine of position times frequency; the product and its reduction are float64."""
    turn = tl.full([], 6.283185307179586, tl.float64)  # a literal beside a tensor may become float32
    per_turn = tl.full([], 0.15915494309189535, tl.float64)
    angles = positions.to(tl.float64) * frequencies
    within_turn = (angles - tl.floor(angles * per_turn + 0.5) * turn).to(tl.float32)  # at most pi
    return tl.cos(within_turn), tl.sin(within_turn)


@triton.jit
def _rope_kernel(
    x_ptr,  # [L * T, N, H], contiguous
    positions_ptr,  # [T]
    frequencies_ptr,  # [R / 2] float64
    y_ptr,  # [L * T, N, H], contiguous
    num_rows,  # L * T
    T,
    N,
    H: tl.constexpr,
    HALF: tl.constexpr,  # R / 2
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,  # next power of two >= H
):
    begin_kernel()
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    h = tl.arange(0, BLOCK_H)
    is_first, rotates = h < HALF, h < 2 * HALF
    partner = tl.where(is_first, h + HALF, tl.where(rotates, h - HALF, h))
    frequencies = tl.load(frequencies_ptr + tl.where(is_first, h, h - HALF), mask=rotates, other=0.0)
    positions = tl.load(positions_ptr + t % T, mask=t < num_rows, other=0)
    cos, sin = cos_sin(positions[:, None], frequencies[None, :])
    sin = tl.where(is_first[None, :], -sin, sin)
    rows = (t[:, None] * N + n[None, :])[:, :, None] * H
    exists = ((t < num_rows)[:, None] & (n < N)[None, :])[:, :, None] & (h < H)[None, None, :]
    x = tl.load(x_ptr + rows + h[None, None, :], mask=exists, other=0.0)
    other = tl.load(x_ptr + rows + partner[None, None, :], mask=exists, other=0.0).to(tl.float32)
    rotated = x.to(tl.float32) * cos[:, None, :] + other * sin[:, None, :]
    y = tl.where(rotates[None, None, :], rotated.to(x.dtype), x)
    tl.store(y_ptr + rows + h[None, None, :], y, mask=exists)


def rope(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Same contract as ``reference.ops.rope``.

    Raises:
        ValueError: a shape or dtype that this kernel does not take; the message names it.
    """
    require(x.ndim >= 3, "rope", "x", x, "[..., T, N, H]")
    require_float("rope", x=x)
    num_tokens, num_heads, head_dim = x.shape[-3:]
    half = frequencies.shape[0] if frequencies.ndim == 1 else 0
    require(head_dim <= MAX_HEAD_DIM, "rope", "x", x, f"heads of at most {MAX_HEAD_DIM}")
    require(positions.shape == (num_tokens,), "rope", "positions", positions, f"[{num_tokens}]")
    require(0 < 2 * half <= head_dim, "rope", "frequencies", frequencies, f"[R/2] with R from 2 to {head_dim}")
    require(frequencies.dtype == torch.float64, "rope", "frequencies", frequencies, "float64")
    rows = x.contiguous().view(-1, num_heads, head_dim) if x.numel() else x.new_empty((0, num_heads, head_dim))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows.numel() > 0:
        options = dict(launch_for("rope", x.device, N=num_heads, H=head_dim).options)
        options["BLOCK_T"] = min(options["BLOCK_T"], triton.next_power_of_2(len(rows)))
        options["BLOCK_N"] = min(options["BLOCK_N"], triton.next_power_of_2(num_heads))
        grid = (triton.cdiv(len(rows), options["BLOCK_T"]), triton.cdiv(num_heads, options["BLOCK_N"]))
        args = (rows, positions.to(x.device).contiguous(), frequencies.to(x.device).contiguous(), y)
        sizes = (len(rows), num_tokens, num_heads, head_dim, half)
        _rope_kernel[grid](*args, *sizes, BLOCK_H=triton.next_power_of_2(head_dim), **options)
    return y
