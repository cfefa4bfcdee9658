"""``qk_norm_rope_cache`` against the rows it replaces, written into slots in no order."""

import math

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    from optimized.interpreter import interpret

    interpret()

from conformance.counters import Counters
from conformance.oracle import exact
from conformance.tolerance import UlpBound, gamma, sum_roundings, ulp
from optimized.fused import qk_norm_rope_cache as module
from optimized.fused.qk_norm_rope_cache import qk_norm_rope_cache
from reference.ops.rope import inverse_frequencies

from .attention_cases import DEVICE, normal

BF16, F32 = torch.bfloat16, torch.float32
EPS = 1e-5
POSITIONS = (0, 1, 511, 513, 4095, 8_191, 100_003, 131_071, 131_073, 262_143)
NORM_ROUNDINGS = 8  # as in the check of rms_norm: square, eps, root, reciprocal, x times it, 1 + w, their product
ROPE_ROUNDINGS = 3 + 2  # cosine or sine, product and sum; and the angle's own, at most pi, within a turn


def caches(num_pages: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    shape = (num_pages, page_size, num_kv_heads, head_dim)
    return [torch.full(shape, math.nan, dtype=dtype, device=DEVICE) for _ in range(2)]


def assert_rotated(got: Tensor, x: Tensor, weight: Tensor, positions: Tensor, frequencies: Tensor) -> None:
    """Float64 rows composed; the bound is the norm's and the rotation's roundings of |a| + |b|, and half an ulp."""
    normed = exact("rms_norm", x.cpu(), weight.cpu(), EPS)
    want = exact("rope", normed, positions.cpu(), frequencies.cpu())
    half = len(frequencies)
    size = normed.abs()
    pair = size[..., :half] + size[..., half : 2 * half]
    size = torch.cat((pair, pair, size[..., 2 * half :]), dim=-1)
    error = gamma(NORM_ROUNDINGS + sum_roundings(x.shape[-1]) + ROPE_ROUNDINGS, F32) * size
    bound = error + ulp(want.abs() + error, got.dtype) / 2
    off = (got.cpu().double() - want).abs()
    assert (off <= bound).all(), f"{(off / bound).max():.3g} times the bound"


def run(num_tokens: int, heads: tuple[int, int, int], rotary_dim: int, dtype: torch.dtype, page_size: int = 16) -> None:
    num_heads, num_kv_heads, head_dim = heads
    projected = normal(num_tokens, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype, seed=1)
    q, k, v = projected.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    q_weight, k_weight = (normal(head_dim, dtype=dtype, seed=seed) / 2 for seed in (2, 3))
    positions = torch.tensor(POSITIONS, device=DEVICE)[torch.arange(num_tokens, device=DEVICE) % len(POSITIONS)]
    frequencies = inverse_frequencies(rotary_dim, 1e4).to(DEVICE)
    num_pages = -(-num_tokens // page_size) + 2
    k_cache, v_cache = caches(num_pages, page_size, num_kv_heads, head_dim, dtype)
    slots = torch.randperm(num_pages * page_size, generator=torch.Generator().manual_seed(4))[:num_tokens].to(DEVICE)
    slots[1::5] = -1
    args = (q, k, v, q_weight, k_weight, EPS, positions, frequencies, k_cache, v_cache, slots)
    y = qk_norm_rope_cache(*args)
    assert_rotated(y, q, q_weight, positions, frequencies)
    written = slots >= 0
    flat_k, flat_v = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
    assert_rotated(flat_k[slots[written]], k[written], k_weight, positions[written], frequencies)
    assert torch.equal(flat_v[slots[written]], v[written])
    for cache in (flat_k, flat_v):
        untouched = torch.ones(len(cache), dtype=torch.bool, device=DEVICE)
        untouched[slots[written]] = False
        assert cache[untouched].isnan().all(), "a slot that no token maps to was written"


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("heads", "rotary_dim"), [((64, 8, 128), 64), ((96, 8, 128), 128), ((6, 3, 24), 12)])
def test_norms_rotates_and_writes_as_the_reference(
    dtype: torch.dtype, heads: tuple[int, int, int], rotary_dim: int
) -> None:
    run(11, heads, rotary_dim, dtype)


@pytest.mark.parametrize("num_tokens", [1, 2, 8, 15, 16, 17, 63, 64, 65, 130])
def test_any_number_of_tokens(num_tokens: int) -> None:
    run(num_tokens, (6, 2, 32), 16, BF16, page_size=48)


def test_without_rotation_it_is_the_norm() -> None:
    """Position 0: the judge's own tolerance of the norm holds."""
    q, k = normal(3, 6, 32, dtype=F32, seed=1), normal(3, 2, 32, dtype=F32, seed=2)
    weight = normal(32, dtype=F32, seed=3)
    ring_k, ring_v = caches(1, 8, 2, 32, F32)
    zero = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    slots = torch.tensor([6, 7, 0], device=DEVICE)  # a ring that wraps
    y = qk_norm_rope_cache(q, k, k, weight, weight, EPS, zero, inverse_frequencies(16, 1e4).to(DEVICE), ring_k, ring_v,
                           slots)  # fmt: skip
    tolerance = UlpBound(ulps=2, roundings=NORM_ROUNDINGS + sum_roundings(32))
    tolerance.check(y.cpu(), exact("rms_norm", q.cpu(), weight.cpu(), EPS), Counters(), "q")
    tolerance.check(ring_k[0, slots].cpu(), exact("rms_norm", k.cpu(), weight.cpu(), EPS), Counters(), "k")


def test_row_bits_do_not_depend_on_neighbours() -> None:
    frequencies, weight = inverse_frequencies(16, 1e4).to(DEVICE), normal(32, dtype=BF16, seed=3)
    q, k = normal(9, 6, 32, dtype=BF16, seed=1), normal(9, 2, 32, dtype=BF16, seed=2)
    positions = torch.arange(9, device=DEVICE)

    def of(rows: slice) -> tuple[Tensor, Tensor]:
        k_cache, v_cache = caches(1, 16, 2, 32, BF16)
        tokens = (q[rows], k[rows], k[rows], weight, weight, EPS, positions[rows], frequencies)
        return qk_norm_rope_cache(*tokens, k_cache, v_cache, positions[rows].clone()), k_cache

    (all_q, all_k), (one_q, one_k) = of(slice(None)), of(slice(4, 5))
    assert torch.equal(all_q[4], one_q[0])
    assert torch.equal(all_k[0, 4], one_k[0, 4])


def test_no_tokens() -> None:
    run(0, (6, 2, 32), 16, BF16)


@pytest.mark.parametrize("name", ["q", "k", "v", "q_weight", "positions", "frequencies", "k_cache", "slot_mapping"])
def test_refuses_and_names(name: str) -> None:
    k_cache, v_cache = caches(1, 16, 2, 32, BF16)
    weight, positions = normal(32, dtype=BF16, seed=3), torch.arange(4, device=DEVICE)
    args = {
        "q": normal(4, 6, 32, dtype=BF16, seed=1), "k": normal(4, 2, 32, dtype=BF16, seed=2),
        "v": normal(4, 2, 32, dtype=BF16, seed=2), "q_weight": weight, "k_weight": weight, "eps": EPS,
        "positions": positions, "frequencies": inverse_frequencies(16, 1e4).to(DEVICE),
        "k_cache": k_cache, "v_cache": v_cache, "slot_mapping": positions,
    }  # fmt: skip
    args[name] = args[name][None].int() if name in ("positions", "slot_mapping") else args[name][None]
    with pytest.raises(ValueError, match=f"qk_norm_rope_cache: {name} is"):
        qk_norm_rope_cache(**args)


def test_names_the_rows_it_replaces() -> None:
    assert module.REPLACES == ("qk_norm", "rope")
