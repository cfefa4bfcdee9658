"""One proof of the judge, shared by all tests that read it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one, which engines under test are named by

from processes import SAMPLE

from conformance.plugin import EMBEDDED_CHECKPOINT
from conformance.prove import Outcome, prove


@pytest.fixture(scope="session")
def outcomes() -> dict[str, Outcome]:
    """A sample of the merge gate, and the reference on every check, by name."""
    return {outcome.name: outcome for outcome in prove(["reference", *SAMPLE], EMBEDDED_CHECKPOINT)}
