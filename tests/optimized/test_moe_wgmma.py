"""The path for many rows on Hopper: on a GPU, against the legal evaluations; and what it takes, and what it refuses."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from kernels import DEVICE
from torch import Tensor

from conformance.counters import Counters
from conformance.oracle import exact, legal
from conformance.profiles import PROFILES
from conformance.tolerance import Envelope
from optimized.fused.moe_math import FP8, PLAIN
from optimized.fused.moe_stored import Stored
from optimized.fused.moe_wgmma import fits
from optimized.launch import trying
from optimized.ops.experts import experts
from optimized.ops.experts_fp8 import experts_fp8
from reference.quantization import FORMATS, Fp8Weight

D, F, E, A = 512, 384, 7, 2
ROWS = (0, 1, 64, 65, 128, 129, 213)  # of each expert: none, one, and around the ends of a group and of a block
OPERATORS = {"bf16": ("experts", experts), "fp8": ("experts_fp8", experts_fp8)}
BF16 = torch.bfloat16
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


def needs_hopper(test: Any) -> Any:
    return pytest.mark.cuda(pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")(test))


def launches(at_once: int) -> dict[str, dict[str, Any]]:
    product = {"STAGES": 2 * at_once, "AT_ONCE": at_once, "PROGRAMS": 5, "num_warps": 4}
    return {"experts": {"PATH": "wgmma"}, "experts_up_wgmma": product, "experts_down_wgmma": product}


def inputs(profile: str) -> tuple[Any, ...]:
    """On the CPU, as the row takes them: each expert has the rows of ``ROWS``."""
    random = torch.Generator().manual_seed(3)
    num_tokens = sum(ROWS) // A
    chosen = torch.repeat_interleave(torch.arange(E), torch.tensor(ROWS))
    ids = torch.stack([chosen[:num_tokens], chosen[num_tokens:]], dim=1)  # a token's two differ: no expert has half
    stacked: list[Any] = [
        torch.randn(E, *shape, generator=random) / shape[-1] ** 0.5 for shape in ((F, D), (F, D), (D, F))
    ]
    stacked = [FORMATS["fp8"].quantize(w) if profile == "fp8" else w.to(BF16) for w in stacked]
    order = torch.randperm(num_tokens, generator=random)
    x = (2 * torch.randn(num_tokens, D, generator=random)).to(BF16)
    return x, ids[order], torch.rand(num_tokens, A, generator=random) + 0.1, *stacked, 2.0


def moved(value: Any) -> Any:
    if isinstance(value, Fp8Weight):
        return Fp8Weight(value.data.to(DEVICE), value.scale_inv.to(DEVICE), value.block)
    return value.to(DEVICE) if isinstance(value, Tensor) else value


def run(profile: str, at_once: int, args: tuple[Any, ...]) -> Tensor:
    with ExitStack() as stack:
        for kernel, options in launches(at_once).items():
            stack.enter_context(trying(kernel, options))
        y: Tensor = OPERATORS[profile][1](*map(moved, args)).cpu()
    return y


def test_every_kind_of_block_is_among_the_inputs() -> None:
    ids = inputs("bf16")[1]
    assert torch.equal(torch.bincount(ids.flatten(), minlength=E), torch.tensor(ROWS))
    assert (ids[:, 0] != ids[:, 1]).all()


@needs_hopper
@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("profile", list(OPERATORS))
def test_experts_are_within_the_envelope_and_repeat_their_bits(profile: str, at_once: int) -> None:
    args, op = inputs(profile), OPERATORS[profile][0]
    got = run(profile, at_once, args)
    Envelope(legal(op, PROFILES[profile], *args), exact(op, *args)).check(got, Counters(), f"{op}, {profile}")
    assert torch.equal(got, run(profile, at_once, args))


@needs_hopper
@pytest.mark.parametrize("profile", list(OPERATORS))
def test_bits_of_a_token_do_not_depend_on_its_neighbours(profile: str) -> None:
    x, ids, weights, *rest = inputs(profile)
    rows = slice(40, 131)
    part = run(profile, 1, (x[rows], ids[rows], weights[rows], *rest))
    assert torch.equal(run(profile, 1, (x, ids, weights, *rest))[rows], part)


@needs_hopper
@pytest.mark.parametrize("profile", list(OPERATORS))
def test_nan_passes_the_clamp_and_stays_in_its_row(profile: str) -> None:
    x, *rest = inputs(profile)
    x[17, 5] = torch.nan
    got = run(profile, 1, (x, *rest))
    assert got[17].isnan().all()
    assert torch.cat([got[:17], got[18:]]).isfinite().all()


def stack(*shape: int, dtype: torch.dtype = BF16, kind: int = PLAIN.value) -> Stored:
    codes = torch.zeros(shape, dtype=dtype)
    return Stored(codes, codes if kind == PLAIN.value else torch.zeros(1), kind)


def weights(width: int = F, hidden_size: int = D, **options: Any) -> tuple[Stored, Stored, Stored]:
    shapes = ((E, width, hidden_size), (E, width, hidden_size), (E, hidden_size, width))
    gate, up, down = (stack(*shape, **options) for shape in shapes)
    return gate, up, down


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.language import constexpr

    monkeypatch.setattr("optimized.fused.moe_wgmma.COMPILES", constexpr(True))


def test_bf16_and_fp8_on_fp8_fit() -> None:
    x, codes = torch.zeros(3, D, dtype=BF16), {"dtype": torch.float8_e4m3fn, "kind": FP8.value}
    assert fits(x, *weights(), rounds=False)
    assert fits(x, *weights(**codes), rounds=True)
    both = torch.zeros(E, 2 * F, D, dtype=BF16)  # gate and up of an expert, one after the other
    gate, up = (Stored(part, part, PLAIN.value) for part in (both[:, :F], both[:, F:]))
    assert fits(x, gate, up, stack(E, D, F), rounds=False)


@pytest.mark.parametrize(
    ("what", "x", "held", "rounds"),
    [
        ("float32 rows", torch.zeros(3, D), weights(), False),
        ("FP8 weights on bf16", torch.zeros(3, D, dtype=BF16), weights(kind=FP8.value), False),
        ("bf16 weights on FP8", torch.zeros(3, D, dtype=BF16), weights(), True),
        ("outputs that are no whole tiles", torch.zeros(3, 384, dtype=BF16), weights(hidden_size=384), False),
        ("an intermediate that is no whole groups", torch.zeros(3, D, dtype=BF16), weights(width=160), False),
    ],
)
def test_what_does_not_fit_goes_another_way(what: str, x: Tensor, held: Any, rounds: bool) -> None:
    assert not fits(x, *held, rounds=rounds), what


def test_weights_that_the_copy_engine_cannot_address_do_not_fit() -> None:
    x, (gate, up, _) = torch.zeros(3, D, dtype=BF16), weights()
    wide = torch.zeros(E, D, F + 4, dtype=BF16)[:, :, :F]  # rows that begin within 16 bytes
    assert not fits(x, gate, up, Stored(wide, wide, PLAIN.value), rounds=False)
    apart = torch.zeros(E * D * F + 8 * E, dtype=BF16).as_strided((E, D, F), (D * F + 8, F, 1))  # no whole rows between
    assert not fits(x, gate, up, Stored(apart, apart, PLAIN.value), rounds=False)


def test_a_configuration_that_asks_for_it_where_it_does_not_fit_is_refused() -> None:
    x, *rest = inputs("bf16")
    with pytest.raises(LookupError, match="experts: path 'wgmma' does not take these weights; want 'sorted'"):
        run("bf16", 1, (x.float(), *rest))
