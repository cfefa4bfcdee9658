"""Wrong ``experts``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reference.quantization import dense

from .activation import (
    swiglu_clamped_first,
    swiglu_gate_clamped_only,
    swiglu_gpt_oss,
    swiglu_limit_10,
    swiglu_up_clamped_only,
    swiglu_zero_is_a_limit,
)
from .arithmetic import R, bf16, wide

TILE = 8  # tokens
CAPACITY = 4  # tokens of an expert, where one has a capacity


def experts_like(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate: Any,
    up: Any,
    down: Any,
    limit: float,
    *,
    activation: Callable[[Tensor, Tensor, float], Tensor] = R.swiglu,
    tokens_of: Callable[[Tensor], Tensor] = lambda token: token,
    added: Callable[[Tensor], Tensor] = lambda y: y,
) -> Tensor:
    """The experts with one part exchanged: the activation, which of an expert's tokens are run, the running sum."""
    x_TD = wide(x)
    y_TD = torch.zeros_like(x_TD)
    for expert in ids.unique().tolist():
        token, slot = (ids == expert).nonzero(as_tuple=True)
        kept = tokens_of(torch.arange(len(token)))
        token, slot = token[kept], slot[kept]
        g, u = (x_TD[token] @ dense(weight[expert], x_TD.dtype).T for weight in (gate, up))
        row = activation(g, u, limit) @ dense(down[expert], x_TD.dtype).T
        y_TD = added(y_TD.index_add(0, token, row * weights[token, slot, None].to(x_TD.dtype)))
    return y_TD.to(x.dtype)


def loose(weight: Any) -> Tensor:
    """A weight as a tensor, also where it is quantised."""
    return weight if isinstance(weight, Tensor) else weight.dequantize()


def with_part(**part: Any) -> Callable[..., Tensor]:
    def experts(*args: Any) -> Tensor:
        return experts_like(*args, **part)

    return experts


experts_clamped_first = with_part(activation=swiglu_clamped_first)
experts_gate_clamped_only = with_part(activation=swiglu_gate_clamped_only)
experts_up_clamped_only = with_part(activation=swiglu_up_clamped_only)
experts_gpt_oss = with_part(activation=swiglu_gpt_oss)
experts_limit_10 = with_part(activation=swiglu_limit_10)
experts_zero_is_a_limit = with_part(activation=swiglu_zero_is_a_limit)
experts_combined_in_bf16 = with_part(added=bf16)
experts_with_a_capacity = with_part(tokens_of=lambda token: token[:CAPACITY])


def experts_unclamped(*args: Any) -> Tensor:
    return R.experts(*args[:-1], 0.0)


def experts_gate_and_up_swapped(
    x: Tensor, ids: Tensor, weights: Tensor, gate: Any, up: Any, down: Any, limit: float
) -> Tensor:
    return R.experts(x, ids, weights, up, gate, down, limit)


