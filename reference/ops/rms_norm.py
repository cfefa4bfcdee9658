"""Root-mean-square normalisation with a zero-centred weight; every norm of the model is this one.

Source: vLLM step3p5.py (GemmaRMSNorm); mlx-lm adds the 1 while loading instead.
"""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide each row by its root mean square, then scale by ``1 + weight``.

        y[t, d] = x[t, d] / sqrt(mean_d(x[t, d]^2) + eps) * (1 + weight[d])

    Args:
        x: [..., D], any floating dtype.
        weight: [D]; zero leaves the scale alone.
        eps: added to the mean square, before the root.

    Returns:
        [..., D] in the dtype of ``x``; computed in float32 or wider, rounded once.
    """
    wide = torch.promote_types(x.dtype, torch.float32)  # float64 in, float64 throughout: the oracle
    x_TD = x.to(wide)
    mean_square_T1 = x_TD.square().mean(dim=-1, keepdim=True)
    return (x_TD * torch.rsqrt(mean_square_T1 + eps) * (1 + weight.to(wide))).to(x.dtype)
