"""The oracle: the reference operators and model in float64, on the CPU, from the very inputs that the engine got."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.checkpoint import Checkpoint, LoadedWeights
from reference.config import ModelConfig
from reference.model import Model
from reference.operators import Operators
from reference.quantization import FORMATS, QuantizedWeight, dense

from .legal import reordered_operators
from .profiles import Profile

Tokens = list[int] | list[list[int]]  # a context, or several of one length: then all results have one more axis

LEGAL_MODELS, MOST_MODELS = 4, 16  # evaluations of a whole model: few where its rows are many ...
LEGAL_TOKENS = 64  # ... and more where a context has less than this many tokens over all of them
DECIDED_OTHERWISE, TIE_NOISE = 8, 3.0  # evaluations beside these in which near-ties fall otherwise, see legal_logits
DECIDED_TOKENS = 32  # ... and how many tokens each of them takes at least: copies of a context that has fewer
LEGAL_ROWS = 1024  # rows, over all evaluations of an operator, from which the largest legal error is taken ...
FEWEST, MOST = 16, 64  # ... within these numbers of evaluations


def exact(op: str, *inputs: Any) -> Any:
    """Evaluate a row of ``reference/ops`` in float64."""
    return getattr(Operators(), op)(*(_widened(value) for value in inputs))


def legal(op: str, profile: Profile, *inputs: Any) -> list[Tensor]:
    """Evaluate in the dtypes of the inputs, in other orders of summation; the more often, the fewer rows there are."""
    first = getattr(reordered_operators(profile, 0), op)(*inputs)
    num_rows = max(first.numel() // first.shape[-1], 1)
    count = min(max(LEGAL_ROWS // num_rows, FEWEST), MOST)
    return [first, *(getattr(reordered_operators(profile, seed), op)(*inputs) for seed in range(1, count))]


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


class OracleModel:
    """A checkpoint in float64, and legal evaluations of it in a profile's dtypes."""

    def __init__(self, checkpoint: Path, profile: Profile) -> None:
        opened = Checkpoint(checkpoint)
        self.config: ModelConfig = opened.config
        self.profile = profile
        self.weights = _loaded(opened, profile, torch.float64)
        self.model = Model(opened.config, self.weights, torch.float64, ops=for_profile(Operators(), profile))
        weights = _loaded(opened, profile, None if profile.weights == torch.bfloat16 else profile.weights)
        self._legal = [
            Model(
                opened.config, weights, profile.activations, ops=for_profile(reordered_operators(profile, s), profile)
            )
            for s in range(MOST_MODELS)
        ]

    def legal_models(self, num_tokens: int | None = None) -> list[Model]:
        """What legal evaluations of a context come from; the more of them, the shorter it is."""
        count = LEGAL_MODELS if num_tokens is None else max(LEGAL_TOKENS // num_tokens, LEGAL_MODELS)
        return self._legal[:count]

    def logits(self, token_ids: Tokens, window: int | None = None) -> Tensor:
        """[..., T, V] float64 of one pass over the whole context; ``window`` replaces the sliding layers' own."""
        model = self.model
        if window is not None:
            model = Model(self.config.with_window(window), model.weights, torch.float64, ops=model.ops)
        return _logits(model, token_ids)

    def legal_logits(self, token_ids: Tokens) -> list[Tensor]:
        """Legal evaluations of ``logits``.

        In a narrow profile, rounding decides near-ties between experts, and a few evaluations decide too few of them
        both ways: as many again choose by scores with ``TIE_NOISE`` times the noise that evaluations show. In a short
        context, whose rows no others stand beside, each of those decides several times: two near-ties of one token
        fall together in one of twenty-five evaluations, and decide all that it comes to.
        """
        plain = [_logits_and_scores(model, token_ids) for model in self.legal_models(_length(token_ids))]
        logits = [one for one, _ in plain]
        for model in self._otherwise([scores for _, scores in plain]):
            if isinstance(token_ids[0], int):
                logits += _logits(model, [token_ids] * max(DECIDED_TOKENS // len(token_ids), 1)).unbind()
            else:
                logits.append(_logits(model, token_ids))
        return logits

    def legal_passes(self, token_ids: list[int]) -> list[Model]:
        """The models of ``legal_logits``, each for one pass over these tokens and whatever comes after it."""
        models = self.legal_models(len(token_ids))
        return [*models, *self._otherwise([_logits_and_scores(model, token_ids)[1] for model in models])]

    def _otherwise(self, scores: list[list[Tensor]]) -> list[Model]:
        """Models that choose by noisy scores, of a narrow profile; ``scores`` [rows, E] by evaluation and layer."""
        if not self.profile.is_narrow or not scores[0]:
            return []
        layers = [torch.stack(one) for one in zip(*scores, strict=True)]
        noise = [TIE_NOISE * (one - one.mean(dim=0)).square().mean().sqrt() for one in layers]
        random = torch.Generator().manual_seed(layers[0].shape[1])
        return [_with_noise(self._legal[n % LEGAL_MODELS], noise, random) for n in range(DECIDED_OTHERWISE)]


def for_profile(ops: Operators, profile: Profile) -> Operators:
    """The operators that a whole model of this profile is built from."""
    return replace(ops, experts=ops.experts_fp8) if profile.expert_activations == "fp8" else ops


def _loaded(checkpoint: Checkpoint, profile: Profile, dtype: torch.dtype | None) -> LoadedWeights:
    """Weights with experts as the profile stores them; widened once where no operator needs the codes."""
    weights = checkpoint.load(dtype=dtype)
    if profile.expert_weights is None:
        return weights
    quantize, keeps_codes = FORMATS[profile.expert_weights].quantize, profile.expert_activations is not None

    def stored(weight: Tensor | QuantizedWeight) -> Tensor | QuantizedWeight:
        quantised = quantize(weight) if isinstance(weight, Tensor) else weight
        return quantised if keeps_codes else dense(quantised, dtype or torch.float32)

    return weights.with_experts(stored)


def _logits_and_scores(model: Model, token_ids: Tokens) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the scores [rows, E] by which each MoE layer chooses."""
    seen: list[Tensor] = []

    def router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling_factor: float) -> Any:
        seen.append(_scores(x, weight) + bias)
        return model.ops.router(x, weight, bias, top_k, scaling_factor)

    return _logits(_with_router(model, router), token_ids), seen


def _with_noise(model: Model, noise: list[Tensor], random: torch.Generator) -> Model:
    """A model for one pass, whose experts are chosen by noisy scores, and weighed by the right ones."""
    layers = iter(noise)

    def router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling_factor: float) -> Any:
        scores = _scores(x, weight)
        noisy = scores + bias + next(layers) * torch.randn(scores.shape, generator=random)
        ids = noisy.topk(top_k).indices
        chosen = scores.gather(-1, ids)
        return ids, chosen / chosen.sum(dim=-1, keepdim=True) * scaling_factor

    return _with_router(model, router)


def _scores(x: Tensor, weight: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.sigmoid(x.to(wide) @ weight.to(wide).T)


def _with_router(model: Model, router: Any) -> Model:
    return Model(model.config, model.weights, model.dtype, model.device, replace(model.ops, router=router))


def _length(token_ids: Tokens) -> int:
    return torch.tensor(token_ids).shape[-1]


def _logits(model: Model, token_ids: Tokens) -> Tensor:
    with torch.inference_mode():
        return model.logits(model.hidden(torch.tensor(token_ids)))
