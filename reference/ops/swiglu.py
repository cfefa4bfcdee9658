"""SwiGLU and its clamp: the gate is limited from above after silu, the up projection from both sides.

Source: vLLM SwigluStepAndMul, mlx-lm step3p5; not gpt-oss's swigluoai, which clamps before the activation.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """Multiply the activated gate by the up projection.

        y = min(silu(gate), limit) * clamp(up, -limit, limit);  limit 0: y = silu(gate) * up

    Args:
        gate, up: [..., F].
        limit: 0 (no clamp) or above.

    Returns:
        [..., F] in the dtype of ``gate``.
    """
    wide = torch.promote_types(gate.dtype, torch.float32)
    activated, linear_part = silu(gate.to(wide)), up.to(wide)
    if limit > 0:
        activated = activated.clamp(max=limit)
        linear_part = linear_part.clamp(-limit, limit)
    return (activated * linear_part).to(gate.dtype)
