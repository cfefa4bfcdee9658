"""Checks of sampled tokens: their law, for any engine and any way of drawing random numbers.

Under the right law, the place of each token in the cumulative distribution of its own context is uniform, and that of
one token independent of the next one's. A betting martingale against both (Ville's inequality) may be looked at after
every token: its level is the rate of false alarms, whatever the number of tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reference.ops.sampling import sampling

from ..clauses import clause
from ..counters import Counters
from ..oracle import OracleModel
from ..tolerance import ConformanceError
from ..under_test import UnderTest
from . import tiny
from .contexts import NUM_DRAFTS, envelopes
from .loading import Load
from .rates import FALSE_ALARMS

REQUESTS, PROMPT, TOKENS = 30, 5, 8
BINS, CELLS = 8, 3  # of one place, and a side of the grid of two neighbours
LOUDNESS = 2 / 128**0.5  # logits of a spread of about 2
SETTINGS: Mapping[str, Mapping[str, float]] = {
    "temperature 0.6": {"temperature": 0.6},
    "temperature 1.3": {"temperature": 1.3},
    "top-k 5": {"temperature": 1.0, "top_k": 5},
    "top-p 0.6": {"temperature": 1.0, "top_p": 0.6},
    "min-p 0.3": {"temperature": 1.0, "min_p": 0.3},
}


@dataclass
class Bets:
    """A bettor that learns frequencies (Krichevsky and Trofimov); its log wealth where cells are equally likely."""

    cells: int
    log_wealth: float = 0.0
    counts: dict[int, int] = field(default_factory=dict)

    def see(self, cell: int, slack: float) -> None:
        """``slack``: by how much, as a logarithm, a legal law may favour what was seen."""
        seen = sum(self.counts.values())
        predicted = (self.counts.get(cell, 0) + 0.5) / (seen + self.cells / 2)
        self.log_wealth += math.log(predicted * self.cells) - slack
        self.counts[cell] = self.counts.get(cell, 0) + 1


class Bettors:
    """One for each thing that could be wrong; together they own the mean of their wealth."""

    def __init__(self) -> None:
        self.singles = {name: Bets(BINS) for name in ("by id", "by probability", "first by probability")}
        self.pairs = {name: Bets(CELLS**2) for name in ("by id", "by probability")}

    @property
    def log_wealth(self) -> float:
        logs = torch.tensor([bets.log_wealth for bets in (*self.singles.values(), *self.pairs.values())])
        return float(logs.logsumexp(dim=0)) - math.log(len(logs))

    def see(self, places: Sequence[Mapping[str, float]], slacks: Sequence[float]) -> None:
        """Bet on the tokens of one request."""
        for name in ("by id", "by probability"):
            for place, slack in zip(places, slacks, strict=True):
                self.singles[name].see(int(place[name] * BINS), slack)
            for (one, other), (first, second) in zip(_neighbours(places), _neighbours(slacks), strict=True):
                cell = int(one[name] * CELLS) * CELLS + int(other[name] * CELLS)
                self.pairs[name].see(cell, first + second)
        self.singles["first by probability"].see(int(places[0]["by probability"] * BINS), slacks[0])


def _neighbours(values: Sequence) -> list[tuple]:
    return list(zip(values[::2], values[1::2], strict=False))


def place_of(token: int, probabilities: Tensor, order: Tensor, uniform: float) -> float:
    """Where in [0, 1) a token stands, spread evenly over its own share."""
    ordered = probabilities[order]
    rank = int((order == token).nonzero()[0])
    start = float(ordered[:rank].sum())
    return min(start + uniform * float(ordered[rank]), math.nextafter(1.0, 0.0))


@clause("SAMPLE-1")
@pytest.mark.parametrize(
    ("setting", "mtp"), [*((name, 0) for name in SETTINGS), ("temperature 1.3", NUM_DRAFTS), ("top-k 5", NUM_DRAFTS)]
)
def test_sampled_tokens_follow_the_filtered_distribution(
    engine: UnderTest, load: Load, counters: Counters, seed: int, tmp_path: Path, setting: str, mtp: int
) -> None:
    """A small random model: nothing of its law is known to the engine but what its logits say."""
    params = SETTINGS[setting]
    folder = tiny.write(tmp_path / "random", (fields := tiny.fields_for(engine.profile)), _peaked(fields, seed))
    model, oracle = load(folder), OracleModel(folder, engine.profile)
    random = torch.Generator().manual_seed(seed)
    bettors, settings = Bettors(), (params["temperature"], int(params.get("top_k", 0)))

    def filtered(logits: Tensor) -> Tensor:
        return sampling(logits.double(), *settings, params.get("top_p", 1.0), params.get("min_p", 0.0))

    prompts = torch.randint(2, 256, (REQUESTS, PROMPT), generator=random).tolist()
    answers = [
        model.generate(prompt, TOKENS, mtp=mtp, seed=1000 * seed + request, **params).tokens
        for request, prompt in enumerate(prompts)
    ]
    contexts = [[*prompt, *tokens[:-1]] for prompt, tokens in zip(prompts, answers, strict=True)]
    for request, (tokens, whole) in enumerate(zip(answers, envelopes(oracle, contexts), strict=True)):
        rows = slice(PROMPT - 1, None)
        exact, reach = whole.exact[rows], 2 * whole.row_bound(whole.legal[0].dtype)[rows]
        law, slack = filtered(exact), reach / params["temperature"]
        places, slacks = [], []
        for number, token in enumerate(tokens):
            if law[number, token] == 0:
                lifted = exact[number].clone()
                lifted[token] += reach[number]  # as far from the others as legal errors of both may bring it
                if filtered(lifted)[token] > 0:
                    continue  # at the border of a filter, which says nothing of the law inside
                counters.broke(f"token {token}")
                raise ConformanceError(
                    f"{setting}, request {request}: drew {token} as token {number}, which the filters leave out; want "
                    f"one of {law[number].nonzero().flatten().tolist()[:20]}"
                )
            by_probability = law[number].argsort(descending=True, stable=True)
            uniform = float(torch.rand((), generator=random))
            orders = {"by id": torch.arange(len(by_probability)), "by probability": by_probability}
            places.append({name: place_of(token, law[number], order, uniform) for name, order in orders.items()})
            slacks.append(float(slack[number]))
        if places:
            bettors.see(places, slacks)
        counters.add("tokens_drawn", len(places))
        counters.add("tokens_that_are_not_the_likeliest", sum(p["by probability"] > 0.5 for p in places))
        limit = -math.log(FALSE_ALARMS)
        if bettors.log_wealth > limit:
            break
    rule = f"log wealth of a bettor against the law, at {FALSE_ALARMS} false alarms"
    counters.compared(rule, max(bettors.log_wealth, 0.0), limit, f"{setting}, {mtp} drafts")
    if bettors.log_wealth > limit:
        raise ConformanceError(
            f"{setting}, {mtp} drafts: after {counters.counts['tokens_drawn']:.0f} tokens a bettor against it holds "
            f"e^{bettors.log_wealth:.1f}; want at most e^{limit:.1f}; places of tokens: "
            f"{dict(sorted(bettors.singles['by probability'].counts.items()))} of {BINS}"
        )


def _peaked(fields: Mapping[str, object], seed: int) -> dict[str, Tensor]:
    """Random weights whose head is loud enough for a law with some likely tokens."""
    tensors = tiny.random_weights(dict(fields), seed)
    head = tensors["lm_head.weight"].double()
    tensors["lm_head.weight"] = (head / head.square().mean().sqrt() * LOUDNESS).to(torch.bfloat16)
    tensors["lm_head.weight"][1] = 0
    return tensors
