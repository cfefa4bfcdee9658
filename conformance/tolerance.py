"""How far an engine may be from the oracle, and why: every bound is computed, none is typed by hand.

bit_exact        copies, ids, masks, isolation.
UlpBound         element-wise operators, in units in the last place (ulp) of the output.
DotBound         matrix products: the forward error bound of a sum of K products, in any order.
Envelope         composites: the errors of legal evaluations of the same inputs, see ``legal.py``.
near_tie         top-k and argmax: a mismatch is legal only where the oracle's margin is within the error of the scores.

NaN is never equal, and what is compared has the oracle's shape.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .counters import Counters

ENVELOPE_FACTOR = 1.5  # an error of a correct kernel is one more draw from the population of legal errors
BLOCK = 128  # columns; a fault in one tile of a kernel is loud in its block and quiet in its row
NEAR_ZERO = 2.0**-8  # below this share of the row's rms, the ulp of that share counts


class ConformanceError(AssertionError):
    """The engine is wrong; the message says where, got, want, statistic and bound."""


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours of ``dtype`` at the magnitude of ``value``; float64."""
    smallest = torch.finfo(dtype).tiny
    exponent = torch.frexp(value.double().abs().clamp(min=smallest)).exponent
    return torch.ldexp(torch.full_like(value, torch.finfo(dtype).eps, dtype=torch.float64), exponent - 1)


def gamma(num_roundings: int, dtype: torch.dtype) -> float:
    """Relative error of that many roundings, each to one of the two neighbours: n u / (1 - n u).

    u is the whole spacing eps, not half of it: tensor cores truncate. Source: Higham, Accuracy and Stability, 3.1.
    """
    unit = torch.finfo(dtype).eps
    return num_roundings * unit / (1 - num_roundings * unit)


def bit_exact(got: Tensor, want: Tensor, counters: Counters, where: object) -> None:
    """Every element equal, and of the same dtype.

    Raises:
        ConformanceError: names the first element that differs.
    """
    _same_shape(got, want, where)
    if got.dtype != want.dtype:
        raise ConformanceError(f"{where}: dtype is {got.dtype}; want {want.dtype}")
    wrong = ~(got == want)
    if wrong.any():
        index = tuple(wrong.nonzero()[0].tolist())
        raise ConformanceError(
            f"{where}: {int(wrong.sum())} of {wrong.numel()} elements differ; at {index} got {got[index].item()!r}, "
            f"want exactly {want[index].item()!r}"
        )
    counters.compared()


def within(got: Tensor, exact: Tensor, bound: Tensor, rule: str, counters: Counters, where: object) -> None:
    """Every ``|got - exact| <= bound``, element by element.

    Args:
        got: any floating dtype; exact, bound: float64 of the same shape.
        rule: what the bound is, for the message.

    Raises:
        ConformanceError: names the element that is furthest beyond its bound.
    """
    _same_shape(got, exact, where)
    error = (got.double() - exact.double()).abs()
    bound = torch.broadcast_to(bound, error.shape)
    if error.numel() == 0:
        counters.compared()
        return
    ratio = torch.where(error <= bound, torch.where(bound > 0, error / bound, 0.0), math.inf)
    ratio = torch.where((ratio == math.inf) & (bound > 0) & error.isfinite(), error / bound, ratio)
    index = tuple(int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape))
    counters.compared(error[index].item(), bound[index].item())
    wrong = ~(error <= bound)
    if wrong.any():
        raise ConformanceError(
            f"{where}: {int(wrong.sum())} of {wrong.numel()} elements are off; worst at {index}: got "
            f"{got[index].item():.9g}, want {exact[index].item():.9g}; error {error[index].item():.3g} is "
            f"{ratio[index].item():.3g} times the bound {bound[index].item():.3g} ({rule})"
        )


