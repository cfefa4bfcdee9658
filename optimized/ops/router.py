"""Triton kernels for ``reference.ops.router``: logits in float32, then the choice of each token, in two launches."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..fused.moe_math import sigmoid
from ..launch import launch_for
from .layout import require, require_float, rows_of

MAX_EXPERTS = 4096  # a token's scores stay in one program's registers
EPS: tl.constexpr = tl.constexpr(1e-20)  # the reference's, where all chosen sigmoids underflow
INFINITY: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def _router_logits_kernel(
    x_ptr,  # [T, D], row stride x_stride_t, column stride 1
    weight_ptr,  # [E, D], row stride weight_stride_e, column stride 1
    logits_ptr,  # [splits, T, E] float32, contiguous: each a sum over SPLIT_D inputs
    x_stride_t,
    weight_stride_e,
    T,
    E,
    D,
    SPLIT_D: tl.constexpr,
    DOT: tl.constexpr,  # tensor cores, or products summed along a row
    BLOCK_T: tl.constexpr,  # 1 unless DOT
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    start = tl.program_id(2) * SPLIT_D
    total = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    partial = tl.zeros((BLOCK_E, BLOCK_D), tl.float32)
    for first in range(start, tl.minimum(start + SPLIT_D, D), BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        x_at = x_ptr + t[:, None] * x_stride_t + d[None, :]
        weight_at = weight_ptr + e[:, None] * weight_stride_e + d[None, :]
        x = tl.load(x_at, mask=(t[:, None] < T) & (d[None, :] < D), other=0.0)
        weight = tl.load(weight_at, mask=(e[:, None] < E) & (d[None, :] < D), other=0.0)
        if DOT and x.dtype == weight.dtype:
            total = tl.dot(x, tl.trans(weight), total, input_precision="ieee")
        elif DOT:
            total = tl.dot(x.to(tl.float32), tl.trans(weight.to(tl.float32)), total, input_precision="ieee")
        else:
            partial += x.to(tl.float32) * weight.to(tl.float32)
    if not DOT:
        total = tl.sum(partial, axis=1)[None, :]
    logits_at = logits_ptr + (tl.program_id(2) * T + t[:, None]) * E + e[None, :]
    tl.store(logits_at, total, mask=(t[:, None] < T) & (e[None, :] < E))


@triton.jit
def _router_choice_kernel(
    logits_ptr,  # [splits, T, E] float32
    bias_ptr,  # [E]
    ids_ptr,  # [T, A] int64, contiguous
    weights_ptr,  # [T, A] float32, contiguous
    splits,
    T,
    E,
    A,
    scaling_factor,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,  # next power of two >= E
    BLOCK_A: tl.constexpr,  # next power of two >= A
):
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.arange(0, BLOCK_E)
    a = tl.arange(0, BLOCK_A)
    is_there = (t[:, None] < T) & (e[None, :] < E)
    logits = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for split in range(splits):
        logits += tl.load(logits_ptr + (split * T + t[:, None]) * E + e[None, :], mask=is_there, other=0.0)
    score = sigmoid(logits)
    biased = score + tl.load(bias_ptr + e, mask=e < E, other=0.0).to(tl.float32)[None, :]
    biased = tl.where(biased == biased, biased, INFINITY)  # NaN chooses like the largest, and weighs NaN
    is_free = tl.broadcast_to(e[None, :] < E, (BLOCK_T, BLOCK_E))
    ids = tl.zeros((BLOCK_T, BLOCK_A), tl.int32)
    chosen = tl.zeros((BLOCK_T, BLOCK_A), tl.float32)
    for rank in range(A):
        best = tl.max(tl.where(is_free, biased, -INFINITY), axis=1)
        id = tl.min(tl.where(is_free & (biased == best[:, None]), e[None, :], BLOCK_E), axis=1)  # the lower of equals
        is_chosen = e[None, :] == id[:, None]
        weight = tl.sum(tl.where(is_chosen, score, 0.0), axis=1)
        ids = tl.where(a[None, :] == rank, id[:, None], ids)
        chosen = tl.where(a[None, :] == rank, weight[:, None], chosen)
        is_free = is_free & (is_chosen == 0)
    total = tl.sum(chosen, axis=1)[:, None] + EPS
    weights = tl.div_rn(chosen, tl.broadcast_to(total, (BLOCK_T, BLOCK_A))) * scaling_factor
    at = t[:, None] * A + a[None, :]
    is_slot = (t[:, None] < T) & (a[None, :] < A)
    tl.store(ids_ptr + at, ids.to(tl.int64), mask=is_slot)
    tl.store(weights_ptr + at, weights, mask=is_slot)


def router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling_factor: float) -> tuple[Tensor, Tensor]:
    """Same contract as ``reference.ops.router``, for up to 4096 experts.

    A row's bits do not depend on the number of rows, as long as ``launch_configs`` chooses the same blocks for it.

    Raises:
        ValueError: a shape, layout or dtype that these kernels do not take; the message names it.
    """
    require(x.ndim == 2, "router", "x", x, "[T, D]")
    rows = rows_of("router", "x", x)
    num_tokens, width = rows.shape
    require(weight.ndim == 2 and weight.shape[1] == width, "router", "weight", weight, f"[E, {width}]")
    num_experts = len(weight)
    require_float("router", weight=weight, bias=bias)
    require(weight.device == x.device, "router", "weight", weight, f"a tensor on {x.device}")
    require(0 < num_experts <= MAX_EXPERTS, "router", "weight", weight, f"1 to {MAX_EXPERTS} experts")
    require(bias.shape == (num_experts,), "router", "bias", bias, f"[{num_experts}]")
    if not 0 < top_k <= num_experts:
        raise ValueError(f"router: top_k is {top_k}; want 1 to {num_experts}, the number of experts")
    weight = weight if weight.stride(-1) == 1 else weight.contiguous()
    ids = torch.empty((num_tokens, top_k), dtype=torch.int64, device=x.device)
    weights = torch.empty((num_tokens, top_k), dtype=torch.float32, device=x.device)
    if num_tokens > 0:
        logits = _logits(rows, weight)
        choice = dict(launch_for("router_choice", x.device, T=num_tokens, E=num_experts).options)
        sizes = {"BLOCK_E": triton.next_power_of_2(num_experts), "BLOCK_A": triton.next_power_of_2(top_k)}
        grid = (triton.cdiv(num_tokens, choice["BLOCK_T"]),)
        out = (ids, weights, len(logits), num_tokens, num_experts, top_k, float(scaling_factor))
        _router_choice_kernel[grid](logits, bias.contiguous(), *out, **sizes, **choice)
    return ids, weights


def _logits(rows: Tensor, weight: Tensor) -> Tensor:
    (num_tokens, width), num_experts = rows.shape, len(weight)
    launch = launch_for("router_logits", rows.device, T=num_tokens, E=num_experts, D=width).options
    splits = triton.cdiv(width, launch["SPLIT_D"])
    logits = torch.empty((splits, num_tokens, num_experts), dtype=torch.float32, device=rows.device)
    grid = (triton.cdiv(num_tokens, launch["BLOCK_T"]), triton.cdiv(num_experts, launch["BLOCK_E"]), splits)
    args = (rows, weight, logits, rows.stride(0), weight.stride(0), num_tokens, num_experts, width)
    _router_logits_kernel[grid](*args, **launch)
    return logits
