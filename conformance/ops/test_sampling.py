"""Checks of the row ``sampling``."""

import math

import pytest
import torch

from ..clauses import clause
from ..counters import Counters
from ..strategies import TOKEN_COUNTS, Case, for_cases, token_counts
from ..tolerance import bit_exact, within
from ..under_test import UnderTest

FEW_ROWS = [(3, 7), (1, 130), (2, 31)]  # T, V
SHAPES = [*FEW_ROWS, *token_counts(23)]
SHOWN_BY = 3  # settings to each number of rows: all of them under every setting would show the same thing nine times
VOCAB_SIZE = 128_896  # published
# temperature, top_k, top_p, min_p
SETTINGS = [
    (1.0, 0, 1.0, 0.0),
    (0.6, 0, 0.95, 0.0),
    (1.7, 0, 1.0, 0.0),
    (1.0, 5, 1.0, 0.0),
    (1.0, 1, 1.0, 0.0),
    (1.0, 0, 0.5, 0.0),
    (1.0, 0, 1.0, 0.2),
    (0.8, 6, 0.7, 0.25),
    (1.3, 1000, 0.9, 0.0),
]


def filtered(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[list[float], float]:
    """Probabilities by id, and the smallest relative distance of a kept or dropped token to its border.

    In Python's own floats, one token at a time: written apart from the reference.
    """
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    powers = [math.exp((logits[token] - logits[order[0]]) / temperature) for token in order]
    border = math.inf

    def renormalised() -> list[float]:
        total = math.fsum(powers)
        return [power / total for power in powers]

    if top_k and top_k < len(powers):
        border = min(border, abs(powers[top_k - 1] - powers[top_k]) / powers[top_k - 1])
        powers = powers[:top_k]
    if top_p < 1:
        before = 0.0
        kept: list[float] = []
        for share, power in zip(renormalised(), powers, strict=True):
            if kept:
                border = min(border, abs(before - top_p))
            if before < top_p:
                kept.append(power)
            before += share
        if len(kept) < len(powers):  # of equal ones, a sort may keep either
            border = min(border, (kept[-1] - powers[len(kept)]) / kept[-1])
        powers = kept
    if min_p:
        border = min([border, *(abs(power / powers[0] - min_p) for power in powers)])
        powers = [power for power in powers if power >= min_p * powers[0]]
    probabilities = [0.0] * len(logits)
    for token, share in zip(order, renormalised(), strict=False):
        probabilities[token] = share
    return probabilities, border


@clause("SAMP-1")
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@for_cases(["randn", "saturating", "zeros", "one_loud_channel"], FEW_ROWS)
def test_filters_in_order_and_renormalises_after_each(
    engine: UnderTest, counters: Counters, case: Case, setting: tuple[float, int, float, float]
) -> None:
    """A border that a legal rounding can cross decides nothing: such rows are counted, not judged."""
    logits = case.activations(*case.shape, dtype=engine.profile.activations)
    if case.family == "zeros":
        logits += torch.linspace(-1, 1, case.shape[1]).to(logits.dtype)
    check(engine, logits, setting, counters, case)


@clause("SAMP-1")
@pytest.mark.parametrize(("number", "setting"), list(enumerate(SETTINGS)), ids=str)
def test_any_number_of_rows_is_filtered(
    engine: UnderTest, counters: Counters, number: int, setting: tuple[float, int, float, float]
) -> None:
    for num_tokens in TOKEN_COUNTS[number % SHOWN_BY :: SHOWN_BY]:
        case = Case("randn", (num_tokens, 23), number)
        check(engine, case.activations(*case.shape, dtype=engine.profile.activations), setting, counters, case)


def check(
    engine: UnderTest,
    logits: torch.Tensor,
    setting: tuple[float, int, float, float],
    counters: Counters,
    where: object,
) -> None:
    """Compare each row with the law, unless it lies at a border."""
    got = engine.op("sampling")(logits, *setting)
    for row, values in enumerate(logits.double().tolist()):
        want, border = filtered(values, *setting)
        largest = max(abs(value) for value in values) / setting[0]
        # each scaled logit is off by an ulp, twice in a difference; then exp, the sum and three quotients
        relative = torch.finfo(torch.float32).eps * (4 * largest + len(values) + 10)
        if border <= 2 * relative:
            continue
        counters.add("rows_judged", 1)
        if setting[1:] != (0, 1.0, 0.0) and setting[1] < 1000:
            counters.add("tokens_dropped", sum(share == 0 for share in want))
        exact = torch.tensor(want, dtype=torch.float64)
        kept = (exact > 0).tolist()
        bit_exact(got[row] > 0, torch.tensor(kept) & (got[row] > 0), counters, f"{where}, row {row}, the support")
        bound = exact * relative + torch.finfo(torch.float32).tiny
        within(got[row], exact, bound, "roundings of a softmax", counters, f"{where}, row {row}")


@clause("SAMP-1")
def test_known_distributions(engine: UnderTest, counters: Counters) -> None:
    """Logits ln 8, ln 4, ln 2, ln 1, ln 1: shares 8, 4, 2, 1, 1 of 16."""
    logits = torch.tensor([[8.0, 4.0, 2.0, 1.0, 1.0]]).log()
    sampling = engine.op("sampling")
    for setting, shares in (
        ((1.0, 0, 1.0, 0.0), [8, 4, 2, 1, 1]),
        ((0.5, 0, 1.0, 0.0), [64, 16, 4, 1, 1]),
        ((1.0, 2, 1.0, 0.0), [8, 4, 0, 0, 0]),
        ((1.0, 0, 0.4, 0.0), [8, 0, 0, 0, 0]),
        ((1.0, 0, 0.7, 0.0), [8, 4, 0, 0, 0]),
        ((1.0, 0, 1.0, 0.2), [8, 4, 2, 0, 0]),
        ((1.0, 3, 0.8, 0.0), [8, 4, 0, 0, 0]),  # 12 of the 14 that top-k left are above 0.8; 12 of 16 are not
    ):
        want = torch.tensor([shares], dtype=torch.float64) / sum(shares)
        got = sampling(logits, *setting)
        bound = want * torch.finfo(torch.float32).eps * 32 + torch.finfo(torch.float32).tiny
        within(got, want, bound, "roundings of a softmax of five", counters, f"temperature, k, p, min_p {setting}")


@clause("SAMP-1")
@pytest.mark.parametrize(
    "setting", [(1.0, 3, 1.0, 0.0), (1.0, 0, 0.6, 0.0), (1.0, 0, 1.0, 0.3), (0.5, 0, 0.8, 0.0)], ids=str
)
def test_filters_cut_the_tail_of_the_published_vocabulary(
    engine: UnderTest, counters: Counters, setting: tuple[float, int, float, float]
) -> None:
    """Four tokens, far apart in a vocabulary of 128,896, hold nine tenths; the others share the rest."""
    places, shares = [128_895, 70_001, 3, 65_536], [0.45, 0.25, 0.12, 0.08]
    weights = torch.full((VOCAB_SIZE,), 0.1 / (VOCAB_SIZE - 4), dtype=torch.float64)
    weights[places] = torch.tensor(shares, dtype=torch.float64)
    logits = weights.log().float()[None]
    check(engine, logits, setting, counters, "a peaked law")


@clause("SAMP-2")
@for_cases(["randn", "mixed_rows", "saturating"], SHAPES)
def test_temperature_zero_puts_everything_on_the_largest_logit(
    engine: UnderTest, counters: Counters, case: Case
) -> None:
    logits = case.activations(*case.shape, dtype=engine.profile.activations)
    got = engine.op("sampling")(logits, 0.0, 0, 1.0, 0.0)
    bit_exact(got.sum(dim=-1), torch.ones(case.shape[0]), counters, f"{case}, the sum")
    chosen = got.argmax(dim=-1)
    best = logits.gather(-1, chosen[:, None])[:, 0]
    bit_exact(best, logits.amax(dim=-1), counters, f"{case}, the chosen logit")
    bit_exact(got.gather(-1, chosen[:, None])[:, 0], torch.ones(case.shape[0]), counters, f"{case}, its probability")