@dataclass(frozen=True)
class UlpBound:
    """Element-wise: ``ulps`` of the output around the correctly rounded result.

    Where the output is narrower than the dtype it is computed in, one ulp is enough, two where a transcendental is
    involved. Where it is as wide, each of the formula's roundings costs up to an ulp: then ``roundings`` counts.
    Near zero, the ulp of ``NEAR_ZERO`` of the row's rms counts: there it is cancellation that is measured. Results
    below the smallest normal number may be flushed to zero.
    """

    ulps: int
    roundings: int

    def check(self, got: Tensor, exact: Tensor, counters: Counters, where: object) -> None:
        """Compare with the float64 oracle; rows are along the last axis.

        Raises:
            ConformanceError: as ``within``.
        """
        _same_shape(got, exact, where)
        rounded = exact.to(got.dtype).double()
        row_rms = exact.double().square().mean(dim=-1, keepdim=True).sqrt()
        unit = ulp(torch.maximum(exact.double().abs(), row_rms * NEAR_ZERO), got.dtype)
        is_narrow = torch.finfo(got.dtype).bits < 32
        count = self.ulps if is_narrow else self.roundings
        bound = count * unit + torch.finfo(got.dtype).tiny
        within(got, rounded, bound, f"{count} ulp of {got.dtype}", counters, where)


def sum_roundings(num_terms: int) -> int:
    """Ulps that a sum of positive terms may be off: the square root of its length, as rounding errors are independent.

    Source: Higham and Mary 2019, A New Approach to Probabilistic Rounding Error Analysis.
    """
    return math.ceil(math.sqrt(num_terms))


@dataclass(frozen=True)
class DotBound:
    """A sum of ``num_terms`` products in any order, in ``accumulate``, rounded once to the output's dtype."""

    num_terms: int
    accumulate: torch.dtype

    def error(self, magnitude: Tensor) -> Tensor:
        """Forward bound before the final rounding; ``magnitude`` is the sum of the products' absolute values."""
        return gamma(self.num_terms, self.accumulate) * magnitude.double()

    def check(self, got: Tensor, exact: Tensor, magnitude: Tensor, counters: Counters, where: object) -> None:
        """Compare with the float64 oracle.

        Raises:
            ConformanceError: as ``within``.
        """
        _same_shape(got, exact, where)
        error = self.error(magnitude)
        bound = error + ulp(exact.double().abs() + error, got.dtype) / 2 + torch.finfo(got.dtype).tiny
        within(got, exact, bound, f"gamma_{self.num_terms} sum|x||w| + 1/2 ulp", counters, where)


