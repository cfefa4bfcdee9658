"""Loaded models that batch, draft or describe themselves wrongly: subclasses of ``ReferenceModel``."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from reference.engine import ReferenceModel, ReferenceSession

# Batches


class BatchRowsSwapped(ReferenceModel):
    """The first and the last context of a batch get each other's logits."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        logits = super().extend_batch(sessions, token_ids)
        if len(logits) > 1 and logits[0].shape == logits[-1].shape:
            logits[0], logits[-1] = logits[-1], logits[0]
        return logits


class BatchOfTheFirst(ReferenceModel):
    """Every context of a batch starts with the logits of the first."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        logits = super().extend_batch(sessions, token_ids)
        for row in logits[1:]:
            row[:1] = logits[0][:1]
        return logits


class BatchInBf16(ReferenceModel):
    """A sum is split otherwise for more than one context, and its parts are rounded."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        logits = super().extend_batch(sessions, token_ids)
        return [row.bfloat16().to(row.dtype) for row in logits] if len(logits) > 1 else logits


class BatchKeepsPadding(ReferenceModel):
    """Shorter contexts are padded with token 0, and the padding stays in their caches."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        longest = max(map(len, token_ids), default=0)
        logits = []
        for session, tokens in zip(sessions, token_ids, strict=True):
            length = session.length + len(tokens)
            padded = session.extend(tokens + [0] * (longest - len(tokens)))
            session.cache.length = length
            logits.append(padded[: len(tokens)])
        return logits


class BatchPaddedOnTheLeft(ReferenceModel):
    """Shorter contexts are padded on the left, and the padding counts in their positions."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        longest = max((session.length for session in sessions), default=0)
        logits = []
        for session, tokens in zip(sessions, token_ids, strict=True):
            own = session.cache.length
            session.cache.length = longest
            logits.append(session.extend(tokens))
            session.cache.length = own + len(tokens)
        return logits


class BatchLeaksIntoTheNext(ReferenceModel):
    """The last key and value of a context are seen by the next one of the batch."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        logits: list[Tensor] = []
        before: ReferenceSession | None = None
        for session, tokens in zip(sessions, token_ids, strict=True):
            if before is not None:
                for index, cache in session.cache.layers.items():
                    held = before.cache.layers[index]
                    if cache.capacity is None and len(cache.v_SKH) and len(held.v_SKH):
                        cache.v_SKH[-1] = held.v_SKH[-1]
            logits.append(session.extend(tokens))
            before = session
        return logits


class BatchOfTheSameLength(ReferenceModel):
    """Contexts of a batch are cut to the shortest one's number of new tokens; the rest repeats its last row."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        shortest = min(map(len, token_ids), default=0)
        logits = []
        for row in super().extend_batch(sessions, token_ids):
            row[shortest:] = row[shortest - 1 : shortest]
            logits.append(row)
        return logits


# Drafts' logits


class DraftLogitsNormalised(ReferenceModel):
    """Log-probabilities for logits."""

    def draft_logits(self, token_ids: list[int]) -> list[Tensor]:
        return [logits.log_softmax(dim=-1) for logits in super().draft_logits(token_ids)]


class DraftLogitsOneRowLate(ReferenceModel):
    """Rows are those of the position before."""

    def draft_logits(self, token_ids: list[int]) -> list[Tensor]:
        return [logits.roll(1, dims=0) for logits in super().draft_logits(token_ids)]


class DraftLogitsOfTheFirstDepth(ReferenceModel):
    """Every depth reports the first one's."""

    def draft_logits(self, token_ids: list[int]) -> list[Tensor]:
        first, *others = super().draft_logits(token_ids)
        return [first, *(first[: len(other)].clone() for other in others)]


class DraftLogitsOfTheBackbone(ReferenceModel):
    """The first depth reports the model's own logits."""

    def draft_logits(self, token_ids: list[int]) -> list[Tensor]:
        _, *others = super().draft_logits(token_ids)
        return [self.new_session().extend(token_ids)[1:], *others]


# The table of layers


class WithLayers(ReferenceModel):
    """Reports other layers than it has."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise NotImplementedError

    def layers(self) -> list[dict[str, Any]]:
        return self.change([dict(layer) for layer in super().layers()])

    def everywhere(self, layers: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
        return [layer | {name: layers[0][name]} for layer in layers]


class LayersWithHeadsOfFullOnes(WithLayers):
    """64 heads everywhere."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.everywhere(layers, "num_attention_heads")


class LayersWithTheFirstTheta(WithLayers):
    """5,000,000 everywhere."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.everywhere(layers, "rope_theta")


class LayersWithScalingEverywhere(WithLayers):
    """yarn_only_types is not read."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.everywhere(layers, "has_rope_scaling")


class LayersWithALargerWindow(WithLayers):
    """The window does not count the query itself."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [layer | {"sliding_window": layer["sliding_window"] and layer["sliding_window"] + 1} for layer in layers]


class LayersWithoutMtp(WithLayers):
    """The MTP layers are left out."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return layers[: self.model.config.num_hidden_layers]


class LayersOneOn(WithLayers):
    """Each layer reports the kind of the next one."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            layer | {"attention_type": after["attention_type"]}
            for layer, after in zip(layers, [*layers[1:], layers[-1]], strict=True)
        ]


class LayersWithSharedLimitOfTheSibling(WithLayers):
    """The shared expert's limit wherever routed experts have one."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [layer | {"swiglu_limit_shared": 16.0} if layer["swiglu_limit"] else layer for layer in layers]


class LayersWithExpertsFromTheStart(WithLayers):
    """The dense first layers are counted as MoE layers."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        backbone = self.model.config.num_hidden_layers
        return [layer | {"is_moe": index < backbone} for index, layer in enumerate(layers)]
