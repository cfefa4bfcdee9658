"""Checks of what an engine says of itself, as far as can be seen from outside: its rows, its device, its arithmetic."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from reference.operators import Operators

from ..clauses import clause
from ..counters import EXACTLY, Counters
from ..tolerance import ConformanceError, bit_exact
from ..under_test import UnderTest

SIZE = 64
LOUD_GATE = 64.0  # its sigmoid is 1 in every dtype


def neighbours(dtype: torch.dtype) -> Tensor:
    """[3, SIZE] numbers from 1 up, as near to each other as the dtype holds: a narrower one makes some equal."""
    return (1 + torch.arange(3 * SIZE, dtype=torch.float64) * torch.finfo(dtype).eps).view(3, SIZE).to(dtype)


# Rows whose result is their input, or a power of two times it: (further inputs before it and after it, factor).
EXACT: dict[str, tuple[Callable[[Tensor], tuple[Any, ...]], float]] = {
    "linear": (lambda x: (x, torch.eye(SIZE, dtype=x.dtype)), 1.0),
    "head_gate": (lambda x: (x[:, None], torch.zeros(3, 1, dtype=x.dtype)), 0.5),
    "swiglu": (lambda x: (torch.full_like(x, LOUD_GATE), x, 0.0), LOUD_GATE),
    "attention": (
        lambda x: (x[-1:, None], x[-1:, None], x[-1:, None], torch.tensor([5]), torch.tensor([5]), None),
        1.0,
    ),
}


@clause("CLAIM-1")
def test_every_row_that_is_offered_is_one_that_is_judged(engine: UnderTest, counters: Counters) -> None:
    """A row under a name of its own would be offered, and never judged."""
    known = {field.name for field in fields(Operators)}
    unknown = [row for row in engine.rows if row not in known]
    counters.compared(EXACTLY, len(unknown), 0, "rows of ops()")
    if unknown:
        raise ConformanceError(
            f"ops: offers {', '.join(unknown)}; want names of reference/ops: {', '.join(sorted(known))}"
        )


@clause("CLAIM-1")
def test_the_device_is_one_of_this_machine(engine: UnderTest, counters: Counters) -> None:
    """Each call's results are seen to lie on it, too; here, that there is such a device."""
    device = engine.device
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    is_there = torch.tensor([(device.index or 0) < counts.get(device.type, 0)])
    bit_exact(is_there, torch.tensor([True]), counters, f"{device}: whether this machine has it")


@clause("CLAIM-1")
def test_results_have_every_digit_of_the_profiles_activations(engine: UnderTest, counters: Counters) -> None:
    """Neighbouring numbers come through as they are: narrower arithmetic inside would make some of them equal."""
    x = neighbours(engine.profile.activations)
    offered = [row for row in EXACT if row in engine.rows]
    if not offered:
        engine.refuses(next(iter(EXACT)), f"{engine.name} offers none of {', '.join(EXACT)}")
    for row in offered:
        inputs_of, factor = EXACT[row]
        got = engine.op(row)(*inputs_of(x))
        want = (x[-1:] if row == "attention" else x) * factor
        counters.add("numbers", want.numel())
        bit_exact(got.reshape(want.shape), want, counters, f"{row} of neighbours in {x.dtype}")
