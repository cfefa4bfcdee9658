"""Triton kernel for ``reference.ops.embedding``: a row copy."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from .layout import FLOATS, require


@triton.jit
def _embedding_kernel(
    token_ids_ptr,  # [T]
    weight_ptr,  # [V, D], contiguous
    y_ptr,  # [T, D], contiguous
    V,
    D,
    BLOCK_D: tl.constexpr,
):
    begin_kernel()
    t = tl.program_id(0).to(tl.int64)
    token = tl.load(token_ids_ptr + t).to(tl.int64)
    known = (token >= 0) & (token < V)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = tl.load(weight_ptr + token * D + d, mask=known & (d < D), other=float("nan"))  # an unknown token shows
    tl.store(y_ptr + t * D + d, row, mask=d < D)


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """Same contract as ``reference.ops.embedding``; the row of an id outside 0..V-1 is NaN.

    Raises:
        ValueError: a shape, layout or dtype that this kernel does not take; the message names it.
    """
    require(token_ids.dtype in (torch.int64, torch.int32), "embedding", "token_ids", token_ids, "int64 or int32")
    require(weight.ndim == 2 and weight.is_contiguous(), "embedding", "weight", weight, "[V, D], contiguous")
    require(weight.dtype in FLOATS, "embedding", "weight", weight, "float32, bfloat16 or float16")
    require(token_ids.device == weight.device, "embedding", "token_ids", token_ids, f"ids on {weight.device}")
    vocab_size, width = weight.shape
    y = torch.empty((*token_ids.shape, width), dtype=weight.dtype, device=weight.device)
    if y.numel() > 0:
        launch = launch_for("embedding", weight.device, D=width)
        grid = (token_ids.numel(), triton.cdiv(width, launch.options["BLOCK_D"]))
        _embedding_kernel[grid](token_ids.contiguous(), weight, y, vocab_size, width, **launch.options)
    return y
