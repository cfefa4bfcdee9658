"""The rows that mlx-lm has: the modules and functions of its Step 3.5 model, given the row's own weights.

Not offered: head_gate, which its attention computes in line; mtp_input, for it drops the MTP layers; draw and
accept_draft, which take their random numbers from mlx's generator and not from the caller.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .installed import find

Arrays = tuple[Any, ...]


def rows() -> dict[str, Callable[..., Any]]:
    """The rows, by name; signatures as in ``reference/ops``."""
    functions = (embedding, linear, rms_norm, qk_norm, rope, attention, swiglu, mlp, router, experts, sampling)
    return {function.__name__: function for function in functions}


def to_mlx(*tensors: Tensor) -> Arrays:
    """The same numbers in mlx's arrays."""
    mx = find("mlx.core", "mlx")
    wide = [tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in tensors]
    arrays = [mx.array(tensor.numpy()) for tensor in wide]
    return tuple(
        array.astype(mx.bfloat16) if tensor.dtype == torch.bfloat16 else array
        for array, tensor in zip(arrays, tensors, strict=True)
    )


def to_torch(array: Any) -> Tensor:
    """The same numbers in torch's tensors."""
    mx = find("mlx.core", "mlx")
    if array.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(array.astype(mx.float32))).bfloat16()
    return torch.from_numpy(np.array(array))


def _with(module: Any, **weights: Tensor) -> Any:
    """Give a module the weights of a row, by its submodules' names."""
    module.load_weights([(name.replace("__", "."), to_mlx(weight)[0]) for name, weight in weights.items()])
    return module


def _step3p5() -> Any:
    return find("mlx_lm.models.step3p5", "mlx-lm")


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    module = _with(find("mlx.nn", "mlx").Embedding(*weight.shape), weight=weight)
    return to_torch(module(*to_mlx(token_ids)))


def linear(x: Tensor, weight: Tensor) -> Tensor:
    module = find("mlx.nn", "mlx").Linear(*weight.T.shape, bias=False)
    return to_torch(_with(module, weight=weight)(*to_mlx(x)))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Its loader adds the 1, in the dtype of the weight."""
    (stored,) = to_mlx(weight)
    sanitized = _step3p5().Model.sanitize(_BACKBONE, {"model.layers.0.moe.gate.weight": stored, "norm.weight": stored})
    module = _step3p5().ZeroCenteredRMSNorm(len(weight), eps)
    module.weight = sanitized["norm.weight"]
    return to_torch(module(*to_mlx(x)))


_BACKBONE = SimpleNamespace(args=SimpleNamespace(num_hidden_layers=1))  # all that its sanitize asks of a model


def qk_norm(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)


def rope(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Its llama3 module rotates by given periods; one call a position, for a call takes consecutive ones."""
    if len(x) == 0:  # the library is never called for no tokens
        return x.clone()
    mx, rope_utils = find("mlx.core", "mlx"), find("mlx_lm.models.rope_utils", "mlx-lm")
    scaling = {"factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0}
    module = rope_utils.Llama3RoPE(2 * len(frequencies), scaling_config=scaling)
    module._freqs = mx.array((1 / frequencies).float().numpy())
    (states,) = to_mlx(x.transpose(0, 1))
    rotated = [module(states[None, :, t : t + 1], offset=position) for t, position in enumerate(positions.tolist())]
    return to_torch(mx.concatenate(rotated, axis=2)[0].swapaxes(0, 1))


def attention(
    q: Tensor, k: Tensor, v: Tensor, query_positions: Tensor, key_positions: Tensor, window: int | None
) -> Tensor:
    """Its caches hold keys in the order of their positions, without holes; its mask counts keys, not positions."""
    if len(q) == 0:
        return q.clone()
    base = find("mlx_lm.models.base", "mlx-lm")
    order = key_positions.argsort()[(key_positions < 0).sum() :]
    positions = key_positions[order]
    first = int((positions < query_positions[0]).sum())
    contiguous = bool((positions.diff() == 1).all())
    if (window is not None and not contiguous) or not torch.equal(query_positions, positions[first:][: len(q)]):
        raise ValueError(f"attention: keys stand at {positions.tolist()}; want consecutive positions, as its caches")
    mask = base.create_causal_mask(len(positions) - first, first, window_size=window)[: len(q)]
    states = to_mlx(q.transpose(0, 1)[None], k[order].transpose(0, 1)[None], v[order].transpose(0, 1)[None])
    mixed = base.scaled_dot_product_attention(*states, cache=None, scale=q.shape[-1] ** -0.5, mask=mask)
    return to_torch(mixed[0].swapaxes(0, 1))


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    gates, ups = to_mlx(gate, up)
    activated = _step3p5().clamped_swiglu(ups, gates, limit) if limit else _step3p5().swiglu(gates, ups)
    return to_torch(activated)


def mlp(x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, limit: float) -> Tensor:
    module = _step3p5().Step3p5MLP(SimpleNamespace(hidden_size=x.shape[-1]), len(gate_weight), limit)
    weights = {"gate_proj__weight": gate_weight, "up_proj__weight": up_weight, "down_proj__weight": down_weight}
    return to_torch(_with(module, **weights)(*to_mlx(x)))


def router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling_factor: float) -> tuple[Tensor, Tensor]:
    args = SimpleNamespace(
        moe_top_k=top_k,
        moe_num_experts=len(weight),
        moe_router_scaling_factor=scaling_factor,
        norm_expert_weight=True,
        hidden_size=x.shape[-1],
    )
    ids, weights = _with(_step3p5().Step3p5MoEGate(args), gate__weight=weight, router_bias=bias)(*to_mlx(x))
    return to_torch(ids).long(), to_torch(weights)


