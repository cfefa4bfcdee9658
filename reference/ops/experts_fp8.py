"""Routed experts on FP8 activations (W8A8): ``experts`` with the inputs of both products rounded to e4m3.

Source: vLLM and SGLang fused MoE with block-wise FP8; the intermediate is rounded anew before the down projection.
"""

import torch
from torch import Tensor

from ..quantization import Fp8Weight, dequantize_fp8_activation, quantize_fp8_activation
from .swiglu import swiglu


def experts_fp8(
    x: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    gate_weight: Fp8Weight,
    up_weight: Fp8Weight,
    down_weight: Fp8Weight,
    limit: float,
) -> Tensor:
    """Add up the chosen experts of each token, on rounded activations.

        q(z)  = the e4m3 codes of z times their scales, see ``quantize_activation``
        y[t] = sum_a w[t, a] * q(swiglu(q(x[t]) gate[e]', q(x[t]) up[e]', limit)) down[e]'   with e = ids[t, a]

    Args:
        x: [T, D].
        expert_ids: [T, A], distinct in each row; expert_weights: [T, A].
        gate_weight, up_weight: [E, F, D]; down_weight: [E, D, F]; e4m3 with 128x128 block scales.
        limit: clamp of ``swiglu``; 0 does not clamp.

    Returns:
        [T, D] in the dtype of ``x``; sums and intermediates in float32 or wider, rounded to e4m3 where q says so.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x_TD, weights_TA = rounded_to_fp8(x), expert_weights.to(wide)
    y_TD = torch.zeros(x.shape, dtype=wide, device=x.device)
    for expert in expert_ids.unique().tolist():
        token, slot = (expert_ids == expert).nonzero(as_tuple=True)
        rows = x_TD[token]
        gate = rows @ gate_weight[expert].dequantize(wide).T
        up = rows @ up_weight[expert].dequantize(wide).T
        inner = rounded_to_fp8(swiglu(gate, up, limit))
        contribution = inner @ down_weight[expert].dequantize(wide).T
        y_TD = y_TD.index_add(0, token, contribution * weights_TA[token, slot, None])
    return y_TD.to(x.dtype)


def rounded_to_fp8(x: Tensor) -> Tensor:
    """What is left of ``x`` after ``quantize_activation``, in float32 or wider."""
    codes, scale = quantize_fp8_activation(x)
    return dequantize_fp8_activation(codes, scale, dtype=torch.promote_types(x.dtype, torch.float32))
