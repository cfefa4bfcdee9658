"""Fixtures of the checks of a whole model: the seed, text, and other checkpoints than the session's."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from reference.config import ModelConfig

from ..guard import GuardedModel
from ..isolation import Unsupported
from ..oracle import OracleModel
from ..plugin import SESSION
from ..under_test import UnderTest
from .loading import Load
from .texts import Windows, windows


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """The session's seed."""
    return pytestconfig.stash[SESSION].seed


@pytest.fixture(scope="session")
def tier(pytestconfig: pytest.Config) -> str:
    """The session's tier."""
    return pytestconfig.stash[SESSION].tier


@pytest.fixture
def texts(pytestconfig: pytest.Config, oracle_model: OracleModel) -> Windows:
    """Pieces of real text."""
    return partial(windows, pytestconfig.stash[SESSION].checkpoint, oracle_model)


@pytest.fixture
def load(engine: UnderTest, model: GuardedModel) -> Iterator[Load]:
    """Loads other checkpoints in this check; the next check finds the session's again."""

    def other(folder: Path) -> GuardedModel:
        try:
            vocab_size = ModelConfig.from_file(folder).vocab_size
            return GuardedModel(engine.process, folder, vocab_size, engine.refuses)
        except Unsupported as refusal:
            engine.refuses("load_model", str(refusal))

    yield other
    model._incarnation = 0  # incarnations count from 1: the next call loads it again
