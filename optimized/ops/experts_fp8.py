"""``reference.ops.experts_fp8`` in Triton: e4m3 products on tensor cores, block scales on the float32 sums."""

from torch import Tensor

from reference.quantization import Fp8Weight

from .experts import routed


def experts_fp8(
    x: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    gate_weight: Fp8Weight,
    up_weight: Fp8Weight,
    down_weight: Fp8Weight,
    limit: float,
) -> Tensor:
    """Same contract as ``reference.ops.experts_fp8``; determinism as ``experts``.

    Raises:
        ValueError: a shape, layout, dtype or format that these kernels do not take; the message names it.
    """
    named = {"gate_weight": gate_weight, "up_weight": up_weight, "down_weight": down_weight}
    for name, weight in named.items():
        if not isinstance(weight, Fp8Weight):
            raise ValueError(f"experts_fp8: {name} is {type(weight).__name__}; want Fp8Weight")
    args = (x, expert_ids, expert_weights, gate_weight, up_weight, down_weight, limit)
    return routed("experts_fp8", *args, rounds=True)
