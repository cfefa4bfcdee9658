"""Engines with one fault each: ``wrong_engines:with_NAME`` for every NAME of FAULTS; and some that offer little.

An operator's fault replaces that row; a model's fault replaces the operator inside the whole model, or a part of the
model around it. Everything else is the reference.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.cache import LayerCache
from reference.engine import ReferenceEngine, ReferenceModel, ReferenceSession
from reference.generate import Generation
from reference.operators import Operators

R = Operators()


@dataclass(frozen=True)
class Fault:
    """What is wrong, and the clause that must notice; ``checks`` is the file that is run."""

    clause: str
    checks: str
    engine: Callable[[], Any]


def bf16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# -- wrong operators, by row


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


# -- wrong models


class StaleLayerCache(LayerCache):
    def truncate(self, length: int) -> None:
        """Forgets nothing."""


class StaleSession(ReferenceSession):
    """Keys and values of tokens that were taken back stay visible."""

    def truncate(self, length: int) -> None:
        for layer in self.cache.layers.values():
            layer.__class__ = StaleLayerCache
        self.cache.truncate(length)


class ShiftedSession(ReferenceSession):
    """Positions of every chunk but the first are one too high."""

    @property
    def length(self) -> int:
        return self.cache.length - hasattr(self, "shifted")

    def extend(self, token_ids: list[int]) -> Tensor:
        if self.cache.length and not hasattr(self, "shifted"):
            self.cache.length += 1
            self.shifted = True
        return super().extend(token_ids)

    def truncate(self, length: int) -> None:
        super().truncate(length + hasattr(self, "shifted"))


class ForgetfulSession(ReferenceSession):
    """The first position is lost as soon as a second chunk comes."""

    def extend(self, token_ids: list[int]) -> Tensor:
        for layer in self.cache.layers.values():
            layer.positions_S = layer.positions_S.clone()
            layer.positions_S[:1] = -1
        return super().extend(token_ids)


class SharedSession(ReferenceSession):
    """Every session writes its first full layer to the same cache."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        first = next(iter(self.cache.layers))
        self.cache.layers[first] = model.__dict__.setdefault("shared_layer", self.cache.layers[first])


def engine_with_session(session: type[ReferenceSession]) -> Any:
    class Model(ReferenceModel):
        def new_session(self) -> ReferenceSession:
            return session(self.model)

    return engine_with_model(Model)


def engine_with_model(model: type[ReferenceModel]) -> Any:
    class Engine(ReferenceEngine):
        def load_model(self, checkpoint: Path) -> ReferenceModel:
            return model(super().load_model(checkpoint).model)

    return Engine("wrong")


class UnscaledRopeModel(ReferenceModel):
    """Full layers without llama3 scaling."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        for layer in model.config.layers:
            size = layer.rotary_dim
            exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
            model._frequencies[layer.index] = layer.rope_theta**-exponents


class FirstDepthModel(ReferenceModel):
    """Every draft depth uses the weights of the first."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        depths = model.config.mtp_layers
        layer_of, first = model.weights.layer, depths[0].index
        model.weights.layer = lambda index: layer_of(first if index in {d.index for d in depths} else index)


class UnseededModel(ReferenceModel):
    def generate(self, *args: Any, seed: int = 0, **options: Any) -> Generation:
        return super().generate(*args, seed=int(torch.randint(1 << 30, ())), **options)


class SecondBestModel(ReferenceModel):
    """The last token is the second best."""

    def generate(self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, **options: Any) -> Generation:
        result = super().generate(prompt_ids, max_new_tokens, mtp, **options)
        session = self.new_session()
        logits = session.extend(prompt_ids + result.tokens[:-1])[-1]
        result.tokens[-1] = int(logits.topk(2).indices[1])
        return result


