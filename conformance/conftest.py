"""Fixtures of the checks."""

from pathlib import Path

import pytest

from .counters import Counters
from .guard import GuardedModel
from .oracle import OracleModel
from .plugin import COUNTERS, SESSION
from .under_test import UnderTest


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> UnderTest:
    """The engine under test."""
    return pytestconfig.stash[SESSION].engine


@pytest.fixture(scope="session")
def checkpoint(pytestconfig: pytest.Config) -> Path:
    """The folder that model checks load."""
    return pytestconfig.stash[SESSION].checkpoint


@pytest.fixture
def counters(request: pytest.FixtureRequest) -> Counters:
    """The ledger of this check."""
    ledger: Counters = request.node.stash[COUNTERS]
    return ledger


@pytest.fixture(scope="session")
def model(engine: UnderTest, checkpoint: Path) -> GuardedModel:
    """The engine's loaded model."""
    return engine.model(checkpoint)


@pytest.fixture(scope="session")
def oracle_model(model: GuardedModel, engine: UnderTest, checkpoint: Path) -> OracleModel:
    """The same checkpoint in float64; not built for an engine that has no model."""
    return OracleModel(checkpoint, engine.profile)
