"""Grouped-query attention over cached keys, causal, with or without a sliding window.

Source: StepFun modeling_step3p5.py (mask ``j > i - window``), as vLLM, llama.cpp and mlx-lm; StepFun's training kernel
and SGLang see one key more (ask for window 513 to follow them).
"""

import math

import torch
from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, query_positions: Tensor, key_positions: Tensor, window: int | None
) -> Tensor:
    """Mix values by the softmax of scaled scores; positions decide what is visible.

        visible(i, j) = 0 <= p_j <= p_i  and  (window is None or p_i - p_j < window)
        y[i, n] = sum_j softmax_j(q[i, n] . k[j, n // G] / sqrt(H) where visible) v[j, n // G]

    Args:
        q: [..., T, N, H] after norm and rotation.
        k, v: [..., S, K, H]; query head n reads key-value head n // (N / K).
        query_positions: [T]; key_positions: [S]. The order of keys is free; a negative position marks an empty slot,
            whose contents are never read.
        window: how many keys a query sees, itself included; None sees all.

    Returns:
        [..., T, N, H] in the dtype of ``q``; every query must see at least one key.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    num_groups = k.shape[-2]
    distance_TS = query_positions[:, None] - key_positions[None, :]
    visible_TS = (distance_TS >= 0) & (key_positions >= 0)
    if window is not None:
        visible_TS = visible_TS & (distance_TS < window)
    empty_S11 = (key_positions < 0)[:, None, None]
    k_SKH = k.to(wide).masked_fill(empty_S11, 0)  # an unused slot may hold NaN, and 0 * NaN is NaN
    v_SKH = v.to(wide).masked_fill(empty_S11, 0)
    q_TKGH = q.to(wide).unflatten(-2, (num_groups, -1))
    scores_KGTS = torch.einsum("...tkgh,...skh->...kgts", q_TKGH, k_SKH) / math.sqrt(q.shape[-1])
    weights_KGTS = scores_KGTS.masked_fill(~visible_TS, -math.inf).softmax(dim=-1)
    mixed_TKGH = torch.einsum("...kgts,...skh->...tkgh", weights_KGTS, v_SKH)
    return mixed_TKGH.flatten(-3, -2).to(q.dtype)
