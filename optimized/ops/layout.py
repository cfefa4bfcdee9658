"""What kernels take: refusals that name what is wrong, and views of rows without a copy where the strides allow it."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def require(holds: bool, op: str, name: str, tensor: Tensor, want: str) -> None:
    """Refuse an argument.

    Raises:
        ValueError: says the tensor's shape, strides and dtype, and what is wanted.
    """
    if not holds:
        got = f"{tuple(tensor.shape)} {tensor.dtype} with strides {tensor.stride()} on {tensor.device}"
        raise ValueError(f"{op}: {name} is {got}; want {want}")


def require_float(op: str, **tensors: Tensor) -> None:
    """Refuse what is not one of FLOATS, or lies on another device than the first."""
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        require(tensor.dtype in FLOATS, op, name, tensor, "float32, bfloat16 or float16")
        require(tensor.device == first.device, op, name, tensor, f"a tensor on {first.device}")


def rows_of(op: str, name: str, x: Tensor) -> Tensor:
    """View [..., D] as [rows, D] with unit column stride; copied only where no view exists.

    Raises:
        ValueError: no axis, or a dtype that kernels do not take.
    """
    require(x.ndim >= 1, op, name, x, "[..., D]")
    require_float(op, **{name: x})
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.numel() == 0 else rows.contiguous()
