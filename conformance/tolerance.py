"""How far an engine may be from the oracle, and why: every bound is computed, none is typed by hand.

bit_exact        copies, ids, masks, isolation.
UlpBound         element-wise operators, in units in the last place (ulp) of the output.
DotBound         matrix products: the forward error bound of a sum of K products, in any order.
Envelope         composites: the errors of legal evaluations of the same inputs, see ``legal.py``; or dominance.
Residual         small errors that always point the same way: projections of the residual.
near_tie         top-k and argmax: a mismatch is legal only where the oracle's margin is within the error of the scores.

NaN is never equal, and what is compared has the oracle's shape.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from .counters import EXACTLY, Counters

ENVELOPE_FACTOR = 1.5  # an error of a correct kernel is one more draw from the population of legal errors
FALSE_ALARMS = 1e-9  # of one coefficient; a session judges some thousands
BLOCK = 128  # columns; a fault in one tile of a kernel is loud in its block and quiet in its row
NEAR_TIE = "gap of the oracle's scores within the errors of both"
NEAR_ZERO = 2.0**-8  # below this share of the row's rms, the ulp of that share counts


@dataclass(frozen=True)
class Failure:
    """What a comparison was of, so that it can be made again elsewhere.

    Attributes:
        statistic: what of ``got - want`` is bounded: element, rms_of_row, rms_of_blocks or worst_of_row.
        bound: float64, of the statistic's shape.
    """

    got: Tensor
    want: Tensor
    bound: Tensor
    statistic: str = "element"


class ConformanceError(AssertionError):
    """The engine is wrong; the message says where, got, want, statistic and bound."""

    failure: Failure | None = None

    def of(self, failure: Failure) -> "ConformanceError":
        """This error, with what was compared."""
        self.failure = failure
        return self


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
    counters.expected(want)
    counters.compared(EXACTLY, int(wrong.sum()), 0, where)
    if wrong.any():
        index = tuple(wrong.nonzero()[0].tolist())
        raise ConformanceError(
            f"{where}: {int(wrong.sum())} of {wrong.numel()} elements differ; at {index} got {got[index].item()!r}, "
            f"want exactly {want[index].item()!r}"
        ).of(Failure(got, want, torch.zeros(got.shape, dtype=torch.float64)))


def within(
    got: Tensor,
    exact: Tensor,
    bound: Tensor,
    rule: str,
    counters: Counters,
    where: object,
    scale: Tensor | None = None,
) -> None:
    """Every ``|got - exact| <= bound``, element by element.

    Args:
        got: any floating dtype; exact, bound: float64 of the same shape.
        rule: what the bound is, for the message and the record.
        scale: what a fault is measured against, rows along its last axis; by default ``exact``.

    Raises:
        ConformanceError: names the element that is furthest beyond its bound.
    """
    _same_shape(got, exact, where)
    error = (got.double() - exact.double()).abs()
    bound = torch.broadcast_to(bound, error.shape)
    counters.expected(exact)
    if error.numel() == 0:
        counters.compared(rule, 0, 0, where)
        return
    ratio = torch.where(error <= bound, torch.where(bound > 0, error / bound, 0.0), math.inf)
    ratio = torch.where((ratio == math.inf) & (bound > 0) & error.isfinite(), error / bound, ratio)
    index = tuple(int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape))
    detects = _smallest_certain_fault(bound, exact if scale is None else scale)
    counters.compared(rule, error[index].item(), bound[index].item(), where, detects)
    wrong = ~(error <= bound)
    if wrong.any():
        raise ConformanceError(
            f"{where}: {int(wrong.sum())} of {wrong.numel()} elements are off; worst at {index}: got "
            f"{got[index].item():.9g}, want {exact[index].item():.9g}; error {error[index].item():.3g} is "
            f"{ratio[index].item():.3g} times the bound {bound[index].item():.3g} ({rule})"
        ).of(Failure(got, exact, bound))


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

    def check(
        self, got: Tensor, exact: Tensor, counters: Counters, where: object, exponents: Tensor | None = None
    ) -> None:
        """Compare with the float64 oracle; rows are along the last axis.

        Args:
            exponents: x of each sigmoid in the formula, see ``sigmoid_roundings``; of a shape that fits ``exact``.

        Raises:
            ConformanceError: as ``within``.
        """
        _same_shape(got, exact, where)
        rounded = exact.to(got.dtype).double()
        row_rms = exact.double().square().mean(dim=-1, keepdim=True).sqrt()
        unit = ulp(torch.maximum(exact.double().abs(), row_rms * NEAR_ZERO), got.dtype)
        is_narrow = torch.finfo(got.dtype).bits < 32
        count, rule = (self.ulps if is_narrow else self.roundings), ""
        bound = count * unit + torch.finfo(got.dtype).tiny
        if exponents is not None and not is_narrow:
            bound, rule = bound + sigmoid_roundings(exponents) * unit, " + |x| (1 - sigmoid(x))"
        within(got, rounded, bound, f"{count}{rule} ulp of {got.dtype}", counters, where)


def sigmoid_roundings(x: Tensor) -> Tensor:
    """Ulps that 1 / (1 + exp(-x)) may be off because exp(-x) is formed as exp2(-x log2 e), as kernels do.

    The rounded constant and the rounded product move the exponent by |x| ulp, and exp(-x) by as much, relatively; of
    that, the share 1 - sigmoid(x) reaches the quotient.
    """
    return x.double().abs() * torch.sigmoid(-x.double())


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
        ideal: the same without the roundings that the profile prescribes. An engine that leaves the envelope because it
            leaves some of them out is right, too, as long as it is as near to this as legal evaluations are.
    """

    legal: Sequence[Tensor]
    exact: Tensor
    medians: bool = False
    ideal: Tensor | None = None
    _bounds: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)

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
            counters.compared("no rows", 0, 0, where)
        elif self.ideal is not None and self._dominates(got, self.ideal):
            self._check_dominance(got, self.ideal, counters, where)
        else:
            for comparison in self._comparisons(got):
                try:
                    comparison.check(counters, where)
                except ConformanceError as error:
                    raise error.of(Failure(got, self.exact, comparison.bound, comparison.statistic)) from None

    def _comparisons(self, got: Tensor) -> Iterator["_Comparison"]:
        rule = f"{ENVELOPE_FACTOR} x the largest legal error + 1/2 ulp"
        for statistic in (_rms_of_row, _rms_of_blocks, _worst_of_row):
            name = f"{statistic.__name__.strip('_')} of the error in [row, block]"
            error, sizes = statistic(_rows(got) - _rows(self.exact)), statistic(_rows(self.exact))
            yield _Comparison(
                name, rule, error, self._bound(statistic, got.dtype), sizes, statistic.__name__.strip("_")
            )
            if self.medians:
                legal = torch.stack([statistic(_rows(one) - _rows(self.exact)) for one in self.legal])
                largest = legal.median(dim=1).values.amax(dim=0) * ENVELOPE_FACTOR
                bound = largest + self._floor(got.dtype).median()
                middle = error.median(dim=0).values
                yield _Comparison(f"median {name}", rule, middle, bound, sizes.median(dim=0).values)

    def _dominates(self, got: Tensor, ideal: Tensor) -> bool:
        """Whether the envelope is left, but every row is at least as near to the ideal as legal evaluations are."""
        leaves = any((comparison.error > comparison.bound).any() for comparison in self._comparisons(got))
        error, bound = self._dominance(got, ideal)
        return bool(leaves and (error <= bound).all())

    def _dominance(self, got: Tensor, ideal: Tensor) -> tuple[Tensor, Tensor]:
        errors = [_rms_of_row(_rows(one) - _rows(ideal)) for one in (got, *self.legal)]
        return errors[0], torch.stack(errors[1:]).amax(dim=0)

    def _check_dominance(self, got: Tensor, ideal: Tensor, counters: Counters, where: object) -> None:
        error, bound = self._dominance(got, ideal)
        rule = "no further from unrounded arithmetic than legal evaluations are, in every row"
        _Comparison("rms of the error in [row]", rule, error, bound, _rms_of_row(_rows(ideal))).check(counters, where)

    def _bound(self, statistic: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        if (statistic, dtype) not in self._bounds:
            self._bounds[statistic, dtype] = self._computed_bound(statistic, dtype)
        return self._bounds[statistic, dtype]

    def _computed_bound(self, statistic: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
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


@dataclass(frozen=True)
class _Comparison:
    """Errors, what they may be, and the size of what they are errors of."""

    name: str
    rule: str
    error: Tensor
    bound: Tensor
    sizes: Tensor
    statistic: str = "element"

    def check(self, counters: Counters, where: object) -> None:
        rule, zero = f"{self.rule}, {self.name}", torch.zeros_like(self.error)
        within(self.error, zero, self.bound, rule, counters, f"{where}, {self.name}", scale=self.sizes)


@dataclass(frozen=True)
class Residual:
    """Small errors that always point the same way: the residual, projected on directions that a fault would take.

    A direction is what some part adds to the result (an expert, say); a coefficient of c says that the part counts
    1 + c times. Legal evaluations scatter around 0, and so does the rounding of the result, which most of them share;
    both together, at a rate of one false alarm in ``1 / FALSE_ALARMS`` for a normal law, times the factor of the
    envelope, are the bound: it falls with the number of elements, and so finds what hides below the rounding of each.

    Args:
        legal, exact: as for ``Envelope``.
        directions: by name, of the shape of ``exact``.
    """

    legal: Sequence[Tensor]
    exact: Tensor
    directions: Mapping[str, Tensor]
    _scatters: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def check(self, got: Tensor, counters: Counters, where: object) -> None:
        """Compare each coefficient with its bound.

        Raises:
            ConformanceError: names the direction.
        """
        _same_shape(got, self.exact, where)
        factor = ENVELOPE_FACTOR * -NormalDist().inv_cdf(FALSE_ALARMS / 2)
        rule = f"{factor:.2f} x the scatter of legal evaluations, share of a part"
        for name, direction in self.directions.items():
            if not direction.any():
                continue
            if name not in self._scatters:
                draws = torch.stack([self._coefficient(one, direction) for one in self.legal])
                step = ulp(self.exact, got.dtype) / math.sqrt(12)  # standard deviation of rounding to nearest
                rounding = (step * direction).norm() / direction.double().square().sum()
                self._scatters[name] = torch.hypot(draws.square().mean().sqrt(), rounding)
            bound = factor * self._scatters[name] + torch.finfo(self.exact.dtype).eps * self.exact.numel()
            coefficient = self._coefficient(got, direction)[None]
            zero, one = torch.zeros_like(coefficient), torch.ones_like(coefficient)
            within(coefficient, zero, bound[None], rule, counters, f"{where}, {name}", scale=one)

    def _coefficient(self, one: Tensor, direction: Tensor) -> Tensor:
        return ((one.double() - self.exact) * direction).sum() / direction.double().square().sum()


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
    counters.expected(scores)
    if len(got) != top_k or not all(0 <= id < len(scores) for id in got):
        raise ConformanceError(f"{where}: chose {sorted(got)}; want {top_k} different ids from 0 to {len(scores) - 1}")
    want = set(torch.sort(scores, descending=True, stable=True).indices[:top_k].tolist())
    for left_out in sorted(want - got):
        for chosen in sorted(got - want):
            gap = (scores[left_out] - scores[chosen]).item()
            allowed = (errors[left_out] + errors[chosen]).item()
            counters.compared(NEAR_TIE, gap, allowed, where)
            if not gap <= allowed:
                raise ConformanceError(
                    f"{where}: chose {chosen} (score {scores[chosen].item():.9g}), left out {left_out} (score "
                    f"{scores[left_out].item():.9g}); the gap {gap:.3g} is above {allowed:.3g}, the error of both "
                    f"scores; want {sorted(want)}, got {sorted(got)}"
                )
    counters.compared(NEAR_TIE, 0, 0, where)
    return want != got


def _smallest_certain_fault(bound: Tensor, scale: Tensor) -> float | None:
    """Twice a bound over the rms of its row, at a typical element: the median of those that are not exact."""
    if scale.ndim == 0 or scale.numel() == 0:
        return None
    rms = scale.double().square().mean(dim=-1, keepdim=True).sqrt()
    shares = torch.broadcast_to(2 * bound, scale.shape) / rms
    shares = shares[torch.broadcast_to(rms > 0, scale.shape) & shares.isfinite() & (shares > 0)]
    return shares.median().item() if shares.numel() else None


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
