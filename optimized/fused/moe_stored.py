"""A stack of experts' weights as kernels read it: codes, scales, and what they stand for."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from reference.quantization import Fp8Weight, Int4Weight, QuantizedWeight

from ..ops.layout import FLOATS, require
from .moe_math import FP8, GROUP, INT4, PLAIN


@dataclass(frozen=True)
class Stored:
    """A weight [E, O, I].

    Attributes:
        codes: [E, O, I], or [E, O, I / 2] bytes of int4; unit stride along inputs.
        scale: [E, ceil(O / 128), ceil(I / 128)] of FP8, [E, O, ceil(I / 128)] of int4, contiguous; else ``codes``.
        kind: PLAIN, FP8 or INT4.
    """

    codes: Tensor
    scale: Tensor
    kind: int

    @property
    def strides(self) -> tuple[int, ...]:
        """Of expert and output, in codes and in scales."""
        return (*self.codes.stride()[:2], *self.scale.stride()[:2])


def stored(op: str, name: str, weight: Tensor | QuantizedWeight, shape: tuple[int, int, int], x: Tensor) -> Stored:
    """View a weight of the given shape, on the device of ``x``; codes are never copied.

    Raises:
        ValueError: shape, dtype, block or group, device or strides that kernels do not take.
    """
    if isinstance(weight, Fp8Weight):
        codes, scale, kind, width = weight.data, weight.scale_inv, FP8.value, shape[2]
        if weight.block != (GROUP.value, GROUP.value):
            raise ValueError(f"{op}: {name} has a scale for {weight.block}; want 128 outputs x 128 inputs")
    elif isinstance(weight, Int4Weight):
        codes, scale, kind, width = weight.data, weight.scale, INT4.value, shape[2] // 2
        if weight.group != GROUP.value and shape[2] > min(weight.group, GROUP.value):
            raise ValueError(f"{op}: {name} has a scale for {weight.group} inputs; want 128")
    else:
        codes, scale, kind, width = weight, weight, PLAIN.value, shape[2]
        require(weight.dtype in FLOATS, op, name, weight, "float32, bfloat16 or float16")
    require(tuple(weight.shape) == shape, op, name, codes, f"{list(shape)}")
    require(codes.device == x.device, op, name, codes, f"a tensor on {x.device}")
    require(codes.shape[-1] == width and (codes.stride(-1) == 1 or width == 1), op, name, codes, "unit stride")
    return Stored(codes, scale if kind == PLAIN.value else scale.contiguous(), kind)


def require_alike(op: str, gate: Stored, up: Stored) -> None:
    """Refuse a gate and an up projection that one program cannot read side by side.

    Raises:
        ValueError: other formats or strides.
    """
    alike = gate.kind == up.kind and gate.strides == up.strides and gate.codes.dtype == up.codes.dtype
    want = f"the format and strides of gate_weight, {gate.codes.dtype} {gate.codes.stride()}"
    require(alike, op, "up_weight", up.codes, want)


def num_groups(width: int) -> int:
    """Scales along that many inputs."""
    return int(triton.cdiv(width, GROUP.value))


def is_whole(*widths: int) -> bool:
    """Whether every width is made of whole groups, so that kernels need no masks along it."""
    return all(width % GROUP.value == 0 for width in widths)


def format_of(x: Tensor, weight: Stored, rounds: bool) -> str:
    """The name that launch configurations use: float32, bf16, float16, fp8, w8a16 or w4a16."""
    if weight.kind == PLAIN.value:
        return {torch.float32: "float32", torch.bfloat16: "bf16", torch.float16: "float16"}[x.dtype]
    if weight.kind == INT4.value:
        return "w4a16"
    return "fp8" if rounds else "w8a16"
