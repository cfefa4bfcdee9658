"""Triton kernels for ``reference.ops.mtp_input``: both norms in one launch, then the projection."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from .layout import require, require_float, rows_of
from .linear import linear
from .rms_norm import MAX_WIDTH


@triton.jit
def _norm_both_kernel(
    embedded_ptr,  # [T, D]
    hidden_ptr,  # [T, D]
    enorm_ptr,  # [D]
    hnorm_ptr,  # [D]
    y_ptr,  # [T, 2 D], contiguous
    embedded_stride_t,
    hidden_stride_t,
    D,
    eps,
    BLOCK_D: tl.constexpr,
):
    begin_kernel()
    t = tl.program_id(0).to(tl.int64)
    is_hidden = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    in_row = d < D
    if is_hidden:
        x = tl.load(hidden_ptr + t * hidden_stride_t + d, mask=in_row, other=0.0).to(tl.float32)
        weight = tl.load(hnorm_ptr + d, mask=in_row, other=0.0).to(tl.float32)
    else:
        x = tl.load(embedded_ptr + t * embedded_stride_t + d, mask=in_row, other=0.0).to(tl.float32)
        weight = tl.load(enorm_ptr + d, mask=in_row, other=0.0).to(tl.float32)
    y = x * (1.0 / tl.sqrt(tl.sum(x * x, axis=0) / D + eps)) * (1.0 + weight)
    tl.store(y_ptr + t * 2 * D + is_hidden * D + d, y.to(y_ptr.dtype.element_ty), mask=in_row)


def mtp_input(
    embedded: Tensor,
    hidden: Tensor,
    enorm_weight: Tensor,
    hnorm_weight: Tensor,
    eh_weight: Tensor,
    eps: float,
) -> Tensor:
    """Same contract as ``reference.ops.mtp_input``.

    Raises:
        ValueError: a shape, layout or dtype that these kernels do not take; the message names it.
    """
    width = hidden.shape[-1]
    require(embedded.shape == hidden.shape, "mtp_input", "embedded", embedded, f"{tuple(hidden.shape)}, as hidden")
    require(embedded.dtype == hidden.dtype, "mtp_input", "embedded", embedded, f"{hidden.dtype}, as hidden")
    require(enorm_weight.shape == (width,), "mtp_input", "enorm_weight", enorm_weight, f"[{width}]")
    require(hnorm_weight.shape == (width,), "mtp_input", "hnorm_weight", hnorm_weight, f"[{width}]")
    require(width <= MAX_WIDTH, "mtp_input", "hidden", hidden, f"rows of at most {MAX_WIDTH}")
    require_float("mtp_input", hidden=hidden, embedded=embedded, enorm_weight=enorm_weight, hnorm_weight=hnorm_weight)
    first, second = rows_of("mtp_input", "embedded", embedded), rows_of("mtp_input", "hidden", hidden)
    joined = torch.empty((*hidden.shape[:-1], 2 * width), dtype=hidden.dtype, device=hidden.device)
    if joined.numel() > 0:
        launch = launch_for("rms_norm", hidden.device, D=width)
        args = (first, second, enorm_weight.contiguous(), hnorm_weight.contiguous(), joined)
        block = triton.next_power_of_2(width)
        strides = (first.stride(0), second.stride(0))
        _norm_both_kernel[(len(second), 2)](*args, *strides, width, eps, BLOCK_D=block, **launch.options)
    return linear(joined, eh_weight)
