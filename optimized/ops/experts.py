"""``reference.ops.experts`` in Triton, on bf16, FP8 and int4 weights: the kernels are in ``optimized.fused.moe``."""

import torch
from torch import Tensor

from reference.quantization import QuantizedWeight

from ..fused.moe import Gated, Routing, gated_block
from ..fused.moe_stored import require_alike, stored
from .layout import require, rows_of
from .swiglu import require_limit


def experts(
    x: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    gate_weight: Tensor | QuantizedWeight,
    up_weight: Tensor | QuantizedWeight,
    down_weight: Tensor | QuantizedWeight,
    limit: float,
) -> Tensor:
    """Same contract as ``reference.ops.experts``.

    A token's bits do not depend on its neighbours, as long as ``launch_configs`` chooses the same path and blocks for
    the number of tokens. Ids are not checked: that would make the host wait for the device.

    Raises:
        ValueError: a shape, layout, dtype or format that these kernels do not take; the message names it.
    """
    return routed("experts", x, expert_ids, expert_weights, gate_weight, up_weight, down_weight, limit, rounds=False)


def routed(
    op: str,
    x: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    gate_weight: Tensor | QuantizedWeight,
    up_weight: Tensor | QuantizedWeight,
    down_weight: Tensor | QuantizedWeight,
    limit: float,
    *,
    rounds: bool,
) -> Tensor:
    """Check the arguments of ``experts`` and ``experts_fp8`` and run them; ``rounds``: activations to e4m3."""
    require(x.ndim == 2, op, "x", x, "[T, D]")
    rows = rows_of(op, "x", x)
    num_tokens, hidden_size = x.shape
    holds = expert_ids.ndim == 2 and len(expert_ids) == num_tokens and expert_ids.shape[1] > 0
    require(holds, op, "expert_ids", expert_ids, f"[{num_tokens}, A]")
    require(expert_ids.dtype in (torch.int32, torch.int64), op, "expert_ids", expert_ids, "int32 or int64")
    shape = tuple(expert_ids.shape)
    require(tuple(expert_weights.shape) == shape, op, "expert_weights", expert_weights, f"{list(shape)}, as expert_ids")
    require(expert_weights.is_floating_point(), op, "expert_weights", expert_weights, "a floating dtype")
    for name, tensor in (("expert_ids", expert_ids), ("expert_weights", expert_weights)):
        require(tensor.device == x.device, op, name, tensor, f"a tensor on {x.device}")
    require_limit(op, limit)
    if len(gate_weight.shape) != 3:
        raise ValueError(f"{op}: gate_weight is {tuple(gate_weight.shape)}; want [E, F, {hidden_size}]")
    num_experts, width = gate_weight.shape[:2]
    gate = stored(op, "gate_weight", gate_weight, (num_experts, width, hidden_size), x)
    up = stored(op, "up_weight", up_weight, (num_experts, width, hidden_size), x)
    down = stored(op, "down_weight", down_weight, (num_experts, hidden_size, width), x)
    require_alike(op, gate, up)
    if num_tokens == 0:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    routing = Routing(expert_ids.contiguous(), expert_weights.contiguous(), num_experts)
    return gated_block("experts", rows, Gated(gate, up, down, float(limit), rounds), routing)
