"""One proof of the judge, shared by all tests that read it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one, which engines under test are named by

from conformance.faults.catalogue import BENIGN, FAULTS
from conformance.plugin import EMBEDDED_CHECKPOINT
from conformance.prove import Outcome, prove


@pytest.fixture(scope="session")
def outcomes() -> dict[str, Outcome]:
    """Every engine of the catalogue, by name."""
    return {outcome.name: outcome for outcome in prove([*FAULTS, *BENIGN], EMBEDDED_CHECKPOINT)}
