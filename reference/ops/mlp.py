"""Gated feed-forward block: the dense layers, the MTP layers and the shared expert.

Source: StepFun modeling_step3p5.py; the clamp is ``swiglu_limits_shared`` of the layer.
"""

from torch import Tensor

from .linear import linear
from .swiglu import swiglu


def mlp(x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, limit: float) -> Tensor:
    """Project to F twice, combine by SwiGLU, project back.

        y = swiglu(x gate_weight', x up_weight', limit) down_weight'

    Args:
        x: [..., T, D].
        gate_weight, up_weight: [F, D]; down_weight: [D, F].
        limit: clamp of ``swiglu``; 0 does not clamp.

    Returns:
        [..., T, D] in the dtype of ``x``; each projection and the activation round once.
    """
    return linear(swiglu(linear(x, gate_weight), linear(x, up_weight), limit), down_weight)
