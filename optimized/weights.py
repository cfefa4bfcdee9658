"""A checkpoint's tensors on the device, in the layout that kernels want: layer by layer, every one accounted for.

The projections of queries, keys, values and head gates are one weight, so that a step reads its input once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from reference.checkpoint import DRAFT_HEAD_NAME, Checkpoint, CheckpointError
from reference.config import LayerConfig, ModelConfig
from reference.quantization import FORMATS, QuantizedWeight, quantize_stack
from s35_progress import tracked

Matrix = Tensor | QuantizedWeight  # [O, I]


@dataclass(frozen=True)
class Format:
    """How weights are held, and where activations round.

    Attributes:
        dtype: of activations, caches, and weights that are not quantised.
        experts: what routed experts are rounded to while loading, "fp8" or "int4"; None leaves them as stored.
        rest: the same of every other matrix but the embedding and the routers: "fp8", or None.
        draft_heads: the same of the MTP depths' own output heads, "fp8" or "int4"; None: as ``rest``.
        rounds: whether the experts' activations are rounded to e4m3, too.
    """

    dtype: torch.dtype
    experts: str | None = None
    rest: str | None = None
    draft_heads: str | None = None
    rounds: bool = False

    def __post_init__(self) -> None:
        if self.draft_heads not in (None, *FORMATS):
            raise ValueError(f"draft_heads: is {self.draft_heads!r}; want one of {', '.join(FORMATS)}")

    @property
    def of_draft_heads(self) -> str | None:
        """What the MTP depths' own output heads are rounded to."""
        return self.draft_heads or self.rest


PROFILES = {
    "float32": Format(torch.float32),
    "bf16": Format(torch.bfloat16),
    "fp8": Format(torch.bfloat16, experts="fp8", rounds=True),
    "w8a16": Format(torch.bfloat16, experts="fp8"),
    "w4a16": Format(torch.bfloat16, experts="int4"),
}


@dataclass(frozen=True)
class Gates:
    """The three weights of a SwiGLU block: gate and up [F, D], down [D, F]; of experts with E before them."""

    gate: Matrix
    up: Matrix
    down: Matrix


