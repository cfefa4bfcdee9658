"""What every peer is compared with: the oracle on held-out text, and the errors of legal float32 evaluations of it.

The reference keeps the angles of the rotary embedding in float64, engines in float32; that is most of what separates
them here, and part of the legal evaluations. Peers are reached through the adapters that the judge uses.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.counters import Counters
from conformance.engine import find_engine
from conformance.legal import reordered_operators
from conformance.profiles import PROFILES
from conformance.tolerance import Envelope
from reference.checkpoint import Checkpoint, LoadedWeights
from reference.config import ModelConfig
from reference.model import Model
from reference.operators import Operators
from reference.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
NANO = ROOT / "reference" / "nano"
LIBRARIES = {"hf_transformers": "transformers", "apple_mlx_lm": "mlx_lm", "ggml_llama_cpp": "llama_cpp"}
NUM_TOKENS = 160  # five sliding windows
DOCUMENTS = (0, 9, 15)  # of heldout.jsonl
LEGAL_EVALUATIONS = 8
MEASURED, JUDGED = "agreement", "verdict"  # what tests tell the summary

Agree = Callable[[Tensor, Envelope], None]


@dataclass(frozen=True)
class Passage:
    """Held-out text, and what a model may make of it in float32.

    ``routing``: of each MoE layer, the weight of every expert [T, E], 0 where it is not chosen. ``drafts``: logits of
    each MTP depth.
    """

    token_ids: list[int]
    logits: Envelope
    routing: Mapping[int, Envelope]
    drafts: list[Envelope]


def subject(name: str) -> Any:
    """An adapter's engine, ``module:attribute``; skips where its library is not installed."""
    module = name.partition(":")[0]
    pytest.importorskip(LIBRARIES[module])
    return find_engine(f"conformance.subjects.{name}")


@pytest.fixture(scope="session")
def load() -> Callable[[str], Any]:
    """The miniature, loaded by a subject; once for all tests."""
    models: dict[str, Any] = {}

    def load_once(name: str) -> Any:
        if name not in models:
            models[name] = subject(name).load_model(NANO)
        return models[name]

    return load_once


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
    return [_passage(ids, weights) for ids in token_ids]


@pytest.fixture(scope="session")
def envelope() -> Callable[[list[int], dict[torch.dtype, LoadedWeights]], Envelope]:
    """The bound on logits from other weights than the checkpoint's."""
    return lambda token_ids, weights: _passage(token_ids, weights).logits


@pytest.fixture(scope="session")
def by_expert() -> Callable[[Tensor, Tensor, int], Tensor]:
    """Expert ids and weights [T, A] as the weight of every expert [T, E]."""
    return _by_expert


@pytest.fixture
def agree(request: pytest.FixtureRequest) -> Agree:
    """Check a peer's numbers, one row a token; how near they came is shown when the session ends."""

    def check(got: Tensor, want: Envelope) -> None:
        counters = Counters()
        try:
            want.check(got, counters, "peer")
        finally:
            error = (got.double() - want.exact).abs().max()
            same = (got.argmax(dim=-1) == want.exact.argmax(dim=-1)).double().mean()
            share = max((entry.margin for entry in counters.evidence.values()), default=0.0)
            request.node.user_properties.append((MEASURED, (error.item(), share, 1 - same.item())))

    return check


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Sum up each test: the largest error (logits reach 20), and the statistic nearest to its bound."""
    terminalreporter.section("agreement with the reference")
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        measured = [values for name, values in report.user_properties if name == MEASURED and report.when == "call"]
        if measured:
            error, share, other = (max(column) for column in zip(*measured, strict=True))
            line = f"error {error:.1e}, {share:.2f} of the bound; same largest entry in {1 - other:.1%} of rows"
            terminalreporter.line(f"{report.nodeid.partition('peers/')[2]}: {line}")
    terminalreporter.section("what the judge found")
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, line in report.user_properties:
            if name == JUDGED and report.when == "call":
                terminalreporter.line(line)


@dataclass(frozen=True)
class _Evaluation:
    logits: Tensor
    routing: dict[int, Tensor]
    drafts: list[Tensor]


def _passage(token_ids: list[int], weights: dict[torch.dtype, LoadedWeights]) -> Passage:
    """1.5 times the errors of legal float32 evaluations."""
    legal = [
        _evaluate(token_ids, weights[torch.float32], torch.float32, reordered_operators(PROFILES["float32"], seed))
        for seed in range(LEGAL_EVALUATIONS)
    ]
    exact = _evaluate(token_ids, weights[torch.float64], torch.float64, Operators())
    depths = range(len(exact.drafts))
    return Passage(
        token_ids,
        Envelope([one.logits for one in legal], exact.logits, medians=True),
        {layer: Envelope([one.routing[layer] for one in legal], exact.routing[layer]) for layer in exact.routing},
        [Envelope([one.drafts[depth] for one in legal], exact.drafts[depth], medians=True) for depth in depths],
    )


def _evaluate(token_ids: list[int], weights: LoadedWeights, dtype: torch.dtype, operators: Operators) -> _Evaluation:
    config = Checkpoint(NANO).config
    routed: list[Tensor] = []

    def router(x: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        ids, chosen = operators.router(x, weight, *args)
        routed.append(_by_expert(ids, chosen, len(weight)))
        return ids, chosen

    model = Model(config, weights, dtype, ops=replace(operators, router=router))
    tokens, drafts = torch.tensor(token_ids), []
    with torch.inference_mode():
        hidden = model.hidden(tokens)
        logits = model.logits(hidden)
        for depth in range(config.num_nextn_predict_layers):
            new = tokens[1 + depth :]
            hidden = model.mtp_hidden(depth, hidden[: len(new)], new, model.new_mtp_cache(depth))
            drafts.append(model.mtp_logits(depth, hidden))
    layers = [layer.index for layer in config.layers if layer.is_moe]
    return _Evaluation(logits, dict(zip(layers, routed, strict=True)), drafts)


def _by_expert(ids: Tensor, chosen: Tensor, num_experts: int) -> Tensor:
    """Weights [T, A] of the chosen experts as [T, E]."""
    return torch.zeros(len(ids), num_experts, dtype=chosen.dtype).scatter(-1, ids, chosen)
