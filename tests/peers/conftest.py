"""What every peer is compared with: the oracle on held-out text, and the errors of legal float32 evaluations of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conformance.counters import Counters
from conformance.legal import reordered_operators
from conformance.profiles import PROFILES
from conformance.tolerance import Envelope
from reference.checkpoint import Checkpoint, LoadedWeights
from reference.model import Model
from reference.operators import Operators
from reference.tokenizer import Tokenizer

NANO = Path(__file__).parents[2] / "reference" / "nano"
NUM_TOKENS = 160  # five sliding windows
DOCUMENTS = (0, 9)  # of heldout.jsonl
LEGAL_EVALUATIONS = 8

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
    return [Passage(ids, envelope(ids, weights)) for ids in token_ids]


@pytest.fixture
def agree(record_property: Callable[[str, object], None]) -> Agree:
    """Check a peer's logits [T, V], and leave the error and the agreement of the likeliest tokens in the record."""

    def check(got: Tensor, want: Envelope) -> None:
        counters = Counters()
        error = (got.double() - want.exact).abs().max().item()
        same_token = (got.argmax(dim=-1) == want.exact.argmax(dim=-1)).double().mean().item()
        record_property("max_abs_error", error)
        record_property("max_abs_legal_error", max((one - want.exact).abs().max().item() for one in want.legal))
        record_property("argmax_agreement", same_token)
        want.check(got, counters, "logits")
        record_property("error_over_bound", (counters.statistic or 0.0) / (counters.bound or 1.0))

    return check


def envelope(token_ids: list[int], weights: dict[torch.dtype, LoadedWeights]) -> Envelope:
    """The bound on a float32 evaluation: other orders of summation, and angles in float32 as engines compute them."""
    legal = [
        _logits(token_ids, weights[torch.float32], torch.float32, _float32_operators(seed))
        for seed in range(LEGAL_EVALUATIONS)
    ]
    return Envelope(legal, _logits(token_ids, weights[torch.float64], torch.float64), medians=True)


def _logits(
    token_ids: list[int], weights: LoadedWeights, dtype: torch.dtype, operators: Operators | None = None
) -> Tensor:
    model = Model(Checkpoint(NANO).config, weights, dtype, ops=operators)
    with torch.inference_mode():
        return model.logits(model.hidden(torch.tensor(token_ids)))


def _float32_operators(seed: int) -> Operators:
    return replace(reordered_operators(PROFILES["float32"], seed), rope=_rope_of_float32_angles)


def _rope_of_float32_angles(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """As ``reference.ops.rope``, which keeps angles in float64; transformers, mlx-lm and llama.cpp do not."""
    half = frequencies.shape[0]
    angles_T1F = (positions.float()[:, None] * frequencies.float())[:, None, :]
    cos, sin = angles_T1F.cos(), angles_T1F.sin()
    first, second = x[..., :half], x[..., half : 2 * half]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]), dim=-1)