@dataclass(frozen=True)
class MtpWeights:
    """What an MTP layer has beside a decoder layer; ``joined`` is eh_proj, ``head`` is the depth's own."""

    embedded_norm: Tensor
    hidden_norm: Tensor
    joined: Matrix
    norm: Tensor
    head: Matrix


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer.

    Attributes:
        qkvg: [(N + 2 K) H + N, D]: queries, keys, values, then a gate for each query head.
        mlp: the dense block, or the shared expert.
        router, router_bias, experts: of a layer with routed experts.
    """

    layer: LayerConfig
    input_norm: Tensor
    post_norm: Tensor
    qkvg: Matrix
    q_norm: Tensor
    k_norm: Tensor
    output: Matrix
    mlp: Gates
    router: Tensor | None = None
    router_bias: Tensor | None = None
    experts: Gates | None = None
    mtp: MtpWeights | None = None


@dataclass(frozen=True)
class ModelWeights:
    """All tensors of a model on one device."""

    config: ModelConfig
    format: Format
    embedding: Tensor
    norm: Tensor
    head: Matrix
    layers: tuple[LayerWeights, ...]
    mtp_layers: tuple[LayerWeights, ...]

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def nbytes(self) -> int:
        """Bytes held, storage that layers share counted once."""
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors_of(self)}
        return sum(storage.nbytes() for storage in storages.values())


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor inside dataclasses and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from tensors_of(one)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))


def load_weights(checkpoint: Checkpoint, format: Format, device: torch.device | str) -> ModelWeights:
    """Read a checkpoint, one layer at a time: the host holds no more than a layer's mapped pages.

    Experts that are stored in FP8 or int4 stay as they are in every format.

    Raises:
        CheckpointError: a tensor that no layer takes.
        ValueError: sizes that the format of the draft heads cannot pack.
    """
    config = checkpoint.config
    place = _Placement(format, torch.device(device))
    top = _Named("", checkpoint.top())
    embedding = place.plain(top.take("model.embed_tokens.weight"))
    norm = place.plain(top.take("model.norm.weight"))
    head = place.matrix(top.take("lm_head.weight"))
    top.require_empty()
    layers = [
        _layer(place, layer, checkpoint.layer(layer.index), layer.index >= config.num_hidden_layers)
        for layer in tracked(config.layers + config.mtp_layers, "layers loaded")
    ]
    backbone = config.num_hidden_layers
    return ModelWeights(config, format, embedding, norm, head, tuple(layers[:backbone]), tuple(layers[backbone:]))


class _Named:
    """Tensors that are each taken once."""

    def __init__(self, where: str, tensors: Mapping[str, Any]) -> None:
        self._where, self._tensors = where, dict(tensors)

    def take(self, name: str) -> Any:
        return self._tensors.pop(name)

    def require_empty(self) -> None:
        if self._tensors:
            raise CheckpointError(
                f"{self._where}{', '.join(self._tensors)}: is read by no layer; want every tensor used"
            )


@dataclass(frozen=True)
class _Placement:
    format: Format
    device: torch.device

    def plain(self, tensor: Tensor) -> Tensor:
        """To the device, in the format's dtype; float32 stays float32."""
        dtype = tensor.dtype if tensor.dtype == torch.float32 else self.format.dtype
        return tensor.to(self.device, dtype).contiguous()

    def matrix(self, *parts: Tensor) -> Matrix:
        """One weight of the rows of several."""
        weight = torch.cat([self.plain(part) for part in parts]) if len(parts) > 1 else self.plain(parts[0])
        return weight if self.format.rest is None else FORMATS[self.format.rest].quantize(weight)

    def draft_head(self, weight: Tensor) -> Matrix:
        """The output head of an MTP depth, rounded some rows at a time."""
        kind = self.format.of_draft_heads
        return self.plain(weight) if kind is None else quantize_stack(kind, weight, self.device)

    def experts(self, weight: Matrix) -> Matrix:
        """A stack of experts, rounded a few at a time."""
        if not isinstance(weight, Tensor):
            return weight.to(self.device)
        if self.format.experts is None:
            return self.plain(weight)
        return quantize_stack(self.format.experts, weight, self.device)


def _layer(place: _Placement, layer: LayerConfig, tensors: Mapping[str, Any], is_mtp: bool) -> LayerWeights:
    named = _Named(f"model.layers.{layer.index}.", tensors)

    def plain(name: str) -> Tensor:
        return place.plain(named.take(f"{name}.weight"))

    def matrix(*names: str) -> Matrix:
        return place.matrix(*(named.take(f"{name}.weight") for name in names))

    def gates(prefix: str, put: Callable[[Any], Matrix]) -> Gates:
        return Gates(*(put(named.take(f"{prefix}.{name}_proj.weight")) for name in ("gate", "up", "down")))

    weights = LayerWeights(
        layer=layer,
        input_norm=plain("input_layernorm"),
        post_norm=plain("post_attention_layernorm"),
        qkvg=matrix(*(f"self_attn.{name}_proj" for name in "qkvg")),
        q_norm=plain("self_attn.q_norm"),
        k_norm=plain("self_attn.k_norm"),
        output=matrix("self_attn.o_proj"),
        mlp=gates("share_expert" if layer.is_moe else "mlp", place.matrix),
        router=plain("moe.gate") if layer.is_moe else None,
        router_bias=place.plain(named.take("moe.router_bias")) if layer.is_moe else None,
        experts=gates("moe", place.experts) if layer.is_moe else None,
        mtp=MtpWeights(
            embedded_norm=plain("enorm"),
            hidden_norm=plain("hnorm"),
            joined=matrix("eh_proj"),
            norm=plain("transformer.shared_head.norm"),
            head=place.draft_head(named.take(DRAFT_HEAD_NAME)),
        )
        if is_mtp
        else None,
    )
    named.require_empty()
    return weights
