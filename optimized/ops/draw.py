"""Triton kernel for ``reference.ops.draw``: the running sum of a row, in float64, against its uniform number."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from .layout import require


@triton.jit
def _draw_kernel(
    probabilities_ptr,  # [T, V], contiguous
    uniforms_ptr,  # [T] float64
    y_ptr,  # [T] int64
    T,
    V,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    begin_kernel()
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    uniform = tl.load(uniforms_ptr + t, mask=t < T, other=0.0)
    below = tl.zeros((BLOCK_T,), dtype=tl.float64)  # what the blocks before sum to
    passed = tl.zeros((BLOCK_T,), dtype=tl.int32)  # tokens whose cumulative probability does not exceed the number
    last_possible = tl.zeros((BLOCK_T,), dtype=tl.int32)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        at = t.to(tl.int64)[:, None] * V + v[None, :]
        inside = (t < T)[:, None] & (v < V)[None, :]
        p = tl.load(probabilities_ptr + at, mask=inside, other=0.0).to(tl.float64)
        cumulative = below[:, None] + tl.cumsum(p, axis=1)
        passed += tl.sum((inside & (cumulative <= uniform[:, None])).to(tl.int32), axis=1)
        last_possible = tl.maximum(last_possible, tl.max(tl.where(p > 0, v[None, :], 0), axis=1))
        below += tl.sum(p, axis=1)
    tl.store(y_ptr + t, tl.minimum(passed, last_possible).to(tl.int64), mask=t < T)


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Same contract as ``reference.ops.draw``.

    Raises:
        ValueError: a shape or dtype that this kernel does not take; the message names it.
    """
    require(probabilities.ndim == 2, "draw", "probabilities", probabilities, "[T, V]")
    require(probabilities.dtype in (torch.float32, torch.float64), "draw", "probabilities", probabilities, "float32")
    require(uniforms.shape == probabilities.shape[:1], "draw", "uniforms", uniforms, f"[{len(probabilities)}]")
    num_rows, vocab_size = probabilities.shape
    y = torch.empty(num_rows, dtype=torch.int64, device=probabilities.device)
    if num_rows > 0:
        launch = launch_for("draw", probabilities.device, T=num_rows, V=vocab_size)
        args = (probabilities.contiguous(), uniforms.double().contiguous(), y, num_rows, vocab_size)
        _draw_kernel[(triton.cdiv(num_rows, launch.options["BLOCK_T"]),)](*args, **launch.options)
    return y