def experts(
    x: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    limit: float,
) -> Tensor:
    """Its MoE block, with a router that gives the row's choice and a shared expert that gives nothing."""
    step3p5, mx = _step3p5(), find("mlx.core", "mlx")
    num_experts, intermediate_size, hidden_size = gate_weight.shape
    activation = step3p5.ClampedSwiGLU(limit) if limit else step3p5.SwiGLU()
    switch = step3p5.SwitchGLU(hidden_size, intermediate_size, num_experts, activation=activation)
    weights = {"gate_proj__weight": gate_weight, "up_proj__weight": up_weight, "down_proj__weight": down_weight}
    states, *chosen = to_mlx(x, expert_ids, expert_weights)
    block = SimpleNamespace(
        sharding_group=None,
        gate=lambda _: tuple(chosen),
        switch_mlp=_with(switch, **weights),
        share_expert=mx.zeros_like,
    )
    return to_torch(step3p5.Step3p5MoE.__call__(block, states))


def sampling(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """What its sampler draws from: the draw itself is replaced by the distribution that it is given."""
    mx, sample_utils = find("mlx.core", "mlx"), find("mlx_lm.sample_utils", "mlx-lm")
    if len(logits) == 0:
        return torch.zeros(logits.shape)
    (scores,) = to_mlx(logits)
    if temperature == 0:
        chosen = to_torch(sample_utils.make_sampler(temp=0.0)(scores)).long()
        return functional.one_hot(chosen, logits.shape[-1]).float()
    top_k = top_k if top_k < logits.shape[-1] else 0
    sampler = sample_utils.make_sampler(temp=temperature, top_p=top_p, min_p=min_p, top_k=top_k)

    def distribution(logprobs: Any, temp: float) -> Any:
        return mx.softmax(logprobs.astype(mx.float32) * (1 / temp), axis=-1)

    with mock.patch.object(sample_utils, "categorical_sampling", distribution):
        return to_torch(sampler(scores - mx.logsumexp(scores, axis=-1, keepdims=True)))
