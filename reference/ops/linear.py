"""Matrix product with a stored weight; the model has no biases.

Source: StepFun modeling_step3p5.py; weights are stored [out, in].
"""

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply each row by the weight.

        y[t, o] = sum_i x[t, i] weight[o, i]

    Args:
        x: [..., T, I].
        weight: [O, I], any floating dtype.

    Returns:
        [..., T, O] in the dtype of ``x``; accumulated in float32 or wider, rounded once.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(wide) @ weight.to(wide).T).to(x.dtype)
