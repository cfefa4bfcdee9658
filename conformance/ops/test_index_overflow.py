"""Checks at sizes where offsets leave 32 bits: rows beyond element 2**31 are what they are in a small batch.

On an accelerator. On a CPU, where such tensors take minutes, the same checks run on a batch of three repetitions.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact, legal
from ..profiles import Profile
from ..strategies import Case
from ..tolerance import Envelope, bit_exact
from ..under_test import UnderTest

BASE_ROWS = 61  # a prime: no power of two of rows is a whole number of repetitions
WIDTH = 4096
LIMIT = 2**31  # elements
Inputs = Callable[[Case, Profile], tuple[tuple[Any, ...], tuple[int, ...]]]  # inputs, and which are repeated


def _rms_norm(case: Case, profile: Profile) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    return (_rows(case, profile), case.norm_weight(WIDTH, profile.weights), 1e-5), (0,)


def _swiglu(case: Case, profile: Profile) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    return (_rows(case, profile), _rows(case, profile, "up"), 7.0), (0, 1)


def _linear(case: Case, profile: Profile) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    return (_rows(case, profile), case.weights(40, WIDTH, dtype=profile.weights, what="weight")), (0,)


def _head_gate(case: Case, profile: Profile) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    x = _rows(case, profile).view(BASE_ROWS, 32, WIDTH // 32)
    return (x, case.activations(BASE_ROWS, 32, dtype=profile.activations, what="gate")), (0, 1)


def _rows(case: Case, profile: Profile, what: str = "x") -> torch.Tensor:
    return case.activations(BASE_ROWS, WIDTH, dtype=profile.activations, what=what)


def sizes(engine: UnderTest) -> tuple[int, list[int]]:
    """How often the base is repeated, and which rows are compared: both ends, and both sides of the limit."""
    times = -(-LIMIT // (BASE_ROWS * WIDTH)) + 1 if engine.device.type == "cuda" else 3
    last = times * BASE_ROWS - 1
    border = min(LIMIT // WIDTH, last)
    return times, sorted({0, BASE_ROWS, border - 1, border, last - 1, last})


@pytest.mark.full
@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        pytest.param("rms_norm", _rms_norm, marks=clause("NORM-1")),
        pytest.param("swiglu", _swiglu, marks=clause("ACT-1")),
        pytest.param("linear", _linear, marks=clause("LIN-1")),
        pytest.param("head_gate", _head_gate, marks=clause("GATE-1")),
    ],
)
def test_rows_beyond_32_bits_are_what_they_are_in_a_small_batch(
    engine: UnderTest, counters: Counters, op: str, inputs: Inputs
) -> None:
    case = Case("randn", (BASE_ROWS, WIDTH), 0)
    args, repeated = inputs(case, engine.profile)
    times, rows = sizes(engine)
    got = engine.on_repeated(op, args, repeated, times, rows)
    base = [row % BASE_ROWS for row in rows]
    counters.add("rows_of_a_repeated_batch", len(rows))
    bounds = Envelope([one[base] for one in legal(op, engine.profile, *args)], exact(op, *args)[base])
    bounds.check(got, counters, f"{op}, rows {rows} of {times * BASE_ROWS}")


@clause("EMB-1")
@pytest.mark.full
def test_an_embedding_of_more_than_32_bits_copies_every_row(engine: UnderTest, counters: Counters) -> None:
    case = Case("randn", (BASE_ROWS, WIDTH), 0)
    weight = case.weights(97, WIDTH, dtype=engine.profile.weights, what="table")
    ids = torch.randint(97, (BASE_ROWS,), generator=case.random("ids"))
    times, rows = sizes(engine)
    got = engine.on_repeated("embedding", (ids, weight), (0,), times, rows)
    counters.add("rows_of_a_repeated_batch", len(rows))
    bit_exact(got, weight[ids[[row % BASE_ROWS for row in rows]]], counters, f"rows {rows} of {times * BASE_ROWS}")
