"""Checks of the row ``mtp_input``."""

import torch
from torch import Tensor

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact, legal
from ..strategies import Case, for_cases, token_counts
from ..tolerance import Envelope
from ..under_test import UnderTest
from .test_rms_norm import EPS, tolerance

SHAPES = [(5, 96), (1, 264), (17, 40), (0, 16), *token_counts(24)]  # T, D
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]


def inputs(engine: UnderTest, case: Case) -> Inputs:
    num_tokens, hidden_size = case.shape
    activations, weights = engine.profile.activations, engine.profile.weights
    return (
        case.activations(num_tokens, hidden_size, dtype=activations, what="embedded"),
        case.activations(num_tokens, hidden_size, dtype=activations, what="hidden"),
        case.norm_weight(hidden_size, weights, "enorm"),
        case.norm_weight(hidden_size, weights, "hnorm"),
        case.weights(hidden_size, 2 * hidden_size, dtype=weights, what="eh"),
        EPS,
    )


@clause("MTP-1")
@for_cases(["randn", "one_loud_channel", "mixed_rows", "tiny_scale", "some_zero_rows", "zeros"], SHAPES)
def test_projects_the_normalised_embedding_and_hidden_state(engine: UnderTest, counters: Counters, case: Case) -> None:
    args = inputs(engine, case)
    got = engine.op("mtp_input")(*args)
    counters.add("rows_whose_halves_differ", int((args[0] != args[1]).any(dim=-1).sum()))
    Envelope(legal("mtp_input", engine.profile, *args), exact("mtp_input", *args)).check(got, counters, case)


@clause("MTP-1")
def test_the_embedding_comes_first_and_each_half_has_its_own_norm(engine: UnderTest, counters: Counters) -> None:
    """Independent of the reference: projections that let one half through give rms_norm of that half."""
    case = Case("randn", (3, 24), 0)
    embedded, hidden, enorm, hnorm, _, eps = inputs(engine, case)
    eye, nothing = torch.eye(24).to(engine.profile.weights), torch.zeros(24, 24).to(engine.profile.weights)
    for half, weight, halves, name in (
        (embedded, enorm, (eye, nothing), "embedding"),
        (hidden * 5, hnorm, (nothing, eye), "hidden state"),
    ):
        got = engine.op("mtp_input")(embedded, hidden * 5, enorm, hnorm, torch.cat(halves, dim=1), eps)
        x = half.double()
        want = x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * (1 + weight.double())
        # the projection by ones and zeros rounds nothing away, so that the bound is that of rms_norm
        tolerance(24).check(got, want, counters, f"the {name} alone")
