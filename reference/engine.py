"""The reference as an engine under test: registered and judged exactly as a vendor's."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .config import LayerConfig
from .generate import Generation, SamplingParams, generate
from .layers import decoder_layer
from .model import Model
from .operators import Operators
from .quantization import quantize_fp8_weight, quantize_int4_weight


@dataclass(frozen=True)
class Arithmetic:
    """Where a profile rounds.

    Attributes:
        dtype: of activations, and of weights that are not quantised.
        quantize: rounds the routed experts of a checkpoint that holds them in bfloat16.
        rounds_activations: whether the experts' activations are rounded to FP8, too.
    """

    dtype: torch.dtype
    quantize: Callable[[Tensor], Any] | None = None
    rounds_activations: bool = False


PROFILES = {
    "float64": Arithmetic(torch.float64),
    "float32": Arithmetic(torch.float32),
    "bf16": Arithmetic(torch.bfloat16),
    "bf16-rotation": Arithmetic(torch.bfloat16),  # which allows rotations to be rounded; here they are not
    "fp8": Arithmetic(torch.bfloat16, quantize_fp8_weight, rounds_activations=True),
    "w8a16": Arithmetic(torch.bfloat16, quantize_fp8_weight),
    "w4a16": Arithmetic(torch.bfloat16, quantize_int4_weight),
}


class ReferenceEngine:
    """The operators and the model in one activation dtype.

    Args:
        profile: where rounding happens; one of PROFILES.
        ops: anything but the default is a variant under study.

    Attributes:
        draft_heads: what its models' MTP depths hold their output heads in; None: as stored.
    """

    def __init__(
        self,
        name: str = "reference",
        profile: str = "float32",
        device: torch.device | str = "cpu",
        ops: Operators | None = None,
    ) -> None:
        if profile not in PROFILES:
            raise ValueError(f"profile: is {profile!r}; want one of {', '.join(PROFILES)}")
        self.name = name
        self.profile = profile
        self.device = torch.device(device)
        self.operators = ops or Operators()
        self.draft_heads: str | None = None

    def with_draft_heads(self, format: str) -> Self:
        """This engine with draft heads rounded to "fp8" or "int4"."""
        changed = copy.copy(self)
        changed.draft_heads = format
        return changed

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Every row of ``reference/ops``."""
        return dict(vars(self.operators))

    def layer_of(self, rows: Mapping[str, Callable[..., Any]]) -> Callable[..., Tensor]:
        """``decoder_layer`` made of anybody's rows: it takes all that ``decoder_layer`` does, but for the operators.

        Args:
            rows: those that the layer reaches; of one that is not there, the reference's would be taken.
        """
        operators = replace(self.operators, **rows)
        return partial(decoder_layer, ops=operators)

    def load_model(self, checkpoint: Path) -> "ReferenceModel":
        """Load a checkpoint in the published format.

        Raises:
            ConfigError, CheckpointError: it is not one.
            ValueError: an unknown format of draft heads.
        """
        opened = Checkpoint(checkpoint)
        return ReferenceModel(build_model(opened, self.profile, self.device, self.operators, self.draft_heads))


def build_model(
    checkpoint: Checkpoint,
    profile: str,
    device: torch.device | str = "cpu",
    ops: Operators | None = None,
    draft_heads: str | None = None,
) -> Model:
    """Load a checkpoint into memory, for the arithmetic of a profile.

    Args:
        draft_heads: what the MTP depths' own heads are rounded to, "fp8" or "int4"; None: nothing.
    """
    arithmetic, ops = PROFILES[profile], ops or Operators()
    weights = checkpoint.load(device, None if arithmetic.dtype == torch.bfloat16 else arithmetic.dtype)
    if (quantize := arithmetic.quantize) is not None:
        weights = weights.with_experts(lambda weight: quantize(weight) if isinstance(weight, Tensor) else weight)
    if draft_heads is not None:
        weights = weights.with_draft_heads(draft_heads)
    if arithmetic.rounds_activations:
        ops = replace(ops, experts=ops.experts_fp8)
    return Model(checkpoint.config, weights, arithmetic.dtype, device, ops)


