"""Is the output right, on a sample? Coarse on purpose: it finds wrong answers; ``conformance/`` judges the last bit."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .case import Agreement, Args, Check

RELATIVE = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9, torch.float32: 2.0**-16}  # two units in the last place
OF_ROW = 2.0**-7  # of the row's root mean square: sums that cancel, and intermediates rounded to the dtype


def wide(value: Any) -> Any:
    """Floating tensors in float64; quantised weights and everything else as they are."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() and value.itemsize > 1 else value


def compare(got: Tensor, exact: Tensor, of: str, of_row: float = OF_ROW) -> Agreement:
    """Error over tolerance: two units in the last place of ``got`` plus a share of the row's root mean square."""
    if got.shape != exact.shape:
        return Agreement(float("inf"), f"{of}: shape {tuple(got.shape)}, want {tuple(exact.shape)}")
    exact = exact.double()
    row_rms = exact.square().mean(dim=-1, keepdim=True).sqrt()
    allowed = RELATIVE[got.dtype] * exact.abs() + of_row * row_rms + torch.finfo(torch.float32).tiny
    error = float(((got.double() - exact).abs() / allowed).max())
    return Agreement(float("inf") if error != error else error, of)


def whole(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    """Every element of every output."""
    exact = reference(*map(wide, args))
    pairs = zip(_tensors(got), _tensors(exact), strict=True)
    return max((compare(g, e, "whole output") for g, e in pairs), key=lambda agreement: agreement.error)


def rows(indices: Sequence[int], *which: int, of_row: float = OF_ROW) -> Check:
    """Some rows of the output, made from the same rows of the arguments at the positions ``which``."""

    def check(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
        count = len(args[which[0]])
        chosen = sorted({index % count for index in indices})
        sample = tuple(arg[chosen] if at in which else arg for at, arg in enumerate(args))
        where = f"rows {', '.join(map(str, chosen))} of {count}"
        return compare(got[chosen], reference(*map(wide, sample)), where, of_row)

    return check


def outputs(step: int) -> Check:
    """Every ``step``-th output of x [T, I] times weight [O, I]."""

    def check(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
        x, weight = args
        some = slice(0, None, max(1, len(x) // 64))
        exact = reference(wide(x[some]), wide(weight[::step]))
        return compare(got[some, ::step], exact, f"every {step}th output")

    return check


def _tensors(value: Any) -> tuple[Tensor, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)
