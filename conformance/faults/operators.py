"""Operators with one thing wrong, and everything else the reference's; ``catalogue.py`` says who must notice."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reference.operators import Operators

R = Operators()


def bf16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def embedding_scaled(token_ids: Tensor, weight: Tensor) -> Tensor:
    return weight[token_ids] * weight.shape[-1] ** 0.5


def embedding_shifted(token_ids: Tensor, weight: Tensor) -> Tensor:
    return weight[(token_ids + 1) % weight.shape[0]]


def norm_without_one(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return R.rms_norm(x, weight - 1, eps)


def norm_eps_outside(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True).sqrt() + eps) * (1 + weight)


def norm_bf16_variance(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(bf16(x.square().mean(dim=-1, keepdim=True)) + eps) * (1 + weight)


def norm_in_place(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    result = R.rms_norm(x, weight, eps)
    x.copy_(result)
    return result


def norm_aliasing(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.copy_(R.rms_norm(x, weight, eps))


def norm_nan_on_zeros(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return R.rms_norm(x, weight, 0.0)


def qk_norm_over_all_heads(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> Any:
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(dim=(-2, -1), keepdim=True) + eps)
        return x * scale * (1 + weight)

    return norm(q, q_weight), norm(k, k_weight)


def qk_norm_weights_swapped(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> Any:
    return R.qk_norm(q, k, k_weight, q_weight, eps)


def rope_interleaved(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    size = 2 * len(frequencies)
    order = torch.cat((torch.arange(0, size, 2), torch.arange(1, size, 2)))
    y = R.rope(x[..., torch.cat((order, torch.arange(size, x.shape[-1])))], positions, frequencies)
    return torch.cat((y[..., :size][..., order.argsort()], y[..., size:]), dim=-1)


def rope_bf16_positions(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    return R.rope(x, positions.bfloat16().long(), frequencies)


def rope_unscaled(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    first = frequencies[1] / frequencies[0] if len(frequencies) > 1 else frequencies[0]
    return R.rope(x, positions, first ** torch.arange(len(frequencies), dtype=torch.float64))


def rope_backwards(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    return R.rope(x, -positions, frequencies)


def rope_table_wraps(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    return R.rope(x, positions % 131_072, frequencies)


def attention_like(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float, kv_head: Callable[[int, int], int]
) -> Tensor:
    group = q.shape[-2] // k.shape[-2]
    heads = [kv_head(head, group) for head in range(q.shape[-2])]
    scores = torch.einsum("tnh,snh->nts", wide(q), wide(k)[:, heads]) * scale
    weights = scores.masked_fill(~visible, -math.inf).softmax(dim=-1).nan_to_num(0.0)
    return torch.einsum("nts,snh->tnh", weights, wide(v)[:, heads]).to(q.dtype)


def visible(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    distance = query_positions[:, None] - key_positions[None, :]
    seen = (distance >= 0) & (key_positions >= 0)
    return seen if window is None else seen & (distance < window)


def attention_window_one_more(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    return R.attention(q, k, v, qp, kp, None if window is None else window + 1)


def attention_window_one_fewer(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    return R.attention(q, k, v, qp, kp, None if window is None else window - 1)


def attention_window_always(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    return R.attention(q, k, v, qp, kp, window or 512)


def attention_sees_next(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    return R.attention(q, k, v, qp + 1, kp, None if window is None else window + 1)


def attention_scale(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    return R.attention(q * 2**0.5, k, v, qp, kp, window)


def attention_heads_interleaved(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    scale = q.shape[-1] ** -0.5
    return attention_like(q, k, v, visible(qp, kp, window), scale, lambda head, _: head % k.shape[-2])


def attention_reads_empty(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    scale = q.shape[-1] ** -0.5
    return attention_like(q, k, v, visible(qp, kp, window), scale, lambda head, group: head // group)


def attention_by_slot(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    return R.attention(q, k, v, qp, kp.sort().values, window)


def gate_tanh(x: Tensor, gate: Tensor) -> Tensor:
    return x * torch.tanh(gate)[..., None]


def gate_skipped(x: Tensor, gate: Tensor) -> Tensor:
    return x.clone()


def gate_heads_reversed(x: Tensor, gate: Tensor) -> Tensor:
    return R.head_gate(x, gate.flip(-1))


def linear_bf16_sum(x: Tensor, weight: Tensor) -> Tensor:
    first, second = x.shape[-1] // 2, x.shape[-1]
    parts = [R.linear(x[..., a:b], weight[:, a:b]) for a, b in ((0, first), (first, second))]
    return bf16(parts[0]) + bf16(parts[1])


def linear_last_column(x: Tensor, weight: Tensor) -> Tensor:
    return R.linear(x[..., :-1], weight[:, :-1])


def swiglu_unclamped(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return R.swiglu(gate, up, 0.0)


def swiglu_clamped_first(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return R.swiglu(gate.clamp(max=limit), up, limit) if limit else R.swiglu(gate, up, limit)


def swiglu_gate_both_sides(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return (
        R.swiglu(gate, up, limit)
        if not limit
        else torch.nn.functional.silu(gate).clamp(-0.1, limit) * up.clamp(-limit, limit)
    )


def swiglu_up_one_side(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return (
        R.swiglu(gate, up, limit)
        if not limit
        else torch.nn.functional.silu(gate).clamp(max=limit) * up.clamp(max=limit)
    )


def swiglu_swapped(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return R.swiglu(up, gate, limit)


def swiglu_gpt_oss(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    if not limit:
        return R.swiglu(gate, up, limit)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


def mlp_unclamped(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
    return R.mlp(x, gate, up, down, 0.0)


def mlp_swapped(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
    return R.mlp(x, up, gate, down, limit)


def mlp_last_block(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
    return R.mlp(x, gate[:-1], up[:-1], down[:, :-1], limit)


def router_like(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    top_k: int,
    scaling: float,
    score: Callable[[Tensor], Tensor] = torch.sigmoid,
    narrow: bool = False,
    renormalise: bool = True,
    weigh_biased: bool = False,
) -> tuple[Tensor, Tensor]:
    logits = wide(x) @ wide(weight).T
    scores = score(bf16(logits) if narrow else logits)
    ids = (scores + bias).topk(top_k).indices
    weights = (scores + bias if weigh_biased else scores).gather(-1, ids)
    return ids, (weights / weights.sum(dim=-1, keepdim=True) if renormalise else weights) * scaling


def router_softmax(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    return router_like(x, weight, bias, top_k, scaling, score=lambda logits: logits.softmax(dim=-1))


def router_bf16(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    return router_like(x, weight, bias, top_k, scaling, narrow=True)


def router_biased_weights(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    return router_like(x, weight, bias, top_k, scaling, weigh_biased=True)


def router_not_renormalised(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    return router_like(x, weight, bias, top_k, scaling, renormalise=False)


def router_unbiased(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    return R.router(x, weight, torch.zeros_like(bias), top_k, scaling)


def router_scale(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    ids, weights = R.router(x, weight, bias, top_k, scaling)
    return ids, weights * (2.5 / 3)


def router_swaps_rank_8_and_9_of_one_token(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    ids, _ = R.router(x, weight, bias, top_k + 1, scaling)
    kept = [*range(top_k - 1), top_k]
    ids[-1, :top_k] = ids[-1, kept]
    ids = ids[:, :top_k]
    chosen = torch.sigmoid(wide(x) @ wide(weight).T).gather(-1, ids)
    return ids, chosen / chosen.sum(dim=-1, keepdim=True) * scaling


def router_favours_expert_0(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
    bias = bias.clone()
    bias[0] += 0.2
    return R.router(x, weight, bias, top_k, scaling)


def experts_unclamped(*args: Any) -> Tensor:
    return R.experts(*args[:-1], 0.0)


def experts_drop_the_last(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    return R.experts(x, ids[:, :-1], weights[:, :-1], *rest)


def experts_swap_two(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    return R.experts(x, torch.where(ids == 0, 1, torch.where(ids == 1, 0, ids)), weights, *rest)


def experts_weights_sorted(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    return R.experts(x, ids, weights.sort(dim=-1, descending=True).values, *rest)


def experts_neighbour_row(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    y = R.experts(x, ids, weights, *rest)
    if len(y) > 1:
        y[-1] = y[-2]
    return y


def experts_leak(x: Tensor, ids: Tensor, weights: Tensor, gate: Tensor, *rest: Any) -> Tensor:
    return R.experts(x, ids, weights, gate + gate.mean(dim=0) * 1e-3, *rest)


def experts_weight_inputs(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    total = torch.zeros_like(x)
    for slot in range(ids.shape[1]):
        scaled = (x * weights[:, slot, None]).to(x.dtype)
        total += R.experts(scaled, ids[:, slot, None], torch.ones_like(weights[:, :1]), *rest)
    return total


def mtp_hidden_first(embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float) -> Tensor:
    size = hidden.shape[-1]
    return R.mtp_input(embedded, hidden, enorm, hnorm, torch.cat((eh[:, size:], eh[:, :size]), dim=1), eps)


def mtp_norms_swapped(embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float) -> Tensor:
    return R.mtp_input(embedded, hidden, hnorm, enorm, eh, eps)


def mtp_hidden_not_normalised(
    embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float
) -> Tensor:
    return R.linear(torch.cat((R.rms_norm(embedded, enorm, eps), hidden), dim=-1), eh)


def sampling_ignores_top_p(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return R.sampling(logits, temperature, top_k, 1.0, min_p)


def sampling_top_p_first(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    if temperature == 0:
        return R.sampling(logits, temperature, top_k, top_p, min_p)
    kept = R.sampling(logits, temperature, 0, top_p, 0.0)
    return R.sampling(kept.log().clamp(min=-1e30), 1.0, top_k, 1.0, min_p)


def sampling_one_fewer(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return R.sampling(logits, temperature, max(top_k - 1, 1) if top_k else 0, top_p, min_p)


def sampling_no_greedy(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return R.sampling(logits, temperature or 1.0, top_k, top_p, min_p)


def draw_at_border(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    cumulative = probabilities.double().cumsum(dim=-1)
    return torch.searchsorted(cumulative, uniforms[:, None].double()).clamp(max=probabilities.shape[-1] - 1)[:, 0]


def draw_greedily(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    return probabilities.argmax(dim=-1)


def accept_if_equal(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> tuple[int, int]:
    for i, token in enumerate(draft_ids.tolist()):
        if int(target[i].argmax()) != token:
            return i, int(R.draw(target[i : i + 1], uniforms[-1:])[0])
    return len(draft_ids), int(R.draw(target[-1:], uniforms[-1:])[0])


def accept_without_residual(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> tuple[int, int]:
    accepted, _ = R.accept_draft(target, draft, draft_ids, uniforms)
    return accepted, int(R.draw(target[accepted : accepted + 1], uniforms[-1:])[0])


def accept_by_target(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> tuple[int, int]:
    return R.accept_draft(target, torch.maximum(draft, torch.ones_like(draft)), draft_ids, uniforms)


def accept_everything(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> tuple[int, int]:
    return len(draft_ids), int(R.draw(target[-1:], uniforms[-1:])[0])


def accept_no_bonus(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> tuple[int, int]:
    accepted, following = R.accept_draft(target, draft, draft_ids, uniforms)
    return (accepted - 1, int(draft_ids[-1])) if accepted and accepted == len(draft_ids) else (accepted, following)
