"""Head-wise attention gate: one scalar for each head and token, after attention and before the output projection.

Source: StepFun modeling_step3p5.py (g_proj); its input is the layer's normalised hidden state, not q nor the output.
"""

import torch
from torch import Tensor


def head_gate(x: Tensor, gate: Tensor) -> Tensor:
    """Scale each head's output by the sigmoid of its gate.

        y[t, n, h] = x[t, n, h] * sigmoid(gate[t, n])

    Args:
        x: [..., T, N, H], attention output.
        gate: [..., T, N], the gate projection's output.

    Returns:
        [..., T, N, H] in the dtype of ``x``.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(wide) * torch.sigmoid(gate.to(wide))[..., None]).to(x.dtype)
