"""Keys and values scattered over pages, and how far from float64 a kernel over them may be."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from conformance.oracle import exact
from conformance.tolerance import gamma, ulp

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GATE_ROUNDINGS = 6  # as of the row head_gate: exp (2), 1 + it, the quotient, the product, and one for exp's argument
COMBINE_ROUNDINGS = 8  # of a split: its quotient, its logarithm and exponential, the products and the last quotient


@dataclass(frozen=True)
class Pages:
    """Sequences in pages of a pool, in no order; every slot that no sequence uses holds NaN.

    Attributes:
        k, v: one [S, K, H] for each sequence.
        k_cache, v_cache: [num_pages, page_size, K, H].
        block_table: [B, max_pages] int32; entries beyond a sequence's length name a page of NaN.
        context_lens: [B] int32.
    """

    k: list[Tensor]
    v: list[Tensor]
    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    context_lens: Tensor

    @classmethod
    def of(
        cls, lengths: list[int], num_kv_heads: int, head_dim: int, page_size: int, dtype: torch.dtype, seed: int = 0
    ) -> "Pages":
        """Random keys and values of sequences of these lengths."""
        random = torch.Generator().manual_seed(seed)
        max_pages = max(-(-length // page_size) for length in lengths) + 1
        order = torch.randperm(len(lengths) * max_pages + 1, generator=random)
        cache_shape = (len(order), page_size, num_kv_heads, head_dim)
        k_cache, v_cache = (torch.full(cache_shape, math.nan, dtype=dtype) for _ in range(2))
        table = torch.full((len(lengths), max_pages), int(order[-1]), dtype=torch.int32)
        k, v = [], []
        for sequence, length in enumerate(lengths):
            for own, cache in ((k, k_cache), (v, v_cache)):
                own.append(torch.randn(length, num_kv_heads, head_dim, generator=random).to(dtype))
                for page in range(-(-length // page_size)):
                    table[sequence, page] = order[sequence * max_pages + page]
                    rows = own[-1][page * page_size : (page + 1) * page_size]
                    cache[table[sequence, page], : len(rows)] = rows
        lens = torch.tensor(lengths, dtype=torch.int32)
        return cls(k, v, *(tensor.to(DEVICE) for tensor in (k_cache, v_cache, table, lens)))


def normal(*size: int, dtype: torch.dtype, seed: int) -> Tensor:
    """[size] of normal numbers."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def assert_attends(
    got: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first_position: int,
    window: int | None,
    gate: Tensor | None = None,
    splits: int = 1,
) -> None:
    """Compare one sequence with the rows ``attention`` and ``head_gate`` in float64.

    The bound is that of the judge's check of ``attention``: a score is off by gamma_H sum|q||k| / sqrt(H), its
    exponential by twice the largest such error of the row; both sums over S round; weights may be rounded to the dtype
    of the values. Splits and the gate add their roundings; half an ulp rounds the result.

    Args:
        got, q: [T, N, H] at positions first_position and on; k, v: [S, K, H] at positions 0 and on; gate: [T, N].
    """
    got, q = got.cpu(), q.cpu()
    num_keys, head_dim, group = len(k), q.shape[-1], q.shape[1] // k.shape[1]
    positions = torch.arange(first_position, first_position + len(q))
    keys = torch.arange(num_keys)
    args = (q, k, v, positions, keys, window)
    factor = torch.ones(q.shape[:2]).double() if gate is None else gate.cpu().double().sigmoid()
    want = exact("attention", *args) * factor[..., None]
    distance = positions[:, None] - keys
    seen = (distance >= 0) & (distance < (window or math.inf))
    sizes = torch.einsum("tnh,snh->tns", q.double().abs(), k.double().abs().repeat_interleave(group, dim=1))
    largest = (sizes * seen[:, None, :]).amax(dim=-1) / math.sqrt(head_dim)
    roundings = 2 * num_keys + 6 + COMBINE_ROUNDINGS * splits + GATE_ROUNDINGS
    relative = (2 * gamma(head_dim + 4, torch.float32) * largest).expm1() + gamma(roundings, torch.float32)
    if q.dtype != torch.float32:
        relative = relative + torch.finfo(q.dtype).eps
    error = relative[..., None] * exact("attention", q, k, v.abs(), *args[3:]) * factor[..., None]
    bound = error + ulp(want.abs() + error, q.dtype) / 2
    off = (got.double() - want).abs()
    assert got.isfinite().all(), f"{int((~got.isfinite()).sum())} of {got.numel()} are not finite"
    worst = (off / bound).argmax()
    assert (off <= bound).all(), f"{off.flatten()[worst]:.3g} at {int(worst)}; bound {bound.flatten()[worst]:.3g}"
