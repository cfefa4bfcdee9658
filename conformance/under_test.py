"""The engine under test, as the checks see it."""

from pathlib import Path

import pytest
import torch

from reference.config import ModelConfig

from .engine import Engine
from .guard import GuardedModel, Operator, guarded
from .profiles import Profile, find_profile


class UnderTest:
    """An engine with its profile; what it does not offer skips the check as NOT-SUPPORTED."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name = engine.name
        self.profile: Profile = find_profile(engine.profile)
        self.device = torch.device(engine.device)
        self._model: GuardedModel | None = None

    def op(self, name: str) -> Operator:
        """The guarded row of that name."""
        rows = self.engine.ops()
        if name not in rows:
            pytest.skip(f"NOT-SUPPORTED: {self.name} offers no {name}")
        return guarded(name, rows[name], self.device)

    def model(self, checkpoint: Path) -> GuardedModel:
        """The loaded model, loaded once."""
        if self._model is None:
            try:
                loaded = self.engine.load_model(checkpoint)
            except NotImplementedError as refusal:
                pytest.skip(f"NOT-SUPPORTED: {self.name} loads no model ({refusal})")
            self._model = GuardedModel(loaded, ModelConfig.from_file(checkpoint).vocab_size)
        return self._model
