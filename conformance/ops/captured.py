"""Inputs as they occur: what each operator is given when the miniature reads real text.

The reference runs the embedded checkpoint once in the profile's arithmetic, with a table of operators that keeps the
inputs of every call. Trained weights and real text have what random numbers lack: loud channels, near-ties, attention
on few keys, experts that are hot and cold.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

from reference.checkpoint import Checkpoint
from reference.engine import build_model
from reference.model import Model
from reference.nano.measure import held_out_tokens, windows
from reference.operators import Operators

from ..plugin import EMBEDDED_CHECKPOINT
from ..profiles import Profile

TOKENS = 48  # past the miniature's window of 32
TEXTS = 5  # of which one is read: that of the middle

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """One call of an operator: in which layer, and with what. Layers count as the checkpoint does; None: outside."""

    row: str
    layer: int | None
    inputs: Inputs


class _Recorder:
    """Operators that note what they are given and go on."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.layer: int | None = None

    def operators(self) -> Operators:
        plain = Operators()
        return Operators(
            **{field.name: self._noting(field.name, getattr(plain, field.name)) for field in fields(plain)}
        )

    def _noting(self, row: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*inputs: Any) -> Any:
            kept = tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)
            self.calls.append(Call(row, self.layer, kept))
            return operator(*inputs)

        return noting


class _Watched(Model):
    """A model that says which layer it is in."""

    recorder: _Recorder

    def _layer(self, hidden: Tensor, layer: Any, *rest: Any, **options: Any) -> Tensor:
        self.recorder.layer = layer.index
        try:
            return super()._layer(hidden, layer, *rest, **options)
        finally:
            self.recorder.layer = None


@cache
def captured(profile: Profile) -> list[Call]:
    """Every call while the backbone and all MTP depths read a text once."""
    recorder = _Recorder()
    built = build_model(Checkpoint(EMBEDDED_CHECKPOINT), profile.name, ops=recorder.operators())
    model = _Watched(built.config, built.weights, built.dtype, ops=built.ops)
    model.recorder = recorder
    tokens = windows(held_out_tokens(EMBEDDED_CHECKPOINT), TEXTS, TOKENS)[TEXTS // 2]
    with torch.inference_mode():
        hidden = model.hidden(tokens)
        model.logits(hidden)
        for depth in range(model.config.num_nextn_predict_layers):
            following = tokens[1 + depth :]
            hidden = model.mtp_hidden(depth, hidden[: len(following)], following)
            model.mtp_logits(depth, hidden)
    return recorder.calls
