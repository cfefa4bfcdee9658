"""The oracle: the reference operators and model in float64, on the CPU, from the very inputs that the engine got."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.checkpoint import Checkpoint
from reference.config import ModelConfig
from reference.model import Model
from reference.operators import Operators

from .legal import reordered_operators
from .profiles import Profile

LEGAL_MODELS = 4  # evaluations of a whole model, whose rows are many
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
        self.model = Model(opened.config, opened.load(dtype=torch.float64), torch.float64)
        stored = None if profile.weights == torch.bfloat16 else profile.weights
        weights = opened.load(dtype=stored)
        self._legal = [
            Model(opened.config, weights, profile.activations, ops=reordered_operators(profile, seed))
            for seed in range(LEGAL_MODELS)
        ]

    def logits(self, token_ids: list[int], window: int | None = None) -> Tensor:
        """[T, V] float64 of one pass over the whole context; ``window`` replaces the sliding layers' own."""
        model = self.model
        if window is not None:
            model = Model(self.config.with_window(window), model.weights, torch.float64)
        return _logits(model, token_ids)

    def legal_logits(self, token_ids: list[int]) -> list[Tensor]:
        """Legal evaluations of ``logits``."""
        return [_logits(model, token_ids) for model in self._legal]


def _logits(model: Model, token_ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model.logits(model.hidden(torch.tensor(token_ids)))
