"""Triton kernel for ``reference.ops.sampling``: the filters by bisection, without a sort.

What top-k and top-p keep of a row is a threshold and, among tokens that equal it, a number of lowest ids. Float32 order
is the order of their bits (negative ones flipped), so that 32 halvings find a threshold exactly. A row of the published
vocabulary stays in the second-level cache while it is read again.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from .layout import require, rows_of

LOWEST = tl.constexpr(-(2**31))  # a key below that of every number
HALF = tl.constexpr(2**31)  # of the keys' range: the first step of a bisection


@triton.jit
def _ordered(x):
    """Integers in the order of float32 numbers."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _scaled(logits_ptr, at, inside, temperature):
    return tl.load(logits_ptr + at, mask=inside, other=-float("inf")).to(tl.float32) / temperature[:, None]


@triton.jit
def _of_rows(value, t, T, ROWS_EACH: tl.constexpr):
    """[BLOCK_T]: one number for all rows, or of every ROWS_EACH rows the one that a pointer leads to."""
    if ROWS_EACH == 0:
        of_rows = tl.zeros(t.shape, dtype=tl.float32) + value
    else:
        of_rows = tl.load(value + t // ROWS_EACH, mask=t < T, other=1.0)
    return of_rows


@triton.jit
def _sampling_kernel(
    logits_ptr,  # [T, V], row stride stride_t
    y_ptr,  # [T, V] float32, contiguous
    stride_t,
    T,
    V,
    temperature,  # each of these four: a number, or [T / ROWS_EACH] float32
    top_k,
    top_p,
    min_p,
    HAS_TOP_K: tl.constexpr,
    HAS_TOP_P: tl.constexpr,
    GREEDY: tl.constexpr,
    ROWS_EACH: tl.constexpr,  # rows that share their filters; 0: all do
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    begin_kernel()
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    temperatures = _of_rows(temperature, t, T, ROWS_EACH)
    is_greedy = temperatures == 0.0
    temperatures = tl.where(is_greedy, 1.0, temperatures)
    ks = _of_rows(top_k, t, T, ROWS_EACH).to(tl.int32)
    ks = tl.where((ks <= 0) | (ks > V), V, ks)
    ps = _of_rows(top_p, t, T, ROWS_EACH)
    mins = _of_rows(min_p, t, T, ROWS_EACH)
    row = (t.to(tl.int64) * stride_t)[:, None]
    y_row = (t.to(tl.int64) * V)[:, None]
    largest = tl.full((BLOCK_T,), -float("inf"), dtype=tl.float32)
    first = tl.zeros((BLOCK_T,), dtype=tl.int32)  # the lowest id of the largest
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        inside = (t < T)[:, None] & (v < V)[None, :]
        x = _scaled(logits_ptr, row + v[None, :], inside, temperatures)
        here, where = tl.max(x, axis=1, return_indices=True, return_indices_tie_break_left=True)
        first = tl.where(here > largest, start + where, first)
        largest = tl.maximum(largest, here)
    largest = tl.where(t < T, largest, 0.0)  # rows beyond the last: no infinity less infinity
    if GREEDY:
        for start in range(0, V, BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)
            inside = (t < T)[:, None] & (v < V)[None, :]
            tl.store(y_ptr + y_row + v[None, :], (v[None, :] == first[:, None]).to(tl.float32), mask=inside)
    else:
        # kept: keys above threshold, and the first `ties` of those that equal it
        threshold = tl.full((BLOCK_T,), LOWEST, dtype=tl.int64)
        ties = tl.full((BLOCK_T,), V, dtype=tl.int32)
        if HAS_TOP_K:
            step = tl.full((BLOCK_T,), HALF, dtype=tl.int64)
            for _ in range(tl.max(tl.where(ks < V, 32, 0), axis=0)):  # the largest that still keeps at least top_k
                higher = threshold + step
                step = step >> 1
                count = tl.zeros((BLOCK_T,), dtype=tl.int32)
                for start in range(0, V, BLOCK_V):
                    v = start + tl.arange(0, BLOCK_V)
                    inside = (t < T)[:, None] & (v < V)[None, :]
                    keys = _ordered(_scaled(logits_ptr, row + v[None, :], inside, temperatures))
                    count += tl.sum((inside & (keys >= higher[:, None])).to(tl.int32), axis=1)
                threshold = tl.where(count >= ks, higher, threshold)
            above = tl.zeros((BLOCK_T,), dtype=tl.int32)
            for start in range(0, V, BLOCK_V):
                v = start + tl.arange(0, BLOCK_V)
                inside = (t < T)[:, None] & (v < V)[None, :]
                keys = _ordered(_scaled(logits_ptr, row + v[None, :], inside, temperatures))
                above += tl.sum((inside & (keys > threshold[:, None])).to(tl.int32), axis=1)
            ties = ks - above
        if HAS_TOP_P:
            above, equal, each = _masses(
                logits_ptr, row, threshold, largest, t, T, V, temperatures, BLOCK_T, BLOCK_V
            )  # fmt: skip
            all_ties = tl.minimum(ties, equal)
            enough = ps * (above + all_ties.to(tl.float64) * each)
            lower = threshold
            step = tl.full((BLOCK_T,), HALF, dtype=tl.int64)
            for _ in range(tl.max(tl.where(ps < 1, 32, 0), axis=0)):  # the largest from which on they reach top_p
                higher = lower + step
                step = step >> 1
                mass = tl.zeros((BLOCK_T,), dtype=tl.float64)
                for start in range(0, V, BLOCK_V):
                    v = start + tl.arange(0, BLOCK_V)
                    inside = (t < T)[:, None] & (v < V)[None, :]
                    x = _scaled(logits_ptr, row + v[None, :], inside, temperatures)
                    power = tl.where(_ordered(x) >= higher[:, None], tl.exp(x - largest[:, None]), 0.0)
                    mass += tl.sum(power.to(tl.float64), axis=1)
                lower = tl.where(mass >= enough, higher, lower)
            above, equal, each = _masses(logits_ptr, row, lower, largest, t, T, V, temperatures, BLOCK_T, BLOCK_V)
            needed = tl.ceil(
                (enough - above) / tl.where(t < T, each, 1.0)
            )  # ties, each kept while those before it are less than enough
            needed = tl.maximum(needed, 1.0).to(tl.int32)
            needed = tl.where(lower > threshold, needed, tl.minimum(all_ties, needed))
            ties = tl.where(ps < 1, needed, ties)
            threshold = tl.where(ps < 1, lower, threshold)
        total = tl.zeros((BLOCK_T,), dtype=tl.float32)
        seen = tl.zeros((BLOCK_T,), dtype=tl.int32)
        for start in range(0, V, BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)
            inside = (t < T)[:, None] & (v < V)[None, :]
            x = _scaled(logits_ptr, row + v[None, :], inside, temperatures)
            power, seen = _kept(x, inside, threshold, ties, seen, largest, mins)
            total += tl.sum(power, axis=1)
        total = tl.where(t < T, total, 1.0)
        seen = tl.zeros((BLOCK_T,), dtype=tl.int32)
        for start in range(0, V, BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)
            inside = (t < T)[:, None] & (v < V)[None, :]
            x = _scaled(logits_ptr, row + v[None, :], inside, temperatures)
            power, seen = _kept(x, inside, threshold, ties, seen, largest, mins)
            share = tl.where(is_greedy[:, None], (v[None, :] == first[:, None]).to(tl.float32), power / total[:, None])
            tl.store(y_ptr + y_row + v[None, :], share, mask=inside)


@triton.jit
def _kept(x, inside, threshold, ties, seen, largest, min_p):
    """exp(x - largest) of what the filters keep, else 0; and how many ties were seen so far."""
    keys = _ordered(x)
    equal = (inside & (keys == threshold[:, None])).to(tl.int32)
    before = seen[:, None] + tl.cumsum(equal, axis=1) - equal
    power = tl.exp(x - largest[:, None])
    keep = (keys > threshold[:, None]) | ((equal > 0) & (before < ties[:, None]))
    return tl.where(inside & keep & (power >= min_p[:, None]), power, 0.0), seen + tl.sum(equal, axis=1)


@triton.jit
def _masses(logits_ptr, row, threshold, largest, t, T, V, temperature, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr):
    """Sum of exp(x - largest) above a threshold, how many equal it, and the exp(x - largest) of each of these."""
    above = tl.zeros((BLOCK_T,), dtype=tl.float64)
    equal = tl.zeros((BLOCK_T,), dtype=tl.int32)
    each = tl.zeros((BLOCK_T,), dtype=tl.float32)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        inside = (t < T)[:, None] & (v < V)[None, :]
        x = _scaled(logits_ptr, row + v[None, :], inside, temperature)
        keys, power = _ordered(x), tl.exp(x - largest[:, None])
        above += tl.sum(tl.where(keys > threshold[:, None], power, 0.0).to(tl.float64), axis=1)
        is_equal = inside & (keys == threshold[:, None])
        equal += tl.sum(is_equal.to(tl.int32), axis=1)
        each = tl.maximum(each, tl.max(tl.where(is_equal, power, 0.0), axis=1))
    return above, equal, each.to(tl.float64)


def sampling(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Same contract as ``reference.ops.sampling``.

    Raises:
        ValueError: a parameter out of range, or a shape or dtype that this kernel does not take.
    """
    require_filters(temperature, top_k, top_p, min_p)
    has_top_k, has_top_p = 0 < top_k < logits.shape[-1], top_p < 1
    return _sampling(logits, (temperature, top_k, top_p, min_p), has_top_k, has_top_p, temperature == 0, 0)


def require_filters(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """Refuse parameters that are out of range.

    Raises:
        ValueError: says what they are and what they may be.
    """
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or not 0 <= min_p <= 1:
        raise ValueError(
            f"sampling: temperature {temperature}, top_k {top_k}, top_p {top_p}, min_p {min_p}; "
            "want temperature >= 0, top_k >= 0, 0 < top_p <= 1 and 0 <= min_p <= 1"
        )


def sampling_by_row(logits: Tensor, filters: Tensor) -> Tensor:
    """``sampling`` where sequences bring filters of their own; they stay on the device.

    Args:
        logits: [B * Q, V]: Q rows of each sequence, in order.
        filters: [4, B] float32: temperature (0 is greedy), top_k, top_p and min_p of each sequence.

    Returns:
        [B * Q, V] float32; a row's bits are those of ``sampling`` with its filters.

    Raises:
        ValueError: a shape or dtype that this kernel does not take.
    """
    is_table = filters.ndim == 2 and len(filters) == 4 and filters.dtype == torch.float32 and filters.is_contiguous()
    require(is_table, "sampling", "filters", filters, "[4, B] float32")
    rows_each = len(logits) // filters.shape[1]
    require(rows_each * filters.shape[1] == len(logits), "sampling", "logits", logits, "as many rows of each sequence")
    return _sampling(logits, tuple(filters), True, True, False, rows_each)


def _sampling(
    logits: Tensor, filters: tuple[Any, ...], has_top_k: bool, has_top_p: bool, is_greedy: bool, rows_each: int
) -> Tensor:
    rows = rows_of("sampling", "logits", logits)
    num_rows, vocab_size = rows.shape
    require(vocab_size > 0, "sampling", "logits", logits, "at least one token")
    y = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    if num_rows > 0:
        options = launch_for("sampling", logits.device, T=num_rows, V=vocab_size).options
        _sampling_kernel[(triton.cdiv(num_rows, options["BLOCK_T"]),)](
            *(rows, y, rows.stride(0), num_rows, vocab_size, *filters),
            HAS_TOP_K=has_top_k,
            HAS_TOP_P=has_top_p,
            GREEDY=is_greedy,
            ROWS_EACH=rows_each,
            **options,
        )
    return y
