"""Kernels under chosen launch configurations, against the legal evaluations of their profile."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from kernels import DEVICE
from torch import Tensor

from conformance.counters import Counters
from conformance.oracle import exact, legal
from conformance.profiles import PROFILES
from conformance.tolerance import Envelope
from optimized.fused.moe import Gated, gated_block
from optimized.fused.moe_stored import stored
from optimized.launch import trying
from optimized.runner import with_expert_axis
from reference.quantization import FORMATS, Fp8Weight, Int4Weight

FORMAT_OF = {"w8a16": "fp8", "w4a16": "int4"}


def quantized(profile: str, *shape: int, seed: int = 0) -> Any:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5
    return FORMATS[FORMAT_OF[profile]].quantize(weight)


def rows(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(7)).to(torch.bfloat16)


def moved(value: Any) -> Any:
    if isinstance(value, Fp8Weight):
        return Fp8Weight(value.data.to(DEVICE), value.scale_inv.to(DEVICE), value.block)
    if isinstance(value, Int4Weight):
        return Int4Weight(value.data.to(DEVICE), value.scale.to(DEVICE), value.group)
    return value.to(DEVICE) if isinstance(value, Tensor) else value


def gated(x: Tensor, gate: Any, up: Any, down: Any, limit: float) -> Tensor:
    """``mlp`` on quantised weights, as the model runs it."""
    held = (stored("mlp", "weight", with_expert_axis(weight), (1, *weight.shape), x) for weight in (gate, up, down))
    return gated_block("mlp", x, Gated(*held, limit), None)


def check(
    op: str,
    profile: str,
    launches: Mapping[str, Mapping[str, Any]],
    run: Any,
    args: tuple[Any, ...],
    judged: tuple[Any, ...] | None = None,
) -> None:
    """``judged``: the same arguments as the reference's row takes them."""
    with ExitStack() as stack:
        for kernel, options in launches.items():
            stack.enter_context(trying(kernel, options))
        got = run(*map(moved, args)).cpu()
    judged = judged or args
    bounds = Envelope(legal(op, PROFILES[profile], *judged), exact(op, *judged))
    bounds.check(got, Counters(), f"{op}, {profile}")