class ReferenceModel:
    """A loaded model that hands out sessions."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def new_session(self) -> "ReferenceSession":
        """An empty context."""
        return ReferenceSession(self.model)

    def extend_batch(self, sessions: Sequence["ReferenceSession"], token_ids: Sequence[list[int]]) -> list[Tensor]:
        """Extend several contexts, one after the other."""
        return [session.extend(tokens) for session, tokens in zip(sessions, token_ids, strict=True)]

    def draft_logits(self, token_ids: list[int]) -> list[Tensor]:
        """Logits of every MTP depth k along a text, [T - 1 - k, V]; row i predicts token i + 2 + k."""
        tokens = torch.tensor(token_ids)
        logits = []
        with torch.inference_mode():
            hidden = self.model.hidden(tokens)
            for depth in range(self.model.config.num_nextn_predict_layers):
                following = tokens[1 + depth :]
                hidden = self.model.mtp_hidden(depth, hidden[: len(following)], following)
                logits.append(self.model.mtp_logits(depth, hidden))
        return logits

    def layers(self) -> list[dict[str, Any]]:
        """What each layer was built from; heads and experts are counted in the tensors."""
        return [self._layer(layer) for layer in self.model.config.layers + self.model.config.mtp_layers]

    def _layer(self, layer: LayerConfig) -> dict[str, Any]:
        weights = self.model.weights.layer(layer.index)
        return {
            "attention_type": layer.attention_type,
            "num_attention_heads": weights["self_attn.q_proj.weight"].shape[0] // layer.head_dim,
            "num_key_value_heads": weights["self_attn.k_proj.weight"].shape[0] // layer.head_dim,
            "sliding_window": layer.sliding_window,
            "rotary_dim": layer.rotary_dim,
            "rope_theta": layer.rope_theta,
            "has_rope_scaling": layer.rope_scaling is not None,
            "is_moe": "moe.gate.weight" in weights,
            "swiglu_limit": layer.swiglu_limit,
            "swiglu_limit_shared": layer.swiglu_limit_shared,
        }

    def generate(
        self,
        prompt_ids: list[int],
        max_new_tokens: int,
        mtp: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
    ) -> Generation:
        """As ``reference.generate.generate``."""
        params = SamplingParams(temperature, top_k, top_p, min_p, seed)
        with torch.inference_mode():
            return generate(self.model, prompt_ids, max_new_tokens, mtp, params)


class ReferenceSession:
    """One context: tokens go in, logits come out, the newest tokens can be taken back."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.cache = model.new_cache()
        self._routing: dict[int, dict[str, Tensor]] = {}

    @property
    def length(self) -> int:
        """Tokens in the context."""
        return self.cache.length

    def extend(self, token_ids: list[int]) -> Tensor:
        """Append tokens; logits [T, V] of each of them."""
        self._routing = {}
        with torch.inference_mode():
            return self.model.logits(self.model.hidden(torch.tensor(token_ids), self.cache, self._observe))

    def routing(self) -> dict[int, tuple[Tensor, Tensor]]:
        """For each MoE layer, expert ids and expert weights [T, A] of the newest ``extend``."""
        return {layer: (seen["expert_ids"], seen["expert_weights"]) for layer, seen in self._routing.items()}

    def _observe(self, layer_index: int, what: str, value: Tensor) -> None:
        self._routing.setdefault(layer_index, {})[what] = value

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens."""
        self.cache.truncate(length)


engine = ReferenceEngine()
bf16_engine = ReferenceEngine("reference-bf16", "bf16")
fp8_engine = ReferenceEngine("reference-fp8", "fp8")
w8a16_engine = ReferenceEngine("reference-w8a16", "w8a16")
w4a16_engine = ReferenceEngine("reference-w4a16", "w4a16")
