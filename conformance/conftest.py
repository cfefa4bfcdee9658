"""Fixtures of the checks."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

from reference.checkpoint import Checkpoint
from reference.save_quantized import save_quantized

from .counters import Counters
from .guard import GuardedModel
from .oracle import OracleModel
from .plugin import COUNTERS, SESSION
from .profiles import Profile
from .under_test import UnderTest


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> UnderTest:
    """The engine under test."""
    return pytestconfig.stash[SESSION].engine


@pytest.fixture(scope="session")
def checkpoint(pytestconfig: pytest.Config, engine: UnderTest) -> Path:
    """The folder that model checks load: written anew in FP8 where the profile's experts are, and it is not."""
    folder = pytestconfig.stash[SESSION].checkpoint
    return fp8_copy(folder) if engine.profile.expert_weights == "fp8" else folder


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
    return oracle_of(checkpoint, engine.profile)


@cache
def fp8_copy(folder: Path) -> Path:
    """The checkpoint in FP8, which it may be already; kept as long as this process."""
    opened = Checkpoint(folder)
    if opened.config.quantization is not None:
        return folder
    copy = Path(tempfile.mkdtemp(prefix="fp8-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    save_quantized(opened, copy, "fp8")
    return copy


@cache
def oracle_of(checkpoint: Path, profile: Profile) -> OracleModel:
    """Built once in a process, which may judge many engines."""
    return OracleModel(checkpoint, profile)
