"""ModelConfig: every architecture number of the model, read from a checkpoint's config.json.

The checkpoint's own keys appear once, here; everywhere else the names are the ones that engines share.
Source: published config.json of stepfun-ai/Step-3.5-Flash and -FP8; defaults as in StepFun's configuration_step3p5.py.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

AttentionType = Literal["full_attention", "sliding_attention"]
DEFAULT_RMS_NORM_EPS = 1e-5  # absent from the published file; vLLM, llama.cpp and StepFun's class agree on it


class ConfigError(ValueError):
    """A field of config.json that is unknown, contradictory or out of range."""


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling; wavelengths are measured in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class Fp8Config:
    """Block-scaled e4m3 weights; activations are quantised while running."""

    weight_block_size: tuple[int, int] = (128, 128)


@dataclass(frozen=True)
class Int4Config:
    """4-bit codes of routed experts, with a scale for each group of inputs."""

    group_size: int = 128


@dataclass(frozen=True)
class LayerConfig:
    """One decoder layer; ``index`` counts the MTP layers after the backbone, as the checkpoint does."""

    index: int
    hidden_size: int
    attention_type: AttentionType
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    sliding_window: int | None  # keys that a query sees, itself included; None sees all
    is_moe: bool
    intermediate_size: int  # of the dense MLP; of one expert where is_moe
    num_experts: int
    num_experts_per_tok: int
    routed_scaling_factor: float
    shared_expert_intermediate_size: int
    swiglu_limit: float  # routed experts; 0 does not clamp
    swiglu_limit_shared: float  # shared expert and dense MLP; 0 does not clamp
    rms_norm_eps: float


@dataclass(frozen=True)
class ModelConfig:
    """The model's numbers. ``layers`` holds the backbone, ``mtp_layers`` the draft depths after it."""

    hidden_size: int
    vocab_size: int
    num_hidden_layers: int
    num_nextn_predict_layers: int
    max_position_embeddings: int
    rms_norm_eps: float
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    layers: tuple[LayerConfig, ...]
    mtp_layers: tuple[LayerConfig, ...]
    quantization: Fp8Config | Int4Config | None = None

    @classmethod
    def from_file(cls, path: str | Path) -> "ModelConfig":
        """Read a config.json, or the one in a checkpoint folder.

        Raises:
            ConfigError: the file is missing, is not JSON, or a field is wrong; the message names it.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "config.json"
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; want a checkpoint's config.json") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not JSON ({error}); want a checkpoint's config.json") from None
        if not isinstance(fields, dict):
            raise ConfigError(f"{path}: is a JSON {type(fields).__name__}; want an object of fields")
        return cls.from_dict(fields)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ModelConfig":
        """Read the published fields.

        Raises:
            ConfigError: names the field, the value and what is wanted.
        """
        return _Reader(fields).model()

    def with_window(self, sliding_window: int) -> "ModelConfig":
        """The same model with another sliding window: 513 is what StepFun's training kernel and SGLang compute."""
        if sliding_window < 1:
            raise ConfigError(f"sliding_window: is {sliding_window}; want 1 or more keys, self included")

        def widen(layer: LayerConfig) -> LayerConfig:
            return layer if layer.sliding_window is None else replace(layer, sliding_window=sliding_window)

        return replace(
            self,
            layers=tuple(widen(layer) for layer in self.layers),
            mtp_layers=tuple(widen(layer) for layer in self.mtp_layers),
        )


# What each published field must be where this project implements one value only.
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("step3p5",),
    "use_moe": (True,),
    "use_qk_norm": (True,),
    "use_head_wise_attn_gate": (True,),
    "use_moe_router_bias": (True,),
    "need_fp32_gate": (True,),
    "norm_expert_weight": (True,),
    "zero_centered": (True,),
    "moe_router_activation": ("sigmoid",),
    "att_impl_type": ("GQA",),
    "sink": (False,),
    "tie_word_embeddings": (False,),
    "use_rope_layers": ([], None),
    "attention_bias": (False,),
    "hidden_act": ("silu",),
}
# Read by nobody: they say how the file was made or how another program finds its classes.
_IGNORED = {
    "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "max_seq_len", "pad_token_id",
    "use_cache", "moe_layer_offset", "moe_every_n_layer", "attention_dropout", "initializer_range", "_name_or_path",
    "output_attentions", "output_hidden_states", "return_dict", "sep_token_id", "chunk_size_feed_forward", "use_mfa",
}  # fmt: skip
_READ = {
    "hidden_size", "vocab_size", "num_hidden_layers", "num_nextn_predict_layers", "max_position_embeddings",
    "rms_norm_eps", "bos_token_id", "eos_token_id", "intermediate_size", "num_attention_heads",
    "num_attention_groups", "head_dim", "attention_other_setting", "layer_types", "sliding_window", "rope_theta",
    "partial_rotary_factors", "rope_scaling", "yarn_only_types", "moe_layers_enum", "moe_num_experts",
    "moe_top_k", "moe_intermediate_size", "moe_router_scaling_factor", "share_expert_dim", "share_expert_dims",
    "swiglu_limits", "swiglu_limits_shared", "quantization_config",
}  # fmt: skip


