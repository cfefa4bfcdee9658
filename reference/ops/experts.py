"""Routed experts: each token's chosen SwiGLU blocks, summed with the router's weights.

Source: StepFun modeling_step3p5.py, which runs experts in float32; this sums the contributions wide and rounds once.
"""

import torch
from torch import Tensor

from ..quantization import QuantizedWeight, dense
from .swiglu import swiglu


def experts(
    x: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    gate_weight: Tensor | QuantizedWeight,
    up_weight: Tensor | QuantizedWeight,
    down_weight: Tensor | QuantizedWeight,
    limit: float,
) -> Tensor:
    """Add up the chosen experts of each token.

        y[t] = sum_a w[t, a] * swiglu(x[t] gate[e]', x[t] up[e]', limit) down[e]'   with e = ids[t, a]

    Args:
        x: [T, D].
        expert_ids: [T, A], distinct in each row; expert_weights: [T, A].
        gate_weight, up_weight: [E, F, D]; down_weight: [E, D, F]; a quantised weight is widened one expert at a time.
        limit: clamp of ``swiglu``; 0 does not clamp.

    Returns:
        [T, D] in the dtype of ``x``; computed in float32 or wider throughout, rounded once. The shared expert is not
        part of it.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x_TD, weights_TA = x.to(wide), expert_weights.to(wide)
    y_TD = torch.zeros_like(x_TD)
    for expert in expert_ids.unique().tolist():
        token, slot = (expert_ids == expert).nonzero(as_tuple=True)
        rows = x_TD[token]
        gate = rows @ dense(gate_weight[expert], wide).T
        up = rows @ dense(up_weight[expert], wide).T
        contribution = swiglu(gate, up, limit) @ dense(down_weight[expert], wide).T
        y_TD = y_TD.index_add(0, token, contribution * weights_TA[token, slot, None])
    return y_TD.to(x.dtype)
