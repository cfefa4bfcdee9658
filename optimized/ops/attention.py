"""Triton kernel for ``reference.ops.attention``: keys in any order, any positions; online softmax in float32.

The rows of a tile are the query heads of one key-value head, token after token, so a group of any size fills it.
Every key is visited: positions are data. ``fused.decode_attention`` and ``fused.prefill_attention`` know them and skip.
Where few rows meet many keys, several programs share the keys, and a second kernel adds up what they found.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import is_fixed_order, launch_for, multiprocessors
from .layout import require, require_float

MAX_HEAD_DIM = 256
SMALLEST_TILE = 16  # of a matrix product
PROGRAMS_PER_SM = 2
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
    y_ptr,  # [B, T, N, H], contiguous; of several splits [splits, B, T, N, BLOCK_H] float32
    log_sums_ptr,  # [splits, B, T, N] float32, base 2; of several splits only
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
    keys_of_split,
    window,
    scale,  # log2(e) / sqrt(H)
    SPLITS: tl.constexpr,
    G: tl.constexpr,  # query heads of a key-value head
    H: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,  # next power of two >= H
):
    begin_kernel()
    r = tl.program_id(0) // SPLITS * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(0) % SPLITS
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
    begin = split * keys_of_split
    end = tl.minimum(begin + keys_of_split, S)
    for first in range(begin, end, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S).to(tl.int64)
        key_positions = tl.load(key_positions_ptr + s, mask=s < end, other=-1)
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
    num_heads = tl.num_programs(1) * G
    y_rows = (b * T + t) * num_heads + n
    divisor = tl.where(total == 0.0, 1.0, total)
    y = mixed / divisor[:, None]
    if SPLITS == 1:
        mask = in_rows[:, None] & in_head[None, :]
        tl.store(y_ptr + y_rows[:, None] * H + h[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)
    else:
        y_rows += split.to(tl.int64) * tl.num_programs(2) * T * num_heads
        tl.store(y_ptr + y_rows[:, None] * BLOCK_H + h[None, :], y, mask=in_rows[:, None])
        tl.store(log_sums_ptr + y_rows, highest * scale + tl.log2(divisor), mask=in_rows)


@triton.jit
def _combine_kernel(
    partials_ptr,  # [splits, rows, BLOCK_H] float32, means over the keys of each split
    log_sums_ptr,  # [splits, rows] float32, base 2; -inf of a split that nothing was seen of
    y_ptr,  # [rows, H], contiguous
    rows,
    num_splits,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    begin_kernel()
    row, h = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_H)
    highest, total = float("-inf"), 0.0
    mixed = tl.zeros([BLOCK_H], tl.float32)
    for split in range(num_splits):
        log_sum = tl.load(log_sums_ptr + split * rows + row)
        if log_sum != float("-inf"):  # NaN is something that was seen
            higher = tl.maximum(highest, log_sum)
            weight, factor = tl.exp2(log_sum - higher), tl.exp2(highest - higher)
            mixed = mixed * factor + weight * tl.load(partials_ptr + (split * rows + row) * BLOCK_H + h)
            total, highest = total * factor + weight, higher
    y = mixed / tl.where(total == 0.0, 1.0, total)
    tl.store(y_ptr + row * H + h, y.to(y_ptr.dtype.element_ty), mask=h < H)


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
    if (
        q.device.type == "cpu"
    ):  # the interpreter's time goes with the tile; on a GPU, a fixed order's bits must not depend on T
        options["BLOCK_R"] = min(options["BLOCK_R"], max(SMALLEST_TILE, triton.next_power_of_2(num_tokens * group)))
        options["BLOCK_S"] = min(options["BLOCK_S"], max(SMALLEST_TILE, triton.next_power_of_2(num_keys)))
    block_h = max(SMALLEST_TILE, triton.next_power_of_2(head_dim))
    tiles = triton.cdiv(num_tokens * group, options["BLOCK_R"])
    keys_of_split = options.pop("KEYS_OF_SPLIT")
    splits = _splits(tiles * num_kv_heads * len(q4), num_keys, keys_of_split, q.device)
    partials, log_sums = y, query_positions
    if splits > 1:
        keys_of_split = triton.cdiv(triton.cdiv(num_keys, splits), options["BLOCK_S"]) * options["BLOCK_S"]
        rows = y.numel() // head_dim
        partials = torch.empty((splits, rows, block_h), dtype=torch.float32, device=q.device)
        log_sums = torch.empty((splits, rows), dtype=torch.float32, device=q.device)
    _attention_kernel[tiles * splits, num_kv_heads, len(q4)](
        *(q4, k4, v4, query_positions.to(q.device).contiguous(), key_positions.to(q.device).contiguous()),
        *(partials, log_sums, *q4.stride()[:3], *k4.stride()[:3], *v4.stride()[:3]),
        *(num_tokens, num_keys, keys_of_split if splits > 1 else num_keys, window or 0),
        *(LOG2_E / math.sqrt(head_dim), splits, group, head_dim, window is not None),
        BLOCK_H=block_h,
        **options,
    )
    if splits > 1:
        _combine_kernel[len(log_sums[0]),](partials, log_sums, y, rows, splits, head_dim, block_h, num_warps=4)
    return y


def _splits(programs: int, num_keys: int, least: int, device: torch.device) -> int:
    """How many programs share the keys of a tile: as many as there is room for beside each other, of at least so many
    keys each. In a fixed order one has them all, as more would be a matter of how many rows there are.
    """
    if is_fixed_order():
        return 1
    return max(1, min(PROGRAMS_PER_SM * multiprocessors(device) // programs, num_keys // least))


def _with_one_batch_axis(x: Tensor) -> Tensor:
    x = x.reshape(-1, *x.shape[-3:])
    return x if x.stride(-1) == 1 else x.contiguous()
