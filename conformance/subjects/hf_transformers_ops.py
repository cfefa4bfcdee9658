"""The rows that transformers has: the modules and functions of its Step 3.7 model, given the row's own weights.

Not offered: head_gate, which its attention computes in line; draw and accept_draft, which take their random numbers
from torch's generator and not from the caller.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .installed import find


def rows() -> dict[str, Callable[..., Any]]:
    """The rows, by name; signatures as in ``reference/ops``."""
    functions = (
        functional.embedding,
        functional.linear,
        rms_norm,
        qk_norm,
        rope,
        attention,
        swiglu,
        mlp,
        router,
        experts,
        mtp_input,
        sampling,
    )
    return {function.__name__: torch.inference_mode()(function) for function in functions}


def _modeling() -> Any:
    return find("transformers.models.step3p7.modeling_step3p7", "transformers")


def _with(module: Any, **weights: Tensor) -> Any:
    """Give a module the weights of a row."""
    for name, weight in weights.items():
        owner_name, _, leaf = name.rpartition("__")
        owner = module.get_submodule(owner_name)
        setattr(owner, leaf, nn.Parameter(weight, requires_grad=False) if leaf in owner._parameters else weight)
    return module


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    normed: Tensor = _with(_modeling().Step3p7RMSNorm(len(weight), eps), weight=weight)(x)
    return normed


def qk_norm(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)


def rope(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Its embedding forms angles, cosines and sines, from the frequencies of the row in float32."""
    modeling, kind = _modeling(), "full_attention"
    config = SimpleNamespace(
        max_position_embeddings=1,  # not read by this kind of embedding
        layer_types=[kind],
        head_dim=2 * len(frequencies),
        rope_parameters={kind: {"rope_type": "default", "rope_theta": 1e4}},
    )
    embedding = modeling.Step3p7RotaryEmbedding(config)
    setattr(embedding, f"{kind}_inv_freq", frequencies.float())
    cos, sin = embedding(x, positions[None], kind)
    rotated, _ = modeling.apply_rotary_pos_emb(x[None], x[None], cos, sin, unsqueeze_dim=2)
    return rotated[0].clone()


def attention(
    q: Tensor, k: Tensor, v: Tensor, query_positions: Tensor, key_positions: Tensor, window: int | None
) -> Tensor:
    """The attention that its models are loaded with (sdpa), under its own mask functions; its caches have no holes."""
    if len(q) == 0:  # the library is never called for no tokens
        return q.clone()
    masks = find("transformers.masking_utils", "transformers")
    visible = masks.causal_mask_function if window is None else masks.sliding_window_causal_mask_function(window)
    used = key_positions >= 0
    keys, values = (states[used].transpose(0, 1)[None] for states in (k, v))
    mask = visible(0, 0, query_positions[:, None], key_positions[used][None, :])[None, None]
    module = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], is_causal=True, training=False)
    attend = find("transformers.modeling_utils", "transformers").ALL_ATTENTION_FUNCTIONS["sdpa"]
    mixed, _ = attend(module, q.transpose(0, 1)[None], keys, values, mask, scaling=q.shape[-1] ** -0.5)
    return mixed[0].clone()


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    experts = _modeling().Step3p7Experts
    owner = SimpleNamespace(act_fn=nn.SiLU(), limit=limit or float("inf"))
    activated: Tensor = experts._apply_gate(owner, torch.cat((gate, up), dim=-1))
    return activated


def mlp(x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, limit: float) -> Tensor:
    config = SimpleNamespace(
        hidden_size=x.shape[-1],
        intermediate_size=len(gate_weight),
        mlp_bias=False,
        hidden_act="silu",
        swiglu_limits_shared=[limit],
    )
    weights = {"gate_proj__weight": gate_weight, "up_proj__weight": up_weight, "down_proj__weight": down_weight}
    projected: Tensor = _with(_modeling().Step3p7MLP(config, 0), **weights)(x)
    return projected


def router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling_factor: float) -> tuple[Tensor, Tensor]:
    """Its block scales after the experts are summed; the weights are scaled here to be comparable."""
    config = SimpleNamespace(num_experts_per_tok=top_k, num_local_experts=len(weight), hidden_size=x.shape[-1])
    gate = _with(_modeling().Step3p7TopKRouter(config), weight=weight, e_score_correction_bias=bias)
    _, weights, ids = gate(x)
    return ids, weights * scaling_factor


def experts(
    x: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    limit: float,
) -> Tensor:
    num_experts, intermediate_size, hidden_size = gate_weight.shape
    config = SimpleNamespace(
        num_local_experts=num_experts,
        hidden_size=hidden_size,
        moe_intermediate_size=intermediate_size,
        hidden_act="silu",
    )
    module = _modeling().Step3p7Experts(config, swiglu_limit=limit or None)
    weights = {"gate_up_proj": torch.cat((gate_weight, up_weight), dim=1), "down_proj": down_weight}
    summed: Tensor = _with(module, **weights)(x, expert_ids, expert_weights)
    return summed


class _PassThrough(nn.Module):
    """Stands where the MTP layer has its decoder block."""

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        return hidden_states


def mtp_input(
    embedded: Tensor, hidden: Tensor, enorm_weight: Tensor, hnorm_weight: Tensor, eh_weight: Tensor, eps: float
) -> Tensor:
    """Its MTP layer, without the decoder block and the norm that follow."""
    config = SimpleNamespace(hidden_size=len(enorm_weight), rms_norm_eps=eps)
    mtp_layer = find("transformers.modeling_layers", "transformers").MtpLayer
    layer = mtp_layer(config, lambda *_: _PassThrough(), _modeling().Step3p7RMSNorm, 0, use_post_norm=False)
    weights = {"enorm__weight": enorm_weight, "hnorm__weight": hnorm_weight, "eh_proj__weight": eh_weight}
    nothing = dict.fromkeys(("position_embeddings", "attention_mask", "position_ids", "past_key_values"))
    joined: Tensor = _with(layer, **weights)(embedded, hidden, **nothing)
    return joined


def sampling(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Its warpers in the order of its ``generate``, which scores in float32 and takes argmax at temperature 0."""
    process = find("transformers.generation.logits_process", "transformers")
    scores = logits.float()
    if temperature == 0:
        return functional.one_hot(scores.argmax(dim=-1), scores.shape[-1]).float()
    warpers = [process.TemperatureLogitsWarper(temperature)]
    warpers += [process.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [process.TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [process.MinPLogitsWarper(min_p)] if min_p else []
    return functional.softmax(process.LogitsProcessorList(warpers)(None, scores), dim=-1)
