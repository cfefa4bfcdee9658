"""Triton kernel for ``reference.ops.sampling``: the filters by bisection, without a sort.

What top-k and top-p keep of a row is a threshold and, among tokens that equal it, a number of lowest ids. Float32 order
is the order of their bits (negative ones flipped), so that 32 halvings find a threshold exactly. A row of the published
vocabulary stays in the second-level cache while it is read again.
"""

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
    return tl.load(logits_ptr + at, mask=inside, other=-float("inf")).to(tl.float32) / temperature


@triton.jit
def _sampling_kernel(
    logits_ptr,  # [T, V], row stride stride_t
    y_ptr,  # [T, V] float32, contiguous
    stride_t,
    T,
    V,
    temperature,
    top_k,
    top_p,
    min_p,
    HAS_TOP_K: tl.constexpr,
    HAS_TOP_P: tl.constexpr,
    GREEDY: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    begin_kernel()
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    row = (t.to(tl.int64) * stride_t)[:, None]
    y_row = (t.to(tl.int64) * V)[:, None]
    largest = tl.full((BLOCK_T,), -float("inf"), dtype=tl.float32)
    first = tl.zeros((BLOCK_T,), dtype=tl.int32)  # the lowest id of the largest
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        inside = (t < T)[:, None] & (v < V)[None, :]
        x = _scaled(logits_ptr, row + v[None, :], inside, temperature)
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
            for _ in range(32):  # the largest threshold that still keeps at least top_k
                higher = threshold + step
                step = step >> 1
                count = tl.zeros((BLOCK_T,), dtype=tl.int32)
                for start in range(0, V, BLOCK_V):
                    v = start + tl.arange(0, BLOCK_V)
                    inside = (t < T)[:, None] & (v < V)[None, :]
                    keys = _ordered(_scaled(logits_ptr, row + v[None, :], inside, temperature))
                    count += tl.sum((inside & (keys >= higher[:, None])).to(tl.int32), axis=1)
                threshold = tl.where(count >= top_k, higher, threshold)
            above = tl.zeros((BLOCK_T,), dtype=tl.int32)
            for start in range(0, V, BLOCK_V):
                v = start + tl.arange(0, BLOCK_V)
                inside = (t < T)[:, None] & (v < V)[None, :]
                keys = _ordered(_scaled(logits_ptr, row + v[None, :], inside, temperature))
                above += tl.sum((inside & (keys > threshold[:, None])).to(tl.int32), axis=1)
            ties = top_k - above
        if HAS_TOP_P:
            above, equal, each = _masses(
                logits_ptr, row, threshold, largest, t, T, V, temperature, BLOCK_T, BLOCK_V
            )  # fmt: skip
            ties = tl.minimum(ties, equal)
            enough = top_p * (above + ties.to(tl.float64) * each)
            lower = threshold
            step = tl.full((BLOCK_T,), HALF, dtype=tl.int64)
            for _ in range(32):  # the largest threshold from which on tokens together reach top_p
                higher = lower + step
                step = step >> 1
                mass = tl.zeros((BLOCK_T,), dtype=tl.float64)
                for start in range(0, V, BLOCK_V):
                    v = start + tl.arange(0, BLOCK_V)
                    inside = (t < T)[:, None] & (v < V)[None, :]
                    x = _scaled(logits_ptr, row + v[None, :], inside, temperature)
                    power = tl.where(_ordered(x) >= higher[:, None], tl.exp(x - largest[:, None]), 0.0)
                    mass += tl.sum(power.to(tl.float64), axis=1)
                lower = tl.where(mass >= enough, higher, lower)
            above, equal, each = _masses(logits_ptr, row, lower, largest, t, T, V, temperature, BLOCK_T, BLOCK_V)
            needed = tl.ceil(
                (enough - above) / tl.where(t < T, each, 1.0)
            )  # ties, each kept while those before it are less than enough
            needed = tl.maximum(needed, 1.0).to(tl.int32)
            ties = tl.where(lower > threshold, needed, tl.minimum(ties, needed))
            threshold = lower
        total = tl.zeros((BLOCK_T,), dtype=tl.float32)
        seen = tl.zeros((BLOCK_T,), dtype=tl.int32)
        for start in range(0, V, BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)
            inside = (t < T)[:, None] & (v < V)[None, :]
            x = _scaled(logits_ptr, row + v[None, :], inside, temperature)
            power, seen = _kept(x, inside, threshold, ties, seen, largest, min_p)
            total += tl.sum(power, axis=1)
        total = tl.where(t < T, total, 1.0)
        seen = tl.zeros((BLOCK_T,), dtype=tl.int32)
        for start in range(0, V, BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)
            inside = (t < T)[:, None] & (v < V)[None, :]
            x = _scaled(logits_ptr, row + v[None, :], inside, temperature)
            power, seen = _kept(x, inside, threshold, ties, seen, largest, min_p)
            tl.store(y_ptr + y_row + v[None, :], power / total[:, None], mask=inside)


@triton.jit
def _kept(x, inside, threshold, ties, seen, largest, min_p):
    """exp(x - largest) of what the filters keep, else 0; and how many ties were seen so far."""
    keys = _ordered(x)
    equal = (inside & (keys == threshold[:, None])).to(tl.int32)
    before = seen[:, None] + tl.cumsum(equal, axis=1) - equal
    power = tl.exp(x - largest[:, None])
    keep = (keys > threshold[:, None]) | ((equal > 0) & (before < ties[:, None]))
    return tl.where(inside & keep & (power >= min_p), power, 0.0), seen + tl.sum(equal, axis=1)


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
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or not 0 <= min_p <= 1:
        raise ValueError(
            f"sampling: temperature {temperature}, top_k {top_k}, top_p {top_p}, min_p {min_p}; "
            "want temperature >= 0, top_k >= 0, 0 < top_p <= 1 and 0 <= min_p <= 1"
        )
    rows = rows_of("sampling", "logits", logits)
    num_rows, vocab_size = rows.shape
    require(vocab_size > 0, "sampling", "logits", logits, "at least one token")
    y = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    if num_rows > 0:
        options = launch_for("sampling", logits.device, T=num_rows, V=vocab_size).options
        is_greedy = temperature == 0
        _sampling_kernel[(triton.cdiv(num_rows, options["BLOCK_T"]),)](
            *(rows, y, rows.stride(0), num_rows, vocab_size),
            *(1.0 if is_greedy else temperature, top_k, top_p, min_p),
            HAS_TOP_K=0 < top_k < vocab_size,
            HAS_TOP_P=top_p < 1,
            GREEDY=is_greedy,
            **options,
        )
    return y
