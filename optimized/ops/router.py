"""Triton kernels for ``reference.ops.router``: logits in float32, then the choice of each token.

Two launches: one, in which the program that finishes a token's logits last chooses, took longer on an H200 (7.2 us
against 6.3 for one token, 2026-11-24), as it waits for memory three times more. The choice is eight maxima, one after
the other: four warps take them of a quarter of the experts each, and then rank 32 by comparing all with all (4.4 us for
both launches with one warp, 3.3 so).
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..fused.moe_math import sigmoid
from ..launch import launch_for
from .layout import require, require_float, rows_of

MAX_EXPERTS = 4096  # a token's scores stay in one program's registers
MOST_BY_PARTS = 16  # experts of a token that each part offers: all are compared with all
EPS: tl.constexpr = tl.constexpr(1e-20)  # the reference's, where all chosen sigmoids underflow
INFINITY: tl.constexpr = tl.constexpr(float("inf"))
LOWEST: tl.constexpr = tl.constexpr(-(2**31))


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
    if not DOT and BLOCK_D == SPLIT_D:  # the weight is read before x is there
        d = start + tl.arange(0, BLOCK_D)
        weight_at = weight_ptr + e[:, None] * weight_stride_e + d[None, :]
        weight = tl.load(weight_at, mask=(e[:, None] < E) & (d[None, :] < D), other=0.0)
        begin_kernel()
        x = tl.load(x_ptr + t[:, None] * x_stride_t + d[None, :], mask=(t[:, None] < T) & (d[None, :] < D), other=0.0)
        partial = x.to(tl.float32) * weight.to(tl.float32)
    else:
        begin_kernel()
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
def _take(key, score_bits, e, BLOCK_E: tl.constexpr):
    """Of each part, the largest key, its expert, the lower of equals, and its score; and the keys that are left."""
    best = tl.max(key, axis=2)[:, :, None]
    id = tl.min(tl.where(key == best, e, BLOCK_E), axis=2)[:, :, None]
    is_chosen = e == id
    chosen = tl.max(tl.where(is_chosen, score_bits, 0), axis=2)[:, :, None]
    return best, id, chosen, tl.where(is_chosen, LOWEST, key)


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
    PARTS: tl.constexpr,  # of the experts: a warp chooses from its own ones, and all from what they chose
    BLOCK_E: tl.constexpr,  # next power of two >= E
    BLOCK_A: tl.constexpr,  # next power of two >= A
):
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    # Scores are compared by their bits: of integers, a warp finds the largest at once.
    WIDTH: tl.constexpr = BLOCK_E // PARTS
    CANDIDATES: tl.constexpr = PARTS * BLOCK_A
    e = (tl.arange(0, PARTS) * WIDTH)[None, :, None] + tl.arange(0, WIDTH)[None, None, :]
    a = tl.arange(0, BLOCK_A)[None, None, :]
    is_there = (t[:, :, None] < T) & (e < E)
    bias = tl.load(bias_ptr + e, mask=e < E, other=0.0).to(tl.float32)
    begin_kernel()
    logits = tl.zeros((BLOCK_T, PARTS, WIDTH), tl.float32)
    for split in range(splits):
        at = logits_ptr + (split * T + t[:, :, None]) * E + e
        logits += tl.load(at, mask=is_there, other=0.0, cache_modifier=".cg")  # other programs wrote it
    score = sigmoid(logits)
    score_bits = score.to(tl.int32, bitcast=True)  # ordered as the scores: they are not negative, or NaN
    biased = score + bias
    biased = tl.where(biased == biased, biased, INFINITY)  # NaN chooses like the largest, and weighs NaN
    bits = (biased + 0.0).to(tl.int32, bitcast=True)  # one zero
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = tl.where(e < E, key, LOWEST)
    keys = tl.full((BLOCK_T, PARTS, BLOCK_A), LOWEST, tl.int32)
    ids = tl.zeros((BLOCK_T, PARTS, BLOCK_A), tl.int32)
    chosen = tl.zeros((BLOCK_T, PARTS, BLOCK_A), tl.int32)
    if PARTS == 1:
        for rank in range(A):
            best, id, bits_chosen, key = _take(key, score_bits, e, BLOCK_E)
            ids = tl.where(a == rank, id, ids)
            chosen = tl.where(a == rank, bits_chosen, chosen)
    else:
        for rank in tl.static_range(BLOCK_A):
            best, id, bits_chosen, key = _take(key, score_bits, e, BLOCK_E)
            keys = tl.where(a == rank, best, keys)
            ids = tl.where(a == rank, id, ids)
            chosen = tl.where(a == rank, bits_chosen, chosen)
    ids = tl.reshape(ids, (BLOCK_T, CANDIDATES))
    weights = tl.reshape(chosen, (BLOCK_T, CANDIDATES)).to(tl.float32, bitcast=True)
    if PARTS == 1:
        rank = tl.broadcast_to(tl.arange(0, BLOCK_A)[None, :], (BLOCK_T, CANDIDATES))
    else:
        keys = tl.reshape(keys, (BLOCK_T, CANDIDATES))
        is_before = keys[:, None, :] > keys[:, :, None]
        is_before = is_before | ((keys[:, None, :] == keys[:, :, None]) & (ids[:, None, :] < ids[:, :, None]))
        rank = tl.sum(is_before.to(tl.int32), axis=2)  # of a part with too few experts: no less than A
    is_slot = (t < T) & (rank < A)
    total = tl.sum(tl.where(rank < A, weights, 0.0), axis=1)[:, None] + EPS
    weights = tl.div_rn(weights, tl.broadcast_to(total, (BLOCK_T, CANDIDATES))) * scaling_factor
    tl.store(ids_ptr + t * A + rank, ids.to(tl.int64), mask=is_slot)
    tl.store(weights_ptr + t * A + rank, weights, mask=is_slot)


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
        launch = launch_for("router_logits", x.device, T=num_tokens, E=num_experts, D=width).options
        splits = triton.cdiv(width, launch["SPLIT_D"])
        logits = torch.empty((splits, num_tokens, num_experts), dtype=torch.float32, device=x.device)
        grid = (triton.cdiv(num_tokens, launch["BLOCK_T"]), triton.cdiv(num_experts, launch["BLOCK_E"]), splits)
        args = (rows, weight, logits, rows.stride(0), weight.stride(0), num_tokens, num_experts, width)
        _router_logits_kernel[grid](*args, **launch)
        launch = launch_for("router_choice", x.device, T=num_tokens, E=num_experts).options
        out = (ids, weights, splits, num_tokens, num_experts, top_k, float(scaling_factor))
        block_e, block_a = triton.next_power_of_2(num_experts), triton.next_power_of_2(top_k)
        blocks = {"BLOCK_E": block_e, "BLOCK_A": block_a, "PARTS": _parts(block_e, block_a, x.device, launch)}
        _router_choice_kernel[(triton.cdiv(num_tokens, launch["BLOCK_T"]),)](
            logits, bias.contiguous(), *out, **{**launch, **blocks}
        )
    return ids, weights


def _parts(block_e: int, block_a: int, device: torch.device, launch: Mapping[str, Any]) -> int:
    """Of the experts, for the choice. On a GPU, as many as warps: eight parts in four warps chose right and weighed
    wrong, as a sum over them left some out (Triton 3.6.0, H200, 2026-11-24).
    """
    parts: int = launch["PARTS"]
    if parts > 1 and device.type != "cpu" and parts != launch["num_warps"]:
        raise LookupError(f"router_choice: PARTS is {parts}; want 1 or {launch['num_warps']}, as many as num_warps")
    return 1 if block_a > MOST_BY_PARTS or block_e < parts else parts