def experts_drop_the_last(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    return R.experts(x, ids[:, :-1], weights[:, :-1], *rest)


def experts_of_rank_1_lost(x: Tensor, ids: Tensor, weights: Tensor, gate: Any, *rest: Any) -> Tensor:
    """Two ranks hold half of the experts each, and what rank 1 computed is not combined."""
    return R.experts(x, ids, weights * (ids < gate.shape[0] // 2), gate, *rest)


def experts_dispatched_twice(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    """The first expert of the last token gets it twice."""
    weights = weights.clone()
    weights[-1:, 0] *= 2
    return R.experts(x, ids, weights, *rest)


def experts_reduced_twice(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    return R.experts(x, ids, 2 * weights, *rest)


def experts_swap_two(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    return R.experts(x, torch.where(ids == 0, 1, torch.where(ids == 1, 0, ids)), weights, *rest)


def experts_one_on(x: Tensor, ids: Tensor, weights: Tensor, gate: Any, *rest: Any) -> Tensor:
    """Ids of a shard that starts one expert early."""
    return R.experts(x, (ids + 1) % gate.shape[0], weights, gate, *rest)


def experts_last_is_the_first(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    ids = torch.cat((ids[:, :-1], ids[:, :1]), dim=-1)
    return R.experts(x, ids, weights, *rest)


def experts_after_an_empty_one(x: Tensor, ids: Tensor, weights: Tensor, gate: Any, *rest: Any) -> Tensor:
    """Offsets skip experts without tokens: those after one run with the weights of the one before."""
    used = torch.zeros(gate.shape[0], dtype=torch.long)
    used[ids.unique()] = 1
    packed = (used.cumsum(dim=0) - 1).clamp(min=0)  # rank among the used, taken for the id
    return R.experts(x, packed[ids], weights, gate, *rest)


def experts_weights_sorted(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    return R.experts(x, ids, weights.sort(dim=-1, descending=True).values, *rest)


def experts_weights_equal(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    return R.experts(x, ids, weights.mean(dim=-1, keepdim=True).expand_as(weights), *rest)


def experts_weights_in_bf16(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    return R.experts(x, ids, bf16(weights), *rest)


def experts_weights_renormalised(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    """Once more, to the 3 that they sum to already."""
    return R.experts(x, ids, weights / weights.sum(dim=-1, keepdim=True) * 3, *rest)


def experts_weights_twice(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    """On the way in and on the way out."""
    return R.experts(x, ids, weights.square(), *rest)


def experts_weight_inputs(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    total = torch.zeros_like(x)
    for slot in range(ids.shape[1]):
        scaled = (x * weights[:, slot, None]).to(x.dtype)
        total += R.experts(scaled, ids[:, slot, None], torch.ones_like(weights[:, :1]), *rest)
    return total


def experts_neighbour_row(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    y = R.experts(x, ids, weights, *rest)
    if len(y) > 1:
        y[-1] = y[-2]
    return y


def experts_row_offsets_wrap(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    """An offset of a row that overflows: from row 32 on, as from row 2^31 / width on."""
    y = R.experts(x, ids, weights, *rest)
    y[32:] = y[: max(len(y) - 32, 0)].clone()
    return y


def experts_left_in_dispatch_order(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    """Rows sorted by their first expert, and not brought back."""
    return R.experts(x, ids, weights, *rest)[ids[:, 0].argsort(stable=True)]


def experts_tail_tokens_zero(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    y = R.experts(x, ids, weights, *rest)
    whole = len(y) // TILE * TILE
    if whole:
        y[whole:] = 0
    return y


def experts_scaled_by_the_batch(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    """A sum whose split depends on how many tokens there are, in bfloat16 for many."""
    y = R.experts(x, ids, weights, *rest)
    return bf16(y) if len(x) > TILE else y


def experts_leak(x: Tensor, ids: Tensor, weights: Tensor, gate: Any, *rest: Any) -> Tensor:
    return R.experts(x, ids, weights, loose(gate) + loose(gate).mean(dim=0) * 1e-3, *rest)


def experts_in_place(x: Tensor, *rest: Any) -> Tensor:
    """Writes where it read."""
    y = R.experts(x, *rest)
    x.copy_(y)
    return y


def experts_last_block(x: Tensor, ids: Tensor, weights: Tensor, gate: Any, up: Any, down: Any, limit: float) -> Tensor:
    """The last eight columns of the intermediate are skipped."""
    gate, up, down = loose(gate), loose(up), loose(down)
    return R.experts(x, ids, weights, gate[:, :-8], up[:, :-8], down[..., :-8], limit)


def experts_last_block_of_one(
    x: Tensor, ids: Tensor, weights: Tensor, gate: Any, up: Any, down: Any, limit: float
) -> Tensor:
    """The same in one expert."""
    down = loose(down).clone()
    down[0, :, -8:] = 0
    return R.experts(x, ids, weights, gate, up, down, limit)


def experts_slots_sorted(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    order = ids.argsort(dim=-1)
    return R.experts(x, ids.gather(-1, order), weights.gather(-1, order), *rest)


def experts_weights_halved_and_doubled(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    return R.experts(x, ids, weights / 2, *rest) * 2
