"""Triton kernel for ``reference.ops.attention``: keys in any order, any positions; online softmax in float32.

The rows of a tile are the query heads of one key-value head, token after token, so a group of any size fills it.
Every key is visited: positions are data. ``fused.decode_attention`` and ``fused.prefill_attention`` know them and skip.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from .layout import require, require_float

MAX_HEAD_DIM = 256
SMALLEST_TILE = 16  # of a matrix product
LOG2_E = math.log2(math.e)


@triton.jit
def softmax_step(scores, scale, highest, total):
    """One block of an online softmax; scores are raw, hidden ones -inf.

    Returns:
        The block's weights, the factor for what was summed before, the new maximum and the new sum.
    """
    higher = tl.maximum(highest, tl.max(scores, axis=1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: -inf - -inf would be NaN
    weights = tl.exp2((scores - base[:, None]) * scale)  # the difference first: the highest has weight 1, exactly
    factor = tl.exp2((highest - base) * scale)
    return weights, factor, higher, total * factor + tl.sum(weights, axis=1)


@triton.jit
def _attention_kernel(
    q_ptr,  # [B, T, N, H], column stride 1
    k_ptr,  # [B, S, K, H], column stride 1
    v_ptr,  # as k
    query_positions_ptr,  # [T]
    key_positions_ptr,  # [S]
    y_ptr,  # [B, T, N, H], contiguous
    q_stride_b,
    q_stride_t,
    q_stride_n,
    k_stride_b,
    k_stride_s,
    k_stride_k,
    v_stride_b,
    v_stride_s,
    v_stride_k,
    T,
    S,
    window,
    scale,  # log2(e) / sqrt(H)
    G: tl.constexpr,  # query heads of a key-value head
    H: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,  # next power of two >= H
):
    begin_kernel()
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    head = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    h = tl.arange(0, BLOCK_H)
    t, n = r // G, head * G + r % G
    in_head, in_rows = h < H, t < T
    q_rows = b * q_stride_b + t.to(tl.int64) * q_stride_t + n * q_stride_n
    q = tl.load(q_ptr + q_rows[:, None] + h[None, :], mask=in_rows[:, None] & in_head[None, :], other=0.0)
    query_positions = tl.load(query_positions_ptr + t, mask=in_rows, other=-1)
    highest = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    mixed = tl.zeros([BLOCK_R, BLOCK_H], tl.float32)
    k_ptr += b * k_stride_b + head * k_stride_k
    v_ptr += b * v_stride_b + head * v_stride_k
    for first in range(0, S, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S).to(tl.int64)
        key_positions = tl.load(key_positions_ptr + s, mask=s < S, other=-1)
        is_used = key_positions >= 0  # an empty slot may hold NaN, and 0 * NaN is NaN: it is not read
        readable = is_used[:, None] & in_head[None, :]
        k = tl.load(k_ptr + s[:, None] * k_stride_s + h[None, :], mask=readable, other=0.0)
        v = tl.load(v_ptr + s[:, None] * v_stride_s + h[None, :], mask=readable, other=0.0)
        distance = query_positions[:, None] - key_positions[None, :]
        visible = (distance >= 0) & is_used[None, :]
        if HAS_WINDOW:
            visible = visible & (distance < window)
        scores = tl.where(visible, tl.dot(q, tl.trans(k), input_precision="ieee"), float("-inf"))
        weights, factor, highest, total = softmax_step(scores, scale, highest, total)
        mixed = tl.dot(weights.to(v.dtype), v, mixed * factor[:, None], input_precision="ieee")
    y_rows = (b * T + t) * (tl.num_programs(1) * G) + n
    y = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    mask = in_rows[:, None] & in_head[None, :]
    tl.store(y_ptr + y_rows[:, None] * H + h[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


def attention(
    q: Tensor, k: Tensor, v: Tensor, query_positions: Tensor, key_positions: Tensor, window: int | None
) -> Tensor:
    """Same contract as ``reference.ops.attention``.

    Raises:
        ValueError: a shape or dtype that this kernel does not take; the message names it.
    """
    require(q.ndim >= 3, "attention", "q", q, "[..., T, N, H]")
    require_float("attention", q=q, k=k, v=v)
    batch, (num_tokens, num_heads, head_dim) = q.shape[:-3], q.shape[-3:]
    want = f"{tuple(batch)} with [S, K, {head_dim}] after it, K a divisor of {num_heads}, in the dtype of q"
    has_axes = k.ndim == q.ndim and k.shape[:-3] == batch and k.shape[-1] == head_dim
    divides = has_axes and k.shape[-2] > 0 and num_heads % k.shape[-2] == 0
    require(divides and k.dtype == q.dtype, "attention", "k", k, want)
    require(v.shape == k.shape and v.dtype == k.dtype, "attention", "v", v, f"{tuple(k.shape)} {k.dtype}, as k")
    num_keys, num_kv_heads = k.shape[-3:-1]
    require(head_dim <= MAX_HEAD_DIM, "attention", "q", q, f"heads of at most {MAX_HEAD_DIM}")
    require(query_positions.shape == (num_tokens,), "attention", "query_positions", query_positions, f"[{num_tokens}]")
    require(key_positions.shape == (num_keys,), "attention", "key_positions", key_positions, f"[{num_keys}]")
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if y.numel() == 0:
        return y
    q4, k4, v4 = (_with_one_batch_axis(tensor) for tensor in (q, k, v))
    group = num_heads // num_kv_heads
    options = dict(launch_for("attention", q.device, dtype=str(q.dtype).removeprefix("torch.")).options)
    if q.device.type == "cpu":  # the interpreter's time goes with the tile; on a GPU, bits must not depend on T
        options["BLOCK_R"] = min(options["BLOCK_R"], max(SMALLEST_TILE, triton.next_power_of_2(num_tokens * group)))
        options["BLOCK_S"] = min(options["BLOCK_S"], max(SMALLEST_TILE, triton.next_power_of_2(num_keys)))
    grid = (triton.cdiv(num_tokens * group, options["BLOCK_R"]), num_kv_heads, q4.shape[0])
    _attention_kernel[grid](
        *(q4, k4, v4, query_positions.to(q.device).contiguous(), key_positions.to(q.device).contiguous(), y),
        *(*q4.stride()[:3], *k4.stride()[:3], *v4.stride()[:3]),
        *(num_tokens, num_keys, window or 0, LOG2_E / math.sqrt(head_dim), group, head_dim, window is not None),
        BLOCK_H=max(SMALLEST_TILE, triton.next_power_of_2(head_dim)),
        **options,
    )
    return y


def _with_one_batch_axis(x: Tensor) -> Tensor:
    x = x.reshape(-1, *x.shape[-3:])
    return x if x.stride(-1) == 1 else x.contiguous()
