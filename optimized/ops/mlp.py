"""``reference.ops.mlp`` in Triton: the kernels of the routed experts, with one expert that every token has."""

import torch
from torch import Tensor

from ..fused.moe import Gated, gated_block
from ..fused.moe_stored import require_alike, stored
from .layout import require, rows_of
from .swiglu import require_limit


def mlp(x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, limit: float) -> Tensor:
    """Same contract as ``reference.ops.mlp``; gate and up stay in float32 until SwiGLU.

    Raises:
        ValueError: a shape, layout or dtype that these kernels do not take; the message names it.
    """
    require(x.ndim >= 1, "mlp", "x", x, "[..., T, D]")
    rows = rows_of("mlp", "x", x)
    width = x.shape[-1]
    require(gate_weight.ndim == 2, "mlp", "gate_weight", gate_weight, f"[F, {width}]")
    inner = len(gate_weight)
    for name, weight, shape in (
        ("gate_weight", gate_weight, (inner, width)),
        ("up_weight", up_weight, (inner, width)),
        ("down_weight", down_weight, (width, inner)),
    ):
        require(tuple(weight.shape) == shape, "mlp", name, weight, f"{list(shape)}")
    require_limit("mlp", limit)
    gate = stored("mlp", "gate_weight", gate_weight[None], (1, inner, width), x)
    up = stored("mlp", "up_weight", up_weight[None], (1, inner, width), x)
    down = stored("mlp", "down_weight", down_weight[None], (1, width, inner), x)
    require_alike("mlp", gate, up)
    if len(rows) == 0:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return gated_block("mlp", rows, Gated(gate, up, down, float(limit)), None).view(x.shape)
