"""Parameters, bytes and cache of a config, counted from its tensor table: nothing is allocated."""

import math
from dataclasses import dataclass
from typing import Any

from .checkpoint import EXPERT_NAMES, TensorSpec, expected_tensors
from .config import ModelConfig
from .quantization import weight_bytes

KV_ITEM_BYTES = 2  # bfloat16
CONTEXTS = (4096, 32_768, 65_536, 131_072, 262_144)


@dataclass(frozen=True)
class Tensors:
    """A group of tensors of the table."""

    specs: dict[str, TensorSpec]

    def where(self, *parts: str) -> "Tensors":
        """Those whose names hold one of the parts."""
        return Tensors({name: spec for name, spec in self.specs.items() if any(part in name for part in parts)})

    @property
    def parameters(self) -> int:
        """Weights, however many an entry stands for; scales are none."""
        return sum(spec.numel * spec.weights_each for spec in self.specs.values())

    def nbytes(self, expert_format: str | None = None) -> int:
        """Bytes as stored, or with the routed experts in ``expert_format`` ("bf16", "fp8" or "int4")."""
        if expert_format is None:
            return sum(spec.nbytes for spec in self.specs.values())
        total = 0
        for name, spec in self.specs.items():
            if not any(expert in name for expert in EXPERT_NAMES):
                total += spec.nbytes
            elif spec.weights_each:
                shape = (*spec.shape[:-1], spec.shape[-1] * spec.weights_each)
                total += math.prod(shape) * 2 if expert_format == "bf16" else weight_bytes(expert_format, shape)
        return total


def inspect(config: ModelConfig) -> dict[str, Any]:
    """What ``s35 inspect`` prints: counts in parameters, sizes in bytes, caches without the MTP layers."""
    everything = Tensors(expected_tensors(config))
    mtp_prefixes = tuple(f"model.layers.{layer.index}." for layer in config.mtp_layers)
    mtp = Tensors({n: s for n, s in everything.specs.items() if n.startswith(mtp_prefixes)})
    backbone = Tensors({n: s for n, s in everything.specs.items() if not n.startswith(mtp_prefixes)})
    full, sliding = (
        Tensors({n: s for n, s in backbone.where(".self_attn.").specs.items() if _layer_of(n) in indices})
        for indices in (
            {layer.index for layer in config.layers if layer.sliding_window is None},
            {layer.index for layer in config.layers if layer.sliding_window is not None},
        )
    )
    routed, head = backbone.where(*EXPERT_NAMES), backbone.where("lm_head")
    groups = {
        "embedding": backbone.where("embed_tokens").parameters,
        "lm_head": head.parameters,
        "attention_full_layers": full.parameters,
        "attention_sliding_layers": sliding.parameters,
        "dense_mlp": backbone.where(".mlp.").parameters,
        "routed_experts": routed.parameters,
        "shared_experts": backbone.where(".share_expert.").parameters,
        "router": backbone.where(".moe.gate.", ".moe.router_bias").parameters,
        "norms": backbone.where("layernorm", "model.norm").parameters,
    }
    parameters = groups | {
        "backbone": backbone.parameters,
        "mtp": mtp.parameters,
        "total": everything.parameters,
    }
    active = backbone.parameters - groups["embedding"] - groups["lm_head"] - routed.parameters + _chosen(routed, config)
    formats = ("bf16", "fp8", "int4")
    return {
        "num_tensors": len(everything.specs),
        "checkpoint_bytes": everything.nbytes(),
        "parameters": parameters,
        "active_parameters_per_token": {"without_lm_head": active, "with_lm_head": active + groups["lm_head"]},
        "weight_bytes_by_expert_format": {
            name: {"backbone": backbone.nbytes(name), "with_mtp": everything.nbytes(name)} for name in formats
        },
        "kv_cache_bytes": {str(context): kv_cache_bytes(config, context) for context in _contexts(config)},
    }


def kv_cache_bytes(config: ModelConfig, context: int, item_bytes: int = KV_ITEM_BYTES) -> int:
    """Keys and values of one sequence in the backbone: whole on full layers, one window on sliding ones."""
    return sum(
        2 * layer.num_key_value_heads * layer.head_dim * item_bytes * min(context, layer.sliding_window or context)
        for layer in config.layers
    )


def _contexts(config: ModelConfig) -> list[int]:
    limit = config.max_position_embeddings
    return [context for context in CONTEXTS if context < limit] + [limit]


def _chosen(routed: Tensors, config: ModelConfig) -> int:
    """Routed parameters that one token uses."""
    used = 0
    for name, spec in routed.specs.items():
        layer = config.layers[_layer_of(name)]
        used += spec.numel * spec.weights_each // layer.num_experts * layer.num_experts_per_tok
    return used


def _layer_of(name: str) -> int:
    return int(name.split(".")[2])
