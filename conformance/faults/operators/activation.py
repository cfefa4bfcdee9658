"""Wrong ``swiglu`` and ``mlp``."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from .arithmetic import R, bf16, wide


def swiglu_unclamped(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return R.swiglu(gate, up, 0.0)


def swiglu_clamped_first(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return R.swiglu(gate.clamp(max=limit), up, limit) if limit else R.swiglu(gate, up, limit)


def swiglu_gate_both_sides(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return silu(gate).clamp(-0.1, limit) * up.clamp(-limit, limit) if limit else R.swiglu(gate, up, limit)


def swiglu_up_one_side(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return silu(gate).clamp(max=limit) * up.clamp(max=limit) if limit else R.swiglu(gate, up, limit)


def swiglu_gate_clamped_only(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return silu(gate).clamp(max=limit or math.inf) * up


def swiglu_up_clamped_only(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return silu(gate) * (up.clamp(-limit, limit) if limit else up)


def swiglu_product_clamped(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    product = silu(gate) * up
    return product.clamp(-limit, limit) if limit else product


def swiglu_zero_is_a_limit(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """A limit of 0 means that nothing is clamped; here it clamps everything to 0."""
    return silu(gate).clamp(max=limit) * up.clamp(-limit, limit)


def swiglu_always_clamped(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """The limit of a kernel's constant, wherever the layer."""
    return R.swiglu(gate, up, 7.0)


def swiglu_limit_10(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """The value that another model's kernel takes for granted."""
    return R.swiglu(gate, up, 10.0 if limit else 0.0)


def swiglu_swapped(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return R.swiglu(up, gate, limit)


def swiglu_interleaved(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """Gate and up lie one after the other, and are read as if their columns took turns."""
    joined = torch.cat((gate, up), dim=-1)
    return R.swiglu(joined[..., 0::2], joined[..., 1::2], limit)


def swiglu_gpt_oss(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    if not limit:
        return R.swiglu(gate, up, limit)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


def swiglu_up_plus_one(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return R.swiglu(gate, up + 1, limit)


def swiglu_gelu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    activated = gelu(gate)
    return activated.clamp(max=limit) * up.clamp(-limit, limit) if limit else activated * up


def swiglu_relu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return R.swiglu(gate, up, limit) * (gate > 0)


def swiglu_activation_in_bf16(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    activated = bf16(silu(gate))
    return activated.clamp(max=limit) * up.clamp(-limit, limit) if limit else activated * up


def mlp_unclamped(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
    return R.mlp(x, gate, up, down, 0.0)


def mlp_swapped(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
    return R.mlp(x, up, gate, down, limit)


def mlp_last_block(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
    return R.mlp(x, gate[:-1], up[:-1], down[:, :-1], limit)


def mlp_half_lost(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
    """Two ranks hold half of the intermediate each, and nothing is reduced."""
    half = len(gate) // 2
    return R.mlp(x, gate[:half], up[:half], down[:, :half], limit)


def mlp_reduced_twice(*args: Any) -> Tensor:
    return 2 * R.mlp(*args)


def mlp_shards_of_gate_and_up_mixed(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
    """A fused [gate; up] cut in two for two ranks: rank 0 has all of gate, and takes half of it for up."""
    half = len(gate) // 2
    fused_gate, fused_up = torch.cat((gate[:half], up[:half])), torch.cat((gate[half:], up[half:]))
    size = min(len(fused_gate), len(fused_up))
    return R.mlp(x, fused_gate[:size], fused_up[:size], down[:, :size], limit)


def mlp_output_clamped(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
    y = R.mlp(x, gate, up, down, 0.0)
    return y.clamp(-limit, limit) if limit else y


def mlp_without_activation(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
    g, u = R.linear(x, gate), R.linear(x, up)
    if limit:
        g, u = g.clamp(max=limit), u.clamp(-limit, limit)
    return R.linear(g * u, down)


def swiglu_up_clamped_by_its_sign(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return R.swiglu(gate, up.sign() * up.abs().clamp(max=limit) if limit else up, limit)


def swiglu_by_minimum(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    if not limit:
        return R.swiglu(gate, up, limit)
    bound = torch.full_like(gate, limit)
    return (silu(wide(gate)).minimum(wide(bound)) * wide(up).maximum(-wide(bound)).minimum(wide(bound))).to(gate.dtype)
