"""What every peer is compared with: the oracle on held-out text, and the errors of legal float32 evaluations of it.

The reference keeps the angles of the rotary embedding in float64, engines in float32; that is most of what separates
them here, and part of the legal evaluations.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.counters import Counters, margin
from conformance.legal import reordered_operators
from conformance.profiles import PROFILES
from conformance.tolerance import Envelope
from reference.checkpoint import Checkpoint, LoadedWeights
from reference.config import ModelConfig
from reference.model import Model
from reference.operators import Operators
from reference.tokenizer import Tokenizer

NANO = Path(__file__).parents[2] / "reference" / "nano"
NUM_TOKENS = 160  # five sliding windows
DOCUMENTS = (0, 9, 15)  # of heldout.jsonl
LEGAL_EVALUATIONS = 8
MEASURED = "agreement"

Agree = Callable[[Tensor, Envelope], None]


@dataclass(frozen=True)
class Passage:
    """Held-out text, and what its logits may be in float32."""

    token_ids: list[int]
    logits: Envelope


@pytest.fixture(scope="session")
def nano() -> Path:
    """The embedded checkpoint, as shipped."""
    return NANO


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_checkpoint(NANO)


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    return ModelConfig.from_file(NANO)


@pytest.fixture(scope="session")
def held_out() -> list[str]:
    """Texts that the checkpoint was not trained on."""
    lines = (NANO / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="session")
def weights() -> dict[torch.dtype, LoadedWeights]:
    """The checkpoint, widened: float64 for the oracle, float32 for legal evaluations."""
    checkpoint = Checkpoint(NANO)
    return {dtype: checkpoint.load(dtype=dtype) for dtype in (torch.float64, torch.float32)}


@pytest.fixture(scope="session")
def passages(held_out: list[str], tokenizer: Tokenizer, weights: dict[torch.dtype, LoadedWeights]) -> list[Passage]:
    token_ids = [tokenizer.encode(held_out[index], add_bos=True)[:NUM_TOKENS] for index in DOCUMENTS]
    return [Passage(ids, _envelope(ids, weights)) for ids in token_ids]


@pytest.fixture(scope="session")
def envelope() -> Callable[[list[int], dict[torch.dtype, LoadedWeights]], Envelope]:
    """The bound on logits from other weights than the checkpoint's."""
    return _envelope


@pytest.fixture
def agree(request: pytest.FixtureRequest) -> Agree:
    """Check a peer's logits [T, V]; how near they came is shown when the session ends."""

    def check(got: Tensor, want: Envelope) -> None:
        counters = Counters()
        try:
            want.check(got, counters, "logits")
        finally:
            error = (got.double() - want.exact).abs().max()
            same_token = (got.argmax(dim=-1) == want.exact.argmax(dim=-1)).double().mean()
            share = margin(counters.statistic or math.nan, counters.bound or math.nan)
            line = f"error {error:.1e}, {share:.2f} of the bound; same likeliest token {same_token:.1%}"
            request.node.user_properties.append((MEASURED, line))

    return check


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List each comparison: the largest error of a logit (they reach 20), and the statistic nearest to its bound."""
    terminalreporter.section("agreement with the reference")
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, line in report.user_properties:
            if name == MEASURED and report.when == "call":
                terminalreporter.line(f"{report.nodeid.partition('peers/')[2]}: {line}")


def _envelope(token_ids: list[int], weights: dict[torch.dtype, LoadedWeights]) -> Envelope:
    """1.5 times the errors of legal float32 evaluations."""
    legal = [
        _logits(token_ids, weights[torch.float32], torch.float32, reordered_operators(PROFILES["float32"], seed))
        for seed in range(LEGAL_EVALUATIONS)
    ]
    return Envelope(legal, _logits(token_ids, weights[torch.float64], torch.float64), medians=True)


def _logits(
    token_ids: list[int], weights: LoadedWeights, dtype: torch.dtype, operators: Operators | None = None
) -> Tensor:
    model = Model(Checkpoint(NANO).config, weights, dtype, ops=operators)
    with torch.inference_mode():
        return model.logits(model.hidden(torch.tensor(token_ids)))
