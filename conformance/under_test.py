"""The engine under test, as the checks see it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from reference.config import ModelConfig

from .guard import GuardedModel, Operator, guarded, on_repeated
from .isolation import EngineProcess, Unsupported
from .profiles import Profile, find_profile

NOT_SUPPORTED = "NOT-SUPPORTED: "  # how a skip says that the engine does not offer what the check judges


class UnderTest:
    """An engine with its profile; what it does not offer skips the check as NOT-SUPPORTED.

    Attributes:
        not_offered: what was asked for and is not there, with the reason.
    """

    def __init__(self, process: EngineProcess) -> None:
        self.process = process
        self.name: str = process.description["name"]
        self.profile: Profile = find_profile(process.description["profile"])
        self.device = torch.device(process.description["device"])
        self.rows: list[str] = process.description["rows"]
        self.not_offered: dict[str, str] = {}
        self._model: GuardedModel | None = None

    def op(self, name: str) -> Operator:
        """The guarded row of that name."""
        if name not in self.rows:
            self.refuses(name, f"{self.name} offers no {name}")
        return guarded(name, self.process)

    def on_repeated(
        self, name: str, inputs: Sequence[Any], repeated: Sequence[int], times: int, rows: Sequence[int]
    ) -> Tensor:
        """The guarded row of that name on inputs larger than what crosses to it, see ``guard.on_repeated``."""
        if name not in self.rows:
            self.refuses(name, f"{self.name} offers no {name}")
        return on_repeated(name, self.process, inputs, repeated, times, rows)

    def model(self, checkpoint: Path) -> GuardedModel:
        """The loaded model, loaded once."""
        if self._model is None or self._model.checkpoint != checkpoint:
            try:
                vocab_size = ModelConfig.from_file(checkpoint).vocab_size
                self._model = GuardedModel(self.process, checkpoint, vocab_size, self.refuses)
            except Unsupported as refusal:
                self.refuses("load_model", f"{self.name} loads no model ({refusal})")
        return self._model

    def refuses(self, what: str, reason: str) -> NoReturn:
        """Note what is not offered, and skip the check."""
        self.not_offered[what] = reason
        pytest.skip(f"{NOT_SUPPORTED}{what}: {reason}")
