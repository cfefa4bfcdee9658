"""Normalise and rotate queries and keys, and write keys and values into their cache slots: one launch.

Queries and keys stay in float32 from the norm to the rotation and are rounded once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from ..ops.layout import require, require_float
from ..ops.rope import cos_sin

REPLACES = ("qk_norm", "rope")
MAX_HEAD_DIM = 1024


@triton.jit
def _normed_and_rotated(x_ptr, offsets, weight_ptr, h, partner, cos, sin, exists, eps, H: tl.constexpr):
    """Heads [BLOCK_T, BLOCK_N, BLOCK_H] at ``offsets``; sin is negative in the first half of a pair, 0 beyond R.

    Only here a program waits for the kernel before: positions and slots are older than what that one writes.
    """
    weight = 1.0 + tl.load(weight_ptr + h, mask=h < H, other=0.0).to(tl.float32)
    other_weight = 1.0 + tl.load(weight_ptr + partner, mask=partner < H, other=0.0).to(tl.float32)
    begin_kernel()
    x = tl.load(x_ptr + offsets + h[None, None, :], mask=exists, other=0.0).to(tl.float32)
    other = tl.load(x_ptr + offsets + partner[None, None, :], mask=exists, other=0.0).to(tl.float32)
    per_rms = (1.0 / tl.sqrt(tl.sum(x * x, axis=2) / H + eps))[:, :, None]
    normed = x * per_rms * weight[None, None, :]
    other_normed = other * per_rms * other_weight[None, None, :]
    return normed * cos[:, None, :] + other_normed * sin[:, None, :]


@triton.jit
def _qk_norm_rope_cache_kernel(
    q_ptr,  # [T, N, H], column stride 1
    k_ptr,  # [T, K, H], column stride 1
    v_ptr,  # as k
    q_weight_ptr,  # [H]
    k_weight_ptr,  # [H]
    positions_ptr,  # [T]
    frequencies_ptr,  # [R / 2] float64
    slots_ptr,  # [T] int64
    y_ptr,  # [T, N, H], contiguous
    k_cache_ptr,  # [pages, PAGE_SIZE, K, H], column stride 1
    v_cache_ptr,  # as k_cache
    q_stride_t,
    q_stride_n,
    k_stride_t,
    k_stride_k,
    v_stride_t,
    v_stride_k,
    k_cache_stride_page,
    k_cache_stride_slot,
    k_cache_stride_k,
    v_cache_stride_page,
    v_cache_stride_slot,
    v_cache_stride_k,
    T,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    H: tl.constexpr,
    HALF: tl.constexpr,  # R / 2
    PAGE_SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,  # next power of two >= H
):
    q_blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    k_blocks: tl.constexpr = (K + BLOCK_N - 1) // BLOCK_N
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    block = tl.program_id(1)  # of query heads, then of keys, then of values
    h = tl.arange(0, BLOCK_H)
    in_head = (h < H)[None, None, :]
    in_tokens = t < T
    if block < q_blocks + k_blocks:
        is_first, rotates = h < HALF, h < 2 * HALF
        partner = tl.where(is_first, h + HALF, tl.where(rotates, h - HALF, h))
        frequencies = tl.load(frequencies_ptr + tl.where(is_first, h, h - HALF), mask=rotates, other=0.0)
        positions = tl.load(positions_ptr + t, mask=in_tokens, other=0)
        cos, sin = cos_sin(positions[:, None], frequencies[None, :])
        sin = tl.where(is_first[None, :], -sin, sin)
        if block < q_blocks:
            n = block * BLOCK_N + tl.arange(0, BLOCK_N)
            exists = (in_tokens[:, None] & (n < N)[None, :])[:, :, None] & in_head
            offsets = (t[:, None] * q_stride_t + n[None, :] * q_stride_n)[:, :, None]
            y = _normed_and_rotated(q_ptr, offsets, q_weight_ptr, h, partner, cos, sin, exists, eps, H)
            heads = (t[:, None] * N + n[None, :])[:, :, None] * H
            tl.store(y_ptr + heads + h[None, None, :], y.to(y_ptr.dtype.element_ty), mask=exists)
        else:
            n = (block - q_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
            slots = tl.load(slots_ptr + t, mask=in_tokens, other=-1)
            exists = ((slots >= 0)[:, None] & (n < K)[None, :])[:, :, None] & in_head
            offsets = (t[:, None] * k_stride_t + n[None, :] * k_stride_k)[:, :, None]
            y = _normed_and_rotated(k_ptr, offsets, k_weight_ptr, h, partner, cos, sin, exists, eps, H)
            rows = (slots // PAGE_SIZE) * k_cache_stride_page + (slots % PAGE_SIZE) * k_cache_stride_slot
            cells = (rows[:, None] + n[None, :] * k_cache_stride_k)[:, :, None] + h[None, None, :]
            tl.store(k_cache_ptr + cells, y.to(k_cache_ptr.dtype.element_ty), mask=exists)
    else:
        n = (block - q_blocks - k_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
        slots = tl.load(slots_ptr + t, mask=in_tokens, other=-1)
        begin_kernel()
        exists = ((slots >= 0)[:, None] & (n < K)[None, :])[:, :, None] & in_head
        offsets = (t[:, None] * v_stride_t + n[None, :] * v_stride_k)[:, :, None]
        v = tl.load(v_ptr + offsets + h[None, None, :], mask=exists, other=0.0)
        rows = (slots // PAGE_SIZE) * v_cache_stride_page + (slots % PAGE_SIZE) * v_cache_stride_slot
        cells = (rows[:, None] + n[None, :] * v_cache_stride_k)[:, :, None] + h[None, None, :]
        tl.store(v_cache_ptr + cells, v, mask=exists)


def qk_norm_rope_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    positions: Tensor,
    frequencies: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    """Apply ``qk_norm`` and ``rope`` to q and k, write k and v into the caches, and return q.

    A ring is a cache of one page: ``cache[None]`` with slots of position modulo its length.

    Args:
        q: [T, N, H]; k, v: [T, K, H], projections of T tokens; views into one tensor are fine.
        q_weight, k_weight: [H], zero-centred; eps: as in ``rms_norm``.
        positions: [T] int64, absolute; frequencies: [R/2] float64, R <= H.
        k_cache, v_cache: [num_pages, page_size, K, H] in the dtype of q; written.
        slot_mapping: [T] int64, page * page_size + slot of each token, no two equal; a negative one writes nothing.

    Returns:
        [T, N, H], normalised and rotated queries, in the dtype of q.

    Raises:
        ValueError: a shape or dtype that this kernel does not take; the message names it.
    """
    op = "qk_norm_rope_cache"
    require(q.ndim == 3 and q.stride(-1) == 1, op, "q", q, "[T, N, H] with column stride 1")
    require_float(op, q=q, k=k, v=v, k_cache=k_cache, v_cache=v_cache, q_weight=q_weight, k_weight=k_weight)
    num_tokens, num_heads, head_dim = q.shape
    require(0 < head_dim <= MAX_HEAD_DIM, op, "q", q, f"heads of 1 to {MAX_HEAD_DIM}")
    is_k = k.ndim == 3 and (k.shape[0], k.shape[-1], k.stride(-1), k.dtype) == (num_tokens, head_dim, 1, q.dtype)
    require(is_k, op, "k", k, f"[{num_tokens}, K, {head_dim}] {q.dtype} with column stride 1")
    is_v = (v.shape, v.stride(-1), v.dtype) == (k.shape, 1, k.dtype)
    require(is_v, op, "v", v, f"{tuple(k.shape)} {k.dtype} with column stride 1, as k")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        is_cache = cache.ndim == 4 and (cache.shape[2:], cache.stride(-1), cache.dtype) == (k.shape[1:], 1, q.dtype)
        want = f"[num_pages, page_size, {k.shape[1]}, {head_dim}] {q.dtype} with column stride 1"
        require(is_cache and cache.shape[:2] == k_cache.shape[:2], op, name, cache, want)
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        require(weight.shape == (head_dim,) and weight.is_contiguous(), op, name, weight, f"[{head_dim}]")
    for name, of_tokens in (("positions", positions), ("slot_mapping", slot_mapping)):
        is_whole = of_tokens.shape == (num_tokens,) and of_tokens.dtype == torch.int64 and of_tokens.is_contiguous()
        require(is_whole and of_tokens.device == q.device, op, name, of_tokens, f"[{num_tokens}] int64 on {q.device}")
    half = frequencies.shape[0] if frequencies.ndim == 1 else 0
    is_table = 0 < 2 * half <= head_dim and frequencies.dtype == torch.float64 and frequencies.device == q.device
    require(is_table, op, "frequencies", frequencies, f"[R/2] float64 on {q.device} with R from 2 to {head_dim}")

    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if num_tokens > 0:
        options = launch_for(op, q.device, T=num_tokens, H=head_dim).options
        blocks = triton.cdiv(num_heads, options["BLOCK_N"]) + 2 * triton.cdiv(k.shape[1], options["BLOCK_N"])
        strides = (tensor.stride()[:-1] for tensor in (q, k, v, k_cache, v_cache))
        _qk_norm_rope_cache_kernel[(triton.cdiv(num_tokens, options["BLOCK_T"]), blocks)](
            *(q, k, v, q_weight, k_weight, positions, frequencies, slot_mapping, y, k_cache, v_cache),
            *(stride for group in strides for stride in group),
            *(num_tokens, eps, num_heads, k.shape[1], head_dim, half, k_cache.shape[1]),
            BLOCK_H=triton.next_power_of_2(head_dim),
            **options,
        )
    return y
