"""Input families: what an operator is shown, and what each family is there to show.

A ``Case`` is small enough to read in a failure message and to build again: a family, a shape and a seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis
import hypothesis.strategies as st
import torch
from torch import Tensor

from .profiles import Profile

LAST_POSITION = 262_143
# Beside small ones, positions that are not round: bfloat16 holds powers of two exactly and errs by up to 512 here.
POSITIONS = (0, 1, 511, 513, 4095, 8_191, 100_003, 131_071, 131_073, LAST_POSITION)
# Around the tile heights of kernels: what is left over, or missing, in a last tile shows at these.
TOKEN_COUNTS = (0, 1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129)
DENORMAL = 2.0**-133  # the smallest number above 0 of bfloat16; float32 holds it, too


def token_counts(*rest: int) -> list[tuple[int, ...]]:
    """Shapes (T, *rest) for every number of tokens."""
    return [(count, *rest) for count in TOKEN_COUNTS]


def _randn(size: Sequence[int], random: torch.Generator) -> Tensor:
    return torch.randn(*size, generator=random)


def _one_loud_channel(size: Sequence[int], random: torch.Generator) -> Tensor:
    x = _randn(size, random)
    x[..., int(torch.randint(size[-1], (1,), generator=random))] *= 40
    return x


def _mixed_rows(size: Sequence[int], random: torch.Generator) -> Tensor:
    """Rows of very different size: what one row does to another shows."""
    exponents = torch.randint(-8, 9, (*size[:-1], 1), generator=random)
    return _randn(size, random) * 2.0**exponents


def _some_zero_rows(size: Sequence[int], random: torch.Generator) -> Tensor:
    return _randn(size, random) * (torch.rand(*size[:-1], 1, generator=random) < 0.5)


def _denormals(size: Sequence[int], random: torch.Generator) -> Tensor:
    """-2 to 2 times the smallest: where a product with them is flushed to zero, that is legal, and NaN is not."""
    return torch.randint(-2, 3, tuple(size), generator=random) * DENORMAL


FAMILIES: dict[str, Callable[[Sequence[int], torch.Generator], Tensor]] = {
    "randn": _randn,
    "one_loud_channel": _one_loud_channel,
    "mixed_rows": _mixed_rows,
    "tiny_scale": lambda size, random: _randn(size, random) * 1e-4,  # mean square far below eps
    "huge_scale": lambda size, random: _randn(size, random) * 1e4,
    "saturating": lambda size, random: _randn(size, random) * 8,  # beyond the clamp of swiglu
    "zeros": lambda size, random: torch.zeros(*size),
    "some_zero_rows": _some_zero_rows,
    "denormals": _denormals,
}


@dataclass(frozen=True)
class Case:
    """Everything that an example is made from.

    Attributes:
        family: of the activations; a key of FAMILIES, or a name that the check itself understands.
        shape: what the check's axes are.
        seed: of all numbers.
    """

    family: str
    shape: tuple[int, ...]
    seed: int

    def random(self, what: str = "") -> torch.Generator:
        """A generator that depends on the seed and on what is drawn from it."""
        return torch.Generator().manual_seed(self.seed * 7919 + sum(what.encode()))

    def activations(self, *size: int, dtype: torch.dtype, what: str = "x") -> Tensor:
        """[size] from the family."""
        return FAMILIES[self.family](size, self.random(what)).to(dtype)

    def weights(self, *size: int, dtype: torch.dtype, what: str) -> Tensor:
        """[..., O, I] such that products keep the size of their input; rows differ in size by up to 4."""
        scale = torch.linspace(0.5, 2, size[-2])[:, None] if len(size) > 1 else torch.ones(1)
        return (_randn(size, self.random(what)) * scale / size[-1] ** 0.5).to(dtype)

    def norm_weight(self, size: int, dtype: torch.dtype, what: str = "norm") -> Tensor:
        """[size] zero-centred, with -1 (removes the channel) and 0 (leaves it alone) among the entries."""
        weight = _randn((size,), self.random(what)) / 2
        weight[0], weight[-1] = -1, 0
        return weight.to(dtype)


def for_cases(families: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Callable[[Any], Any]:
    """Run a check that takes ``case`` on every family and every shape at least once, and on what hypothesis draws."""

    def decorate(check: Any) -> Any:
        cases = st.builds(Case, st.sampled_from(families), st.sampled_from(shapes), st.integers(0, 2**31))
        judged = hypothesis.given(case=cases)(check)
        for number in range(max(len(families), len(shapes))):
            case = Case(families[number % len(families)], shapes[number % len(shapes)], number)
            judged = hypothesis.example(case=case)(judged)
        return judged

    return decorate


def _all_negative(x: Tensor, weight: Tensor, bias: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return x.abs() * 2, -weight.abs(), bias * 1e-4


def _all_positive(x: Tensor, weight: Tensor, bias: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return x.abs() * 2, weight.abs(), bias * 1e-4


def _equal(x: Tensor, weight: Tensor, bias: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return x, weight[:1].expand_as(weight).contiguous(), torch.zeros_like(bias)


def _cold(x: Tensor, weight: Tensor, bias: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return x, weight, torch.where(torch.arange(len(bias)) % 3 == 0, bias - 2, bias)


def _hot(x: Tensor, weight: Tensor, bias: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return x[:1].expand_as(x).contiguous(), weight, bias


def _ties(x: Tensor, weight: Tensor, bias: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    weight[1::2], bias[1::2] = weight[:-1:2].clone(), bias[:-1:2].clone()
    return x, weight, bias


def _near_ties(x: Tensor, weight: Tensor, bias: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = _ties(x, weight, bias, random)
    gaps = 10.0 ** -torch.randint(2, 7, bias[1::2].shape, generator=random)
    bias[1::2] += gaps
    return x, weight, bias


def _biased(x: Tensor, weight: Tensor, bias: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return x, weight, bias * 20


def _as_it_is(x: Tensor, weight: Tensor, bias: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return x, weight, bias


# What each does to random rows, experts and biases.
ROUTER_FAMILIES = {
    "randn": _as_it_is,
    "one_loud_channel": _as_it_is,
    "all_negative": _all_negative,  # every score below a half
    "all_positive": _all_positive,  # every score near 1: sigmoids that saturate lie close together
    "hot": _hot,  # every token chooses the same experts
    "cold": _cold,  # a third of the experts is never chosen while there are others
    "equal": _equal,  # every expert has the same score
    "ties": _ties,  # pairs of equal experts
    "near_ties": _near_ties,  # pairs of experts whose scores differ by 1e-2 to 1e-6
    "biased": _biased,  # the bias decides
}


def router_inputs(case: Case, profile: Profile) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, D], weight [E, D] and bias [E] float32 of a router's case (T, D, E, A)."""
    num_tokens, hidden_size, num_experts, _ = case.shape
    family = case.family if case.family in FAMILIES else "randn"
    x = Case(family, case.shape, case.seed).activations(num_tokens, hidden_size, dtype=torch.float32)
    weight = 2 * _randn((num_experts, hidden_size), case.random("weight")) / hidden_size**0.5
    bias = _randn((num_experts,), case.random("bias")) / 10
    x, weight, bias = ROUTER_FAMILIES[case.family](x, weight, bias, case.random("family"))
    return x.to(profile.activations), weight.to(profile.weights), bias