@dataclass(frozen=True)
class Envelope:
    """Composites: in each row, each block of 128 columns and each row's worst element, 1.5 x the largest legal error.

    A few draws in one row say little of that row's largest legal error, so the rows inform each other, twice: by the
    largest error in any row relative to the row's size, and by the largest relative to the other evaluations' error in
    the same row, which knows how badly that row is conditioned. Half an output ulp is added for the final rounding.

    Args:
        legal: at least four evaluations of the same inputs that round where the profile rounds, in other orders.
        medians: bound the median row by the largest legal median, too. For whole models: there a near-tie in a router
            throws single rows, not the same ones in every evaluation, and the largest error is that of such a row.
    """

    legal: Sequence[Tensor]
    exact: Tensor
    medians: bool = False

    def row_bound(self, dtype: torch.dtype) -> Tensor:
        """[rows]: how far the worst element of each row may be off."""
        return self._bound(_worst_of_row, dtype).flatten()

    def check(self, got: Tensor, counters: Counters, where: object) -> None:
        """Compare with the float64 oracle; rows are along the last axis.

        Raises:
            ConformanceError: as ``within``, and names the statistic.
        """
        assert len(self.legal) >= 4, "an envelope of fewer evaluations says nothing"
        _same_shape(got, self.exact, where)
        if got.numel() == 0:
            counters.compared()
            return
        for statistic in (_rms_of_row, _rms_of_blocks, _worst_of_row):
            error = statistic(_rows(got) - _rows(self.exact))
            bound = self._bound(statistic, got.dtype)
            name = f"{statistic.__name__.strip('_')} of the error in [row, block]"
            rule = f"{ENVELOPE_FACTOR} x the largest of {len(self.legal)} legal errors + 1/2 ulp"
            within(error, torch.zeros_like(error), bound, rule, counters, f"{where}, {name}")
            if self.medians:
                legal = torch.stack([statistic(_rows(one) - _rows(self.exact)) for one in self.legal])
                worst_median = (
                    legal.median(dim=1).values.amax(dim=0) * ENVELOPE_FACTOR + self._floor(got.dtype).median()
                )
                median = error.median(dim=0).values
                within(
                    median,
                    torch.zeros_like(median),
                    worst_median,
                    f"{rule}, of medians",
                    counters,
                    f"{where}, median {name}",
                )

    def _bound(self, statistic: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        exact = _rows(self.exact)
        errors = torch.stack([statistic(_rows(one) - exact) for one in self.legal])  # [evaluations, rows, blocks]
        by_size = _largest_ratio(errors, statistic(exact)) * statistic(exact)
        squares = errors.square()
        others = ((squares.sum(dim=0) - squares) / (len(errors) - 1)).clamp(min=0).sqrt()
        by_condition = _largest_ratio(errors, others) * squares.mean(dim=0).sqrt()
        return ENVELOPE_FACTOR * torch.stack((errors.amax(dim=0), by_size, by_condition)).amax(dim=0) + self._floor(
            dtype
        )

    def _floor(self, dtype: torch.dtype) -> Tensor:
        return ulp(_worst_of_row(_rows(self.exact)), dtype) / 2 + torch.finfo(dtype).tiny


def near_tie(got: set[int], scores: Tensor, errors: Tensor, top_k: int, counters: Counters, where: object) -> bool:
    """Check a chosen set against the oracle's scores.

    Args:
        got: the chosen ids.
        scores: [E] float64; errors: [E], how far the engine's score of each may be off.
        top_k: how many should be chosen.

    Returns:
        Whether the set differs from the oracle's, legally.

    Raises:
        ConformanceError: a chosen id is further below a left-out one than both their errors allow.
    """
    if len(got) != top_k or not all(0 <= id < len(scores) for id in got):
        raise ConformanceError(f"{where}: chose {sorted(got)}; want {top_k} different ids from 0 to {len(scores) - 1}")
    want = set(torch.sort(scores, descending=True, stable=True).indices[:top_k].tolist())
    for left_out in sorted(want - got):
        for chosen in sorted(got - want):
            gap = (scores[left_out] - scores[chosen]).item()
            allowed = (errors[left_out] + errors[chosen]).item()
            counters.compared(gap, allowed)
            if not gap <= allowed:
                raise ConformanceError(
                    f"{where}: chose {chosen} (score {scores[chosen].item():.9g}), left out {left_out} (score "
                    f"{scores[left_out].item():.9g}); the gap {gap:.3g} is above {allowed:.3g}, the error of both "
                    f"scores; want {sorted(want)}, got {sorted(got)}"
                )
    counters.compared()
    return want != got


def _largest_ratio(errors: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0, errors / scale, 0.0).amax()


def _same_shape(got: Tensor, want: Tensor, where: object) -> None:
    if got.shape != want.shape:
        raise ConformanceError(f"{where}: shape is {tuple(got.shape)}; want {tuple(want.shape)}")


def _rows(x: Tensor) -> Tensor:
    return x.double().reshape(-1, x.shape[-1])


def _rms_of_row(x: Tensor) -> Tensor:
    return x.square().mean(dim=-1, keepdim=True).sqrt()


def _rms_of_blocks(x: Tensor) -> Tensor:
    return torch.cat([_rms_of_row(block) for block in x.split(BLOCK, dim=-1)], dim=-1)


def _worst_of_row(x: Tensor) -> Tensor:
    return x.abs().amax(dim=-1, keepdim=True)