class CountingModel(ReferenceModel):
    """The token after a prompt depends on how long the prompt is: a continued generation differs."""

    def generate(self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, **options: Any) -> Generation:
        return super().generate(prompt_ids[: len(prompt_ids) // 4 * 4], max_new_tokens, mtp, **options)


class NeverDraftsModel(ReferenceModel):
    """Takes the number of drafts, and never drafts."""

    def generate(self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, **options: Any) -> Generation:
        result = super().generate(prompt_ids, max_new_tokens, 0, **options)
        result.drafted_per_position, result.accepted_per_position = [0] * mtp, [0] * mtp
        return result


def with_row(op: str, function: Callable[..., Any]) -> Callable[[], Any]:
    """An engine whose row is replaced, in its operators and in its model."""
    return lambda: ReferenceEngine("wrong", ops=replace(R, **{op: function}))


def _row(op: str, clause: str, *functions: Callable[..., Any]) -> dict[str, Fault]:
    checks = f"ops/test_{op}.py"
    return {function.__name__: Fault(clause, checks, with_row(op, function)) for function in functions}


def _model(clause: str, checks: str, **engines: Callable[[], Any]) -> dict[str, Fault]:
    return {name: Fault(clause, f"model/{checks}", engine) for name, engine in engines.items()}


OP_FAULTS: dict[str, Fault] = {
    **_row("embedding", "EMB-1", embedding_scaled, embedding_shifted),
    **_row("rms_norm", "NORM-1", norm_without_one, norm_eps_outside, norm_bf16_variance),
    **_row("rms_norm", "NORM-1", norm_in_place, norm_aliasing, norm_nan_on_zeros),
    **_row("qk_norm", "QKN-1", qk_norm_over_all_heads, qk_norm_weights_swapped),
    **_row("rope", "ROPE-1", rope_interleaved, rope_bf16_positions, rope_backwards),
    **_row("rope", "ROPE-2", rope_unscaled),
    **_row("rope", "ROPE-3", rope_table_wraps),
    **_row("attention", "ATT-1", attention_sees_next),
    **_row("attention", "ATT-2", attention_window_one_more, attention_window_one_fewer),
    **_row("attention", "ATT-3", attention_window_always),
    **_row("attention", "ATT-4", attention_scale, attention_heads_interleaved),
    **_row("attention", "ATT-5", attention_reads_empty, attention_by_slot),
    **_row("head_gate", "GATE-1", gate_tanh, gate_skipped, gate_heads_reversed),
    **_row("linear", "LIN-1", linear_bf16_sum, linear_last_column),
    **_row("swiglu", "ACT-1", swiglu_unclamped, swiglu_clamped_first, swiglu_gate_both_sides),
    **_row("swiglu", "ACT-1", swiglu_up_one_side, swiglu_swapped, swiglu_gpt_oss),
    **_row("mlp", "MLP-1", mlp_unclamped, mlp_swapped, mlp_last_block),
    **_row("router", "ROUT-1", router_softmax, router_unbiased, router_swaps_rank_8_and_9_of_one_token),
    **_row("router", "ROUT-2", router_bf16, router_biased_weights, router_not_renormalised, router_scale),
    **_row("router", "ROUT-3", router_favours_expert_0),
    **_row("experts", "MOE-1", experts_unclamped, experts_drop_the_last, experts_swap_two),
    **_row("experts", "MOE-2", experts_weights_sorted, experts_neighbour_row),
    **_row("experts", "MOE-3", experts_weight_inputs),
    **_row("experts", "MOE-4", experts_leak),
    **_row("mtp_input", "MTP-1", mtp_hidden_first, mtp_norms_swapped, mtp_hidden_not_normalised),
    **_row("sampling", "SAMP-1", sampling_ignores_top_p, sampling_top_p_first, sampling_one_fewer),
    **_row("sampling", "SAMP-2", sampling_no_greedy),
    **_row("draw", "DRAW-1", draw_at_border, draw_greedily),
    **_row("accept_draft", "SPEC-1", accept_everything, accept_no_bonus),
    **_row("accept_draft", "SPEC-2", accept_if_equal, accept_without_residual, accept_by_target),
}

MODEL_FAULTS: dict[str, Fault] = {
    **_model(
        "LOGITS-1",
        "test_logits.py::test_logits_of_a_whole_context_are_the_oracles",
        model_without_rope_scaling=lambda: engine_with_model(UnscaledRopeModel),
        model_with_an_unclamped_shared_expert=with_row("mlp", mlp_unclamped),
        model_without_gate=with_row("head_gate", gate_skipped),
    ),
    **_model(
        "CAUSAL-1",
        "test_logits.py::test_later_tokens_do_not_change_earlier_logits",
        model_sees_next=with_row("attention", attention_sees_next),
    ),
    **_model(
        "WINDOW-1",
        "test_logits.py::test_sliding_layers_see_neither_one_key_more_nor_fewer",
        model_window_one_more=with_row("attention", attention_window_one_more),
        model_window_one_fewer=with_row("attention", attention_window_one_fewer),
    ),
    **_model(
        "CACHE-1",
        "test_cache.py::test_decoding_token_by_token_gives_the_logits_of_one_pass",
        model_forgets_the_first=lambda: engine_with_session(ForgetfulSession),
    ),
    **_model(
        "CHUNK-1",
        "test_cache.py::test_prefill_in_two_chunks_around_the_window_gives_the_logits_of_one_pass",
        model_shifts_chunks=lambda: engine_with_session(ShiftedSession),
    ),
    **_model(
        "ROLLBACK-1",
        "test_cache.py::test_what_is_taken_back_leaves_nothing_behind",
        model_takes_nothing_back=lambda: engine_with_session(StaleSession),
    ),
    **_model(
        "ROLLBACK-1",
        "test_cache.py::test_sessions_do_not_share_what_they_remember",
        model_shares_sessions=lambda: engine_with_session(SharedSession),
    ),
    **_model(
        "GREEDY-1",
        "test_generation.py::test_greedy_tokens_have_the_largest_logit",
        model_second_best=lambda: engine_with_model(SecondBestModel),
    ),
    **_model(
        "MTPGREEDY-1",
        "test_generation.py::test_drafts_do_not_change_greedy_tokens",
        model_accepts_everything=with_row("accept_draft", accept_everything),
    ),
    **_model(
        "ACCEPT-1",
        "test_generation.py::test_drafts_are_accepted_as_often_as_the_references",
        model_drafts_hidden_first=with_row("mtp_input", mtp_hidden_first),
        model_drafts_with_the_first_depth=lambda: engine_with_model(FirstDepthModel),
    ),
    **_model(
        "CONTINUE-1",
        "test_generation.py::test_generating_in_two_parts_is_generating_at_once",
        model_counts=lambda: engine_with_model(CountingModel),
    ),
    **_model(
        "SEED-1",
        "test_generation.py::test_a_seed_fixes_the_tokens_and_a_shorter_generation_is_a_prefix",
        model_unseeded=lambda: engine_with_model(UnseededModel),
    ),
}

FAULTS = OP_FAULTS | MODEL_FAULTS


class OpsOnly(ReferenceEngine):
    """Offers some rows, and no model."""

    def ops(self) -> dict[str, Any]:
        return {name: row for name, row in super().ops().items() if name in ("rms_norm", "rope")}

    def load_model(self, checkpoint: Path) -> ReferenceModel:
        raise NotImplementedError("operators only")


class Nothing(OpsOnly):
    """Offers nothing."""

    def ops(self) -> dict[str, Any]:
        return {}


ops_only, nothing = OpsOnly("ops-only"), Nothing("nothing")
never_drafts = engine_with_model(NeverDraftsModel)
unknown_profile = Nothing("unknown-profile")
unknown_profile.profile = "float7"


def __getattr__(name: str) -> Any:
    fault = FAULTS.get(name.removeprefix("with_"))
    if fault is None or not name.startswith("with_"):
        raise AttributeError(name)
    return fault.engine
