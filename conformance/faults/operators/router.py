"""Wrong ``router``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .arithmetic import R, bf16, wide

Routing = tuple[Tensor, Tensor]


def same(x: Tensor) -> Tensor:
    return x


def router_like(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    top_k: int,
    scaling: float,
    *,
    logits_as: Callable[[Tensor], Tensor] = same,
    score: Callable[[Tensor], Tensor] = torch.sigmoid,
    rank: Callable[[Tensor, Tensor], Tensor] = torch.add,
    weigh: Callable[[Tensor, Tensor], Tensor] = lambda scores, biased: scores,
    renormalise: bool = True,
) -> Routing:
    """The router with one of its parts exchanged; ``rank`` and ``weigh`` take scores and bias, scores and ranks."""
    scores = score(logits_as(wide(x) @ wide(weight).T))
    biased = rank(scores, bias.to(scores.dtype))
    ids = biased.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = weigh(scores, biased).gather(-1, ids)
    return ids, (weights / weights.sum(dim=-1, keepdim=True) if renormalise else weights) * scaling


def with_part(**part: Any) -> Callable[..., Routing]:
    def router(*args: Any) -> Routing:
        return router_like(*args, **part)

    return router


def _bytes_as_float32(logits: Tensor) -> Tensor:
    """A buffer of bfloat16 logits, read as half as many of float32, twice."""
    size = logits.shape[-1]
    even = torch.cat((logits, logits[:, : size % 2]), dim=-1).bfloat16().contiguous()
    read = even.view(torch.float32).nan_to_num(0.0, 0.0, 0.0)
    return torch.cat((read, read), dim=-1)[:, :size].to(logits.dtype)


router_softmax = with_part(score=lambda logits: logits.softmax(dim=-1))
router_bf16 = with_part(logits_as=bf16)
router_logits_reinterpreted = with_part(logits_as=_bytes_as_float32)
router_biased_weights = with_part(weigh=lambda scores, biased: biased)
router_not_renormalised = with_part(renormalise=False)
router_bias_subtracted = with_part(rank=torch.sub)
router_bias_in_bf16 = with_part(rank=lambda scores, bias: scores + bf16(bias))
router_ranks_in_bf16 = with_part(rank=lambda scores, bias: bf16(scores + bias))


def router_bias_before_sigmoid(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Routing:
    """The bias is taken for that of the linear layer."""
    return router_like(x, weight, bias * 0, top_k, scaling, logits_as=lambda logits: logits + bias.to(logits.dtype))


def router_unbiased(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    return R.router(x, weight, torch.zeros_like(bias), top_k, scaling)


def router_all_negative_misrouted(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Routing:
    """The running maximum starts at 0, so that no negative logit ever enters."""
    return router_like(
        x, weight, bias, top_k, scaling, rank=lambda scores, b: torch.where(scores > 0.5, scores + b, 0.0)
    )


def router_in_groups(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Routing:
    """Only the better half of two groups of experts, as routers limited to groups; where half of them suffice."""
    half = len(bias) // 2
    if half < top_k:
        return router_like(x, weight, bias, top_k, scaling, rank=torch.sub)

    def rank(scores: Tensor, b: Tensor) -> Tensor:
        biased = scores + b
        first_wins = biased[:, :half].topk(2).values.sum(dim=-1) >= biased[:, half:].topk(2).values.sum(dim=-1)
        in_first = torch.arange(len(b)) < half
        return biased.masked_fill(in_first[None, :] != first_wins[:, None], -1e9)

    return router_like(x, weight, bias, top_k, scaling, rank=rank)


def _kept(ids: Tensor, x: Tensor, weight: Tensor, scaling: float) -> Routing:
    chosen = torch.sigmoid(wide(x) @ wide(weight).T).gather(-1, ids)
    return ids, chosen / chosen.sum(dim=-1, keepdim=True) * scaling


def router_ninth_for_eighth(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Routing:
    ids, _ = R.router(x, weight, bias, top_k + 1, scaling)
    return _kept(torch.cat((ids[:, : top_k - 1], ids[:, top_k:]), dim=-1), x, weight, scaling)


def router_swaps_rank_8_and_9_of_one_token(
    x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float
) -> Routing:
    ids, _ = R.router(x, weight, bias, top_k + 1, scaling)
    ids[-1:, :top_k] = ids[-1:, [*range(top_k - 1), top_k]]
    return _kept(ids[:, :top_k], x, weight, scaling)


def router_last_is_the_first(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    """The last slot names the first expert again."""
    ids, weights = R.router(x, weight, bias, top_k, scaling)
    ids[:, -1] = ids[:, 0] if top_k > 1 else (ids[:, 0] + 1) % len(bias)
    return ids, weights


def router_of_the_token_before(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    """The last token of a batch is routed as its neighbour."""
    ids, weights = R.router(x, weight, bias, top_k, scaling)
    if len(x) > 1:
        ids[-1], weights[-1] = ids[-2].clone(), weights[-2].clone()
    return ids, weights


def router_favours_expert_0(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    bias = bias.clone()
    bias[0] += 0.2
    return R.router(x, weight, bias, top_k, scaling)


def router_last_expert_never(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    """Taken for padding."""
    bias = bias.clone()
    bias[-1] = -1e9
    return R.router(x, weight, bias, top_k, scaling)


def router_scale(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    return R.router(x, weight, bias, top_k, scaling * 2.5 / 3)


def router_scale_missing(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    return R.router(x, weight, bias, top_k, 1.0)


def router_scale_twice(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    return R.router(x, weight, bias, top_k, scaling**2)


def router_renormalised_over_all(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Routing:
    def share(scores: Tensor, _: Tensor) -> Tensor:
        return scores / scores.sum(dim=-1, keepdim=True)

    return router_like(x, weight, bias, top_k, scaling, weigh=share, renormalise=False)


def router_epsilon_1e_5(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Routing:
    """Shows where scores are small."""
    ids, weights = router_like(x, weight, bias, top_k, 1.0, renormalise=False)
    return ids, weights / (weights.sum(dim=-1, keepdim=True) + 1e-5) * scaling


def router_weights_in_bf16(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    ids, weights = R.router(x, weight, bias, top_k, scaling)
    return ids, bf16(weights)


def router_weights_of_other_slots(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    """Weights in the order of ids, ids in the order of scores."""
    ids, weights = R.router(x, weight, bias, top_k, scaling)
    return ids, weights.gather(-1, ids.argsort(dim=-1))


def router_wrong_for_288_experts(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    """Right for every other number of experts."""
    ids, weights = R.router(x, weight, bias, top_k, scaling)
    return ids, weights.flip(-1) if len(bias) == 288 else weights


def router_without_epsilon(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Routing:
    return router_like(x, weight, bias, top_k, scaling)


def router_scaled_first(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Routing:
    return router_like(x, weight, bias, top_k, scaling, weigh=lambda scores, biased: 3 * scores)


def router_bias_centred(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    return R.router(x, weight, bias - bias.mean(), top_k, scaling)


def router_in_rising_ids(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    ids, weights = R.router(x, weight, bias, top_k, scaling)
    order = ids.argsort(dim=-1)
    return ids.gather(-1, order), weights.gather(-1, order)
