"""Triton kernel for ``reference.ops.swiglu``: element-wise, one trip to memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..fused.moe_math import swiglu_of
from ..launch import launch_for
from .layout import require, rows_of


@triton.jit
def _swiglu_kernel(
    gate_ptr,  # [T, F], row stride gate_stride_t
    up_ptr,  # [T, F], row stride up_stride_t
    y_ptr,  # [T, F], contiguous
    gate_stride_t,
    up_stride_t,
    num_elements,
    F,
    limit,
    CLAMP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    begin_kernel()
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_there = i < num_elements
    t, f = i // F, i % F
    gate = tl.load(gate_ptr + t * gate_stride_t + f, mask=is_there, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + t * up_stride_t + f, mask=is_there, other=0.0).to(tl.float32)
    tl.store(y_ptr + i, swiglu_of(gate, up, limit, CLAMP).to(y_ptr.dtype.element_ty), mask=is_there)


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """Same contract as ``reference.ops.swiglu``.

    Raises:
        ValueError: shapes that differ, a dtype that kernels do not take, or a negative limit.
    """
    gates, ups = rows_of("swiglu", "gate", gate), rows_of("swiglu", "up", up)
    require(up.shape == gate.shape, "swiglu", "up", up, f"{tuple(gate.shape)}, as gate")
    require(up.device == gate.device, "swiglu", "up", up, f"a tensor on {gate.device}")
    require_limit("swiglu", limit)
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if y.numel() > 0:
        launch = launch_for("swiglu", gate.device, elements=y.numel())
        grid = (triton.cdiv(y.numel(), launch.options["BLOCK"]),)
        args = (gates, ups, y, gates.stride(0), ups.stride(0), y.numel(), gate.shape[-1], float(limit))
        _swiglu_kernel[grid](*args, CLAMP=limit > 0, **launch.options)
    return y


def require_limit(op: str, limit: float) -> None:
    """Refuse a clamp that is not 0 or above.

    Raises:
        ValueError: a negative limit, or NaN.
    """
    if not limit >= 0:
        raise ValueError(f"{op}: limit is {limit}; want 0 (no clamp) or above")
