"""Wrong ``head_gate``."""

import torch
from torch import Tensor

from .arithmetic import R, bf16


def gate_tanh(x: Tensor, gate: Tensor) -> Tensor:
    return x * torch.tanh(gate)[..., None]


def gate_skipped(x: Tensor, gate: Tensor) -> Tensor:
    return x.clone()


def gate_without_sigmoid(x: Tensor, gate: Tensor) -> Tensor:
    return x * gate[..., None]


def gate_twice_the_sigmoid(x: Tensor, gate: Tensor) -> Tensor:
    return R.head_gate(2 * x, gate)


def gate_by_softmax(x: Tensor, gate: Tensor) -> Tensor:
    """Heads share one weight between them."""
    return x * gate.softmax(dim=-1)[..., None]


def gate_of_the_first_head(x: Tensor, gate: Tensor) -> Tensor:
    return R.head_gate(x, gate[..., :1].expand_as(gate))


def gate_heads_reversed(x: Tensor, gate: Tensor) -> Tensor:
    return R.head_gate(x, gate.flip(-1))


def gate_shards_swapped(x: Tensor, gate: Tensor) -> Tensor:
    """Two ranks take each other's rows of the gate."""
    return R.head_gate(x, gate.roll(gate.shape[-1] // 2, dims=-1))


def gate_of_the_token_before(x: Tensor, gate: Tensor) -> Tensor:
    return R.head_gate(x, gate.roll(1, dims=-2)) if gate.shape[-2] > 1 else R.head_gate(x, gate.roll(1, dims=-1))


def gate_in_bf16(x: Tensor, gate: Tensor) -> Tensor:
    return x * bf16(torch.sigmoid(gate))[..., None]


def gate_of_the_dimension(x: Tensor, gate: Tensor) -> Tensor:
    """The gates of the heads are laid out along the dimensions of each head instead."""
    size = x.shape[-1]
    spread = gate.repeat(*[1] * (gate.ndim - 1), -(-size // gate.shape[-1]))[..., :size]
    return x * torch.sigmoid(spread)[..., None, :]
