"""``linear`` on a quantised weight: FP8 in 128x128 blocks or int4 in groups, activations as they are or rounded to FP8.

The kernels are those of the experts, with one expert that has every row: ``moe_direct`` or ``moe_stream`` for few rows,
``moe_grouped`` for more. For thousands the weight is widened to bfloat16 first (``widen``).
"""

import torch
from torch import Tensor

from reference.quantization import Fp8Weight, Int4Weight, QuantizedWeight

from ..launch import launch_for
from ..ops.layout import require, rows_of
from ..ops.linear import linear
from ..ops.quantize_activation import quantize_activation
from .moe import Inputs, Slots, product, streamed
from .moe_direct import down_direct, fits
from .moe_stored import format_of, stored
from .widen import fits as fits_widened
from .widen import widen

REPLACES = ("quantize_activation", "linear")


def linear_quantized(x: Tensor, weight: QuantizedWeight, rounds: bool = False) -> Tensor:
    """Multiply each row by a quantised weight.

        y[t, o] = sum_i x[t, i] W[o, i],  with ``rounds``: of what is left of x after ``quantize_activation``

    Args:
        x: [..., T, I], float32 or bfloat16.
        weight: [O, I]; with ``rounds`` FP8, whose codes are then multiplied as they are, in FP8.
        rounds: whether activations are rounded to e4m3 in groups of 128.

    Returns:
        [..., T, O] in the dtype of ``x``; sums in float32, rounded once.

    Raises:
        ValueError: a shape, layout, dtype or format that this kernel does not take; the message names it.
    """
    op = "linear_quantized"
    if not isinstance(weight, Fp8Weight | Int4Weight) or (rounds and not isinstance(weight, Fp8Weight)):
        want = "Fp8Weight" if rounds else "Fp8Weight or Int4Weight"
        raise ValueError(f"{op}: weight is {type(weight).__name__}; want {want}")
    rows = rows_of(op, "x", x)
    require(len(weight.shape) == 2, op, "weight", weight.data, "[O, I]")
    num_outputs, num_inputs = weight.shape
    require(x.shape[-1] == num_inputs, op, "x", x, f"[..., {num_inputs}]")
    held = stored(op, "weight", _stacked(weight), (1, num_outputs, num_inputs), rows)
    y = torch.empty((*x.shape[:-1], num_outputs), dtype=x.dtype, device=x.device)
    if y.numel() > 0:
        sizes: dict[str, int | str] = {"T": len(rows), "O": num_outputs, "I": num_inputs}
        sizes["format"] = format_of(rows, held, rounds)
        takes_widened = fits_widened(rows, held, rounds)
        sizes["widens"] = int(takes_widened)
        sizes["direct"] = int(fits(rows, None, held, rounds=rounds))
        launch = dict(launch_for(op, x.device, **sizes).options)
        path = launch.pop("PATH", "grouped")
        if path == "direct":
            return down_direct(rows, None, None, held, launch, rounds).view(y.shape)
        if path == "widened":
            if not takes_widened:
                raise LookupError(f"{op}: path 'widened' is for bfloat16 rows as they are; want 'grouped'")
            return linear(rows, widen(held, 0, num_inputs)).view(y.shape)
        inputs = Inputs(*quantize_activation(rows), rounds=True) if rounds else Inputs(rows)
        if path == "stream":
            return streamed(inputs, held, x.dtype, None, launch).view(y.shape)
        slots = Slots(len(rows), launch.pop("BLOCK_R"), None, None)
        product(inputs, (held,), Inputs(y.view(-1, num_outputs)), slots, 1, 0.0, launch)
    return y


def _stacked(weight: QuantizedWeight) -> QuantizedWeight:
    if isinstance(weight, Fp8Weight):
        return Fp8Weight(weight.data[None], weight.scale_inv[None], weight.block)
    return Int4Weight(weight.data[None], weight.scale[None], weight.group)
