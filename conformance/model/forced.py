"""Forced replay: the oracle and the legal evaluations go through a context with the experts that the engine chose.

A router that decides a near-tie otherwise sends a token through another expert, and every later number of that token
differs, legally. With the engine's own ids adopted layer by layer, nothing differs but rounding: each layer's choice is
judged on the scores that the engine must have seen, and logits are compared in an envelope without flips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from reference.config import ModelConfig
from reference.model import Model

from ..guard import GuardedSession
from ..oracle import OracleModel
from ..tolerance import ConformanceError, DotBound, Envelope

Routing = Mapping[int, tuple[Tensor, Tensor]]  # by layer: expert ids and expert weights [T, A]


@dataclass
class Replay:
    """One evaluation under forced ids.

    Attributes:
        logits: [T, V].
        biased: by layer, the scores that choose, [T, E].
        weights: by layer, the forced experts' weights, [T, A].
        dot_errors: by layer, how far a score may be off by the rounding of the router's own sum, [T, E].
    """

    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    biased: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)
    dot_errors: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Replays:
    """The oracle and the legal evaluations of one context under the engine's ids."""

    oracle: Replay
    legal: Sequence[Replay]

    def logits(self) -> Envelope:
        """What the engine's logits may be, given its choices."""
        return Envelope([one.logits for one in self.legal], self.oracle.logits, medians=True)

    def weights(self, layer: int) -> Envelope:
        """What its experts' weights may be."""
        return Envelope([one.weights[layer] for one in self.legal], self.oracle.weights[layer])

    def score_errors(self, layer: int) -> Tensor:
        """[T, E]: how far the engine's scores may be off."""
        scores = Envelope([one.biased[layer] for one in self.legal], self.oracle.biased[layer])
        return scores.row_bound(torch.float32)[:, None] + self.oracle.dot_errors[layer]


def replay(model: Model, token_ids: list[int], ids: Mapping[int, Tensor], accumulate: torch.dtype) -> Replay:
    """Run a model over a context with the experts of ``ids``, by layer [T, A]."""
    seen = Replay()
    layers = iter([layer.index for layer in model.config.layers if layer.is_moe])

    def router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling_factor: float) -> tuple[Tensor, Tensor]:
        layer, wide = next(layers), torch.promote_types(x.dtype, torch.float32)
        scores = torch.sigmoid(model.ops.linear(x.to(wide), weight.to(wide)))
        seen.biased[layer] = scores + bias.to(wide)
        chosen = scores.gather(-1, ids[layer])
        seen.weights[layer] = chosen / chosen.sum(dim=-1, keepdim=True) * scaling_factor
        magnitude = x.double().abs() @ weight.double().abs().T
        seen.dot_errors[layer] = DotBound(x.shape[-1], accumulate).error(magnitude) / 4  # a sigmoid's steepest slope
        return ids[layer], seen.weights[layer]

    forced = Model(model.config, model.weights, model.dtype, model.device, replace(model.ops, router=router))
    with torch.inference_mode():
        seen.logits = forced.logits(forced.hidden(torch.tensor(token_ids)))
    return seen


def replay_all(oracle: OracleModel, token_ids: list[int], routing: Routing) -> Replays:
    """Replay what the engine chose; computed once for the same choices."""
    ids = tuple((layer, tuple(map(tuple, chosen.tolist()))) for layer, (chosen, _) in sorted(routing.items()))
    return _replay_all(oracle, tuple(token_ids), ids)


@lru_cache(8)  # each holds logits of a context
def _replay_all(
    oracle: OracleModel, token_ids: tuple[int, ...], ids: tuple[tuple[int, tuple[tuple[int, ...], ...]], ...]
) -> Replays:
    chosen = {layer: torch.tensor(rows) for layer, rows in ids}
    accumulate = oracle.profile.accumulate
    legal = [replay(model, list(token_ids), chosen, accumulate) for model in oracle.legal_models()]
    return Replays(replay(oracle.model, list(token_ids), chosen, accumulate), legal)


def routed(session: GuardedSession, config: ModelConfig, pieces: Sequence[list[int]]) -> tuple[Tensor, Routing]:
    """Feed pieces of a context: logits [T, V] and the routing of all of it.

    Raises:
        ConformanceError: the routing is not of the MoE layers, or not of the newest tokens.
    """
    logits, parts = [], []
    for piece in pieces:
        logits.append(session.extend(piece))
        parts.append(_checked(session.routing(), config, len(piece)))
    joined = {
        layer: (torch.cat([part[layer][0] for part in parts]), torch.cat([part[layer][1] for part in parts]))
        for layer in parts[0]
    }
    return torch.cat(logits), joined


def _checked(routing: Routing, config: ModelConfig, num_tokens: int) -> dict[int, tuple[Tensor, Tensor]]:
    """The routing as the replay takes it: int64 ids, float64 weights."""
    want = {layer.index: layer for layer in config.layers if layer.is_moe}
    if set(routing) != set(want):
        raise ConformanceError(f"routing: is of layers {sorted(routing)}; want the MoE layers {sorted(want)}")
    checked = {}
    for index, layer in want.items():
        ids, weights = routing[index]
        shape = (num_tokens, layer.num_experts_per_tok)
        if ids.shape != shape or weights.shape != shape or ids.is_floating_point() or not weights.is_floating_point():
            raise ConformanceError(
                f"routing, layer {index}: ids are {ids.dtype} {tuple(ids.shape)}, weights {weights.dtype} "
                f"{tuple(weights.shape)}; want whole ids and floating weights {shape} of the newest extend"
            )
        ids = ids.long()
        if not ((ids >= 0) & (ids < layer.num_experts)).all():
            raise ConformanceError(
                f"routing, layer {index}: ids run from {int(ids.min())} to {int(ids.max())}; want 0 to "
                f"{layer.num_experts - 1}, as the checkpoint counts"
            )
        checked[index] = (ids, weights)
    return checked
