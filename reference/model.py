"""The whole model: embedding, decoder layers, final norm and head, and the MTP layers beside them.

Source: StepFun modeling_step3p5.py; MTP as vLLM and SGLang step3p5_mtp.py.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .cache import KVCache
from .checkpoint import DRAFT_HEAD_NAME
from .config import LayerConfig, ModelConfig
from .layers import LayerWeights, Observer, decoder_layer, observe_nothing
from .operators import Operators
from .ops.rope import inverse_frequencies
from .quantization import dense


class Weights(Protocol):
    """Where a model finds its tensors: in memory, or in a checkpoint's files while it runs."""

    def top(self) -> Mapping[str, Any]:
        """``model.embed_tokens.weight``, ``model.norm.weight`` and ``lm_head.weight``."""
        ...

    def layer(self, index: int) -> LayerWeights:
        """Tensors of ``model.layers.index.``, under the rest of their names."""
        ...


class Model:
    """The reference model.

    Args:
        config: the model's numbers.
        weights: its tensors, on ``device``, in the dtypes of the checkpoint or wider.
        dtype: of activations and caches; bfloat16 is the published arithmetic, float64 the oracle.
        ops: the operators; anything but the default is a variant under study.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        ops: Operators | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.dtype = dtype
        self.device = torch.device(device)
        self.ops = ops or Operators()
        table_device = torch.device("cpu") if self.device.type == "mps" else self.device  # MPS has no float64
        self._frequencies = {
            layer.index: inverse_frequencies(layer.rotary_dim, layer.rope_theta, layer.rope_scaling).to(table_device)
            for layer in config.layers + config.mtp_layers
        }

    def new_cache(self) -> KVCache:
        """An empty cache of the backbone."""
        return KVCache(self.config.layers, self.dtype, self.device)

    def new_mtp_cache(self, depth: int) -> KVCache:
        """An empty cache of one MTP depth: each depth has its own."""
        return KVCache((self.config.mtp_layers[depth],), self.dtype, self.device)

    def embed(self, token_ids: Tensor) -> Tensor:
        """[..., T] token ids to [..., T, D] in the model's dtype.

        Raises:
            ValueError: a token id outside the vocabulary.
        """
        if token_ids.numel() and not (int(token_ids.min()) >= 0 and int(token_ids.max()) < self.config.vocab_size):
            raise ValueError(
                f"token ids: range from {int(token_ids.min())} to {int(token_ids.max())}; "
                f"want 0 to {self.config.vocab_size - 1}, the vocabulary of this checkpoint"
            )
        table = self.weights.top()["model.embed_tokens.weight"]
        return self.ops.embedding(token_ids.to(self.device), table).to(self.dtype)

    def hidden(self, token_ids: Tensor, cache: KVCache | None = None, observe: Observer = observe_nothing) -> Tensor:
        """Run the backbone over new tokens.

        Args:
            token_ids: [T], or [..., T] without a cache.
            cache: what came before; extended by T positions. Without one the tokens stand at positions 0..T-1.

        Returns:
            [..., T, D], the residual stream before the final norm: what the head and MTP depth 0 take.
        """
        positions = self._positions(token_ids, cache)
        hidden = self.embed(token_ids)
        for layer in self.config.layers:
            hidden = self._layer(hidden, layer, positions, cache, observe)
        if cache is not None:
            cache.advance(token_ids.shape[-1])
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., T, D] before the final norm to [..., T, V]."""
        top = self.weights.top()
        normed = self.ops.rms_norm(hidden, top["model.norm.weight"], self.config.rms_norm_eps)
        return self.ops.linear(normed, top["lm_head.weight"])

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Run MTP depth 0, 1 or 2 over new rows.

        Row i takes the hidden state of position i (the backbone's before its final norm for depth 0, the previous
        depth's output for the others) and token i + 1 + depth; its logits predict token i + 2 + depth.

        Args:
            hidden: [..., T, D]; token_ids: [..., T].
            cache: this depth's own, over the whole context; None starts at row 0.

        Returns:
            [..., T, D], before the depth's own norm: what the next depth and ``mtp_logits`` take.
        """
        layer = self.config.mtp_layers[depth]
        weights = self.weights.layer(layer.index)
        positions = self._positions(token_ids, cache)
        joined = self.ops.mtp_input(
            self.embed(token_ids),
            hidden,
            weights["enorm.weight"],
            weights["hnorm.weight"],
            weights["eh_proj.weight"],
            layer.rms_norm_eps,
        )
        output = self._layer(joined, layer, positions, cache, observe_nothing)
        if cache is not None:
            cache.advance(token_ids.shape[-1])
        return output

    def mtp_logits(self, depth: int, hidden: Tensor) -> Tensor:
        """[..., T, D] of ``mtp_hidden`` to [..., T, V], by the depth's own norm and head."""
        weights = self.weights.layer(self.config.mtp_layers[depth].index)
        norm_weight = weights["transformer.shared_head.norm.weight"]
        normed = self.ops.rms_norm(hidden, norm_weight, self.config.rms_norm_eps)
        wide = torch.promote_types(normed.dtype, torch.float32)
        return self.ops.linear(normed, dense(weights[DRAFT_HEAD_NAME], wide))

    def _positions(self, token_ids: Tensor, cache: KVCache | None) -> Tensor:
        start = 0 if cache is None else cache.length
        end = start + token_ids.shape[-1]
        if end > self.config.max_position_embeddings:
            raise ValueError(
                f"context: would reach {end} tokens; want at most max_position_embeddings = "
                f"{self.config.max_position_embeddings}: shorten the prompt or generate fewer tokens"
            )
        return torch.arange(start, end, device=self.device)

    def _layer(
        self, hidden: Tensor, layer: LayerConfig, positions: Tensor, cache: KVCache | None, observe: Observer
    ) -> Tensor:
        return decoder_layer(
            hidden,
            self.weights.layer(layer.index),
            layer,
            positions,
            self._frequencies[layer.index],
            None if cache is None else cache.layers[layer.index],
            self.ops,
            observe,
        )