class _Reader:
    """Turns published fields into a ModelConfig, naming the field in every complaint."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = dict(fields)

    def model(self) -> ModelConfig:
        self._refuse_unknown()
        num_layers = self._int("num_hidden_layers", 1)
        num_mtp = self._int("num_nextn_predict_layers", 0, default=0)
        layers = tuple(self._layer(index, num_layers, num_mtp) for index in range(num_layers + num_mtp))
        eos = self.fields.get("eos_token_id", [])
        return ModelConfig(
            hidden_size=self._int("hidden_size", 1),
            vocab_size=self._int("vocab_size", 1),
            num_hidden_layers=num_layers,
            num_nextn_predict_layers=num_mtp,
            max_position_embeddings=self._int("max_position_embeddings", 1),
            rms_norm_eps=self._eps(),
            bos_token_id=self._int("bos_token_id", 0, default=0),
            eos_token_ids=tuple(eos) if isinstance(eos, list) else (eos,),
            layers=layers[:num_layers],
            mtp_layers=layers[num_layers:],
            quantization=self._quantization(),
        )

    def _refuse_unknown(self) -> None:
        unknown = sorted(self.fields.keys() - _FIXED.keys() - _IGNORED - _READ)
        if unknown:
            named = ", ".join(f"{name} = {self.fields[name]!r}" for name in unknown)
            raise ConfigError(
                f"unknown field {named}; want only fields of a step3p5 config: "
                "check the spelling, or teach reference/config.py what it means"
            )
        for name, wanted in _FIXED.items():
            if name in self.fields and self.fields[name] not in wanted:
                raise ConfigError(f"{name}: is {self.fields[name]!r}; want {wanted[0]!r}, the only one implemented")
        if "model_type" not in self.fields:
            raise ConfigError("model_type: is missing; want 'step3p5'")
        limit, positions = self.fields.get("max_seq_len"), self.fields.get("max_position_embeddings")
        if limit is not None and positions is not None and limit != positions:
            raise ConfigError(f"max_seq_len: is {limit}, but max_position_embeddings is {positions}; want them equal")

    def _layer(self, index: int, num_layers: int, num_mtp: int) -> LayerConfig:
        kind = self._of_layer("layer_types", index, num_layers, num_mtp, mtp_default="sliding_attention")
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(f"layer_types[{index}]: is {kind!r}; want 'full_attention' or 'sliding_attention'")
        heads = self.fields if kind == "full_attention" else self._other_heads()
        prefix = "" if kind == "full_attention" else "attention_other_setting."
        num_heads = self._int_in(heads, prefix, "num_attention_heads")
        num_groups = self._int_in(heads, prefix, "num_attention_groups")
        head_dim = self._int_in(heads, prefix, "head_dim")
        if num_heads % num_groups:
            raise ConfigError(
                f"{prefix}num_attention_heads: is {num_heads}; want a multiple of num_attention_groups = {num_groups}"
            )
        is_moe = index < num_layers and index in self._moe_layers(num_layers)
        return LayerConfig(
            index=index,
            hidden_size=self._int("hidden_size", 1),
            attention_type=kind,
            num_attention_heads=num_heads,
            num_key_value_heads=num_groups,
            head_dim=head_dim,
            rotary_dim=self._rotary_dim(index, num_layers, num_mtp, head_dim),
            rope_theta=self._positive_of_layer("rope_theta", index, num_layers, num_mtp),
            rope_scaling=self._scaling() if kind in self._scaled_types() else None,
            sliding_window=self._int("sliding_window", 1) if kind == "sliding_attention" else None,
            is_moe=is_moe,
            intermediate_size=self._int("moe_intermediate_size" if is_moe else "intermediate_size", 1),
            num_experts=self._int("moe_num_experts", 1) if is_moe else 0,
            num_experts_per_tok=self._top_k() if is_moe else 0,
            routed_scaling_factor=self._number("moe_router_scaling_factor", 1.0) if is_moe else 0.0,
            shared_expert_intermediate_size=self._shared_size() if is_moe else 0,
            swiglu_limit=self._limit("swiglu_limits", index, num_layers, num_mtp) if is_moe else 0.0,
            swiglu_limit_shared=self._limit("swiglu_limits_shared", index, num_layers, num_mtp),
            rms_norm_eps=self._eps(),
        )

    # -- per-layer lists: one entry for each backbone layer, with or without entries for the MTP layers after them

    def _of_layer(self, name: str, index: int, num_layers: int, num_mtp: int, mtp_default: Any = None) -> Any:
        values = self.fields.get(name)
        if values is None:
            raise ConfigError(f"{name}: is missing; want a list of {num_layers} or {num_layers + num_mtp} entries")
        if not isinstance(values, list):
            raise ConfigError(
                f"{name}: is {values!r}; want a list of {num_layers} or {num_layers + num_mtp} entries, one a layer"
            )
        if len(values) not in (num_layers, num_layers + num_mtp):
            raise ConfigError(
                f"{name}: has {len(values)} entries; want {num_layers} (num_hidden_layers) "
                f"or {num_layers + num_mtp} (with num_nextn_predict_layers = {num_mtp})"
            )
        if index < len(values):
            return values[index]
        if mtp_default is not None:
            return mtp_default
        return values[self._last_sliding(num_layers)]  # a list cut to the backbone: MTP layers are like sliding ones

    def _last_sliding(self, num_layers: int) -> int:
        kinds = self.fields["layer_types"][:num_layers]
        sliding = [index for index, kind in enumerate(kinds) if kind == "sliding_attention"]
        if not sliding:
            raise ConfigError(
                "layer_types: has no entry for the MTP layers and no sliding layer; want one entry for each MTP layer"
            )
        return sliding[-1]

    def _positive_of_layer(self, name: str, index: int, num_layers: int, num_mtp: int) -> float:
        value = self._of_layer(name, index, num_layers, num_mtp)
        if not _is_number(value) or value <= 0:
            raise ConfigError(f"{name}[{index}]: is {value!r}; want a number above 0")
        return float(value)

    def _rotary_dim(self, index: int, num_layers: int, num_mtp: int, head_dim: int) -> int:
        fraction = self._positive_of_layer("partial_rotary_factors", index, num_layers, num_mtp)
        rotary_dim = round(head_dim * fraction)
        if fraction > 1 or rotary_dim != head_dim * fraction or rotary_dim % 2:
            raise ConfigError(
                f"partial_rotary_factors[{index}]: is {fraction}; "
                f"want a fraction that leaves an even number of head_dim = {head_dim}"
            )
        return rotary_dim

    def _limit(self, name: str, index: int, num_layers: int, num_mtp: int) -> float:
        if self.fields.get(name) is None:
            return 0.0
        value = self._of_layer(name, index, num_layers, num_mtp, mtp_default=0.0)
        if value is None:
            return 0.0
        if not _is_number(value) or value < 0:
            raise ConfigError(f"{name}[{index}]: is {value!r}; want 0 (no clamp) or a limit above 0")
        return float(value)

    # -- single fields

    def _int(self, name: str, minimum: int, default: int | None = None) -> int:
        value = self.fields.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ConfigError(f"{name}: {self._is(name)}; want a whole number of {minimum} or more")
        return value

    def _int_in(self, fields: Mapping[str, Any], prefix: str, name: str) -> int:
        value = fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{prefix}{name}: is {value!r}; want a whole number of 1 or more")
        return value

    def _number(self, name: str, default: float) -> float:
        value = self.fields.get(name, default)
        if not _is_number(value) or value <= 0:
            raise ConfigError(f"{name}: is {value!r}; want a number above 0")
        return float(value)

    def _is(self, name: str) -> str:
        return f"is {self.fields[name]!r}" if name in self.fields else "is missing"

    def _eps(self) -> float:
        return self._number("rms_norm_eps", DEFAULT_RMS_NORM_EPS)

    def _top_k(self) -> int:
        top_k, num_experts = self._int("moe_top_k", 1), self._int("moe_num_experts", 1)
        if top_k > num_experts:
            raise ConfigError(f"moe_top_k: is {top_k}; want at most moe_num_experts = {num_experts}")
        return top_k

    def _shared_size(self) -> int:
        if "share_expert_dim" in self.fields and "share_expert_dims" in self.fields:
            one, other = self.fields["share_expert_dim"], self.fields["share_expert_dims"]
            if one != other:
                raise ConfigError(f"share_expert_dim: is {one!r}, but share_expert_dims is {other!r}; want them equal")
        return self._int("share_expert_dims" if "share_expert_dims" in self.fields else "share_expert_dim", 1)

    def _other_heads(self) -> Mapping[str, Any]:
        other = self.fields.get("attention_other_setting")
        if not isinstance(other, dict):
            raise ConfigError(
                f"attention_other_setting: {self._is('attention_other_setting')}; "
                "want the head counts of the sliding layers"
            )
        if other.get("attention_type", "sliding_attention") != "sliding_attention":
            raise ConfigError(
                f"attention_other_setting.attention_type: is {other['attention_type']!r}; want 'sliding_attention'"
            )
        if other.get("true_head_dim", other.get("head_dim")) != other.get("head_dim"):
            raise ConfigError(
                f"attention_other_setting.true_head_dim: is {other['true_head_dim']!r}; "
                f"want head_dim = {other.get('head_dim')!r}"
            )
        return other

    def _moe_layers(self, num_layers: int) -> set[int]:
        value = self.fields.get("moe_layers_enum")
        if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", value):
            layers: Sequence[int] = [int(part) for part in value.split(",")]
        elif isinstance(value, list) and all(isinstance(layer, int) for layer in value):
            layers = value
        else:
            raise ConfigError(
                f"moe_layers_enum: {self._is('moe_layers_enum')}; want '3,4,5' or [3, 4, 5], the layers with experts"
            )
        beyond = [layer for layer in layers if not 0 <= layer < num_layers]
        if beyond or len(set(layers)) != len(layers):
            raise ConfigError(f"moe_layers_enum: is {value!r}; want each layer below {num_layers} at most once")
        return set(layers)

    def _scaled_types(self) -> Sequence[str]:
        types = self.fields.get("yarn_only_types") or ["full_attention", "sliding_attention"]
        unknown = [name for name in types if name not in ("full_attention", "sliding_attention")]
        if unknown:
            raise ConfigError(f"yarn_only_types: is {types!r}; want 'full_attention' and 'sliding_attention' only")
        return types

    def _scaling(self) -> RopeScaling | None:
        scaling = self.fields.get("rope_scaling")
        if scaling is None:
            return None
        kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else scaling
        if kind != "llama3":
            raise ConfigError(f"rope_scaling.rope_type: is {kind!r}; want 'llama3'")
        missing = [key for key in RopeScaling.__dataclass_fields__ if not _is_number(scaling.get(key))]
        if missing:
            raise ConfigError(
                f"rope_scaling: lacks a number for {', '.join(missing)}; want all four of a llama3 scaling"
            )
        parsed = RopeScaling(
            factor=float(scaling["factor"]),
            low_freq_factor=float(scaling["low_freq_factor"]),
            high_freq_factor=float(scaling["high_freq_factor"]),
            original_max_position_embeddings=int(scaling["original_max_position_embeddings"]),
        )
        if not parsed.factor >= 1 or not 0 < parsed.low_freq_factor < parsed.high_freq_factor:
            raise ConfigError(
                f"rope_scaling: is {scaling!r}; want factor >= 1 and 0 < low_freq_factor < high_freq_factor"
            )
        return parsed

    def _quantization(self) -> Fp8Config | Int4Config | None:
        quantization = self.fields.get("quantization_config")
        if quantization is None:
            return None
        if quantization.get("quant_method") == "compressed-tensors":
            return self._int4(quantization)
        wanted = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
        for key, value in wanted.items():
            if quantization.get(key) != value:
                raise ConfigError(f"quantization_config.{key}: is {quantization.get(key)!r}; want {value!r}")
        block = quantization.get("weight_block_size")
        if not isinstance(block, list) or len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block):
            raise ConfigError(f"quantization_config.weight_block_size: is {block!r}; want two sizes such as [128, 128]")
        return Fp8Config(weight_block_size=(block[0], block[1]))

    def _int4(self, quantization: Mapping[str, Any]) -> Int4Config:
        """The one scheme of compressed-tensors that ``int4`` is: its codes, packed eight to an int32."""
        groups = quantization.get("config_groups")
        weights = next(iter(groups.values())).get("weights") if isinstance(groups, dict) and len(groups) == 1 else None
        wanted = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
        if quantization.get("format") != "pack-quantized" or not isinstance(weights, dict):
            raise ConfigError("quantization_config: want format pack-quantized and one of config_groups, with weights")
        for key, value in wanted.items():
            if weights.get(key) != value:
                raise ConfigError(f"quantization_config: weights.{key} is {weights.get(key)!r}; want {value!r}")
        group = self._int_in(weights, "quantization_config: weights.", "group_size")
        for name in ("hidden_size", "moe_intermediate_size"):
            if self._int(name, 1) % 8 or group % 2:
                raise ConfigError(
                    f"{name}: is {self.fields[name]} in groups of {group}; want multiples of 8 and an even group, as "
                    "codes are packed"
                )
        return Int4Config(group)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
