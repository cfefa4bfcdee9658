"""The router's two launches: order, ties, widths, NaN; logits on tensor cores and along rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from kernels import DEVICE
from torch import Tensor

from conformance.oracle import exact
from conformance.tolerance import gamma
from optimized import launch
from optimized.ops import router as module
from optimized.ops.router import _parts, router

D, E, A, SCALING = 136, 40, 3, 3.0
BLOCKS = {
    "along rows": {"DOT": False, "BLOCK_T": 1, "BLOCK_E": 64, "BLOCK_D": 64, "SPLIT_D": 128},
    "tensor cores": {"DOT": True, "BLOCK_T": 16, "BLOCK_E": 64, "BLOCK_D": 64, "SPLIT_D": 64},
}


@pytest.fixture(params=list(BLOCKS))
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    def launch_for(kernel: str, device: torch.device, **sizes: int | str) -> launch.Launch:
        found = launch.launch_for(kernel, device, **sizes)
        if kernel == "router_choice":
            return replace(found, options={**found.options, "BLOCK_T": 4})
        return replace(found, options={**found.options, **BLOCKS[request.param]})

    monkeypatch.setattr(module, "launch_for", launch_for)
    return str(request.param)


def inputs(num_tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(num_tokens)
    x, weight = torch.randn(num_tokens, D, generator=random), torch.randn(E, D, generator=random) / D**0.5
    return x.to(dtype), weight.to(dtype), torch.randn(E, generator=random) / 10


def run(x: Tensor, weight: Tensor, bias: Tensor, top_k: int = A) -> Any:
    return tuple(one.cpu() for one in router(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), top_k, SCALING))


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 9, 17])
def test_ids_and_weights_are_the_oracles_by_falling_biased_score(blocks: str, num_tokens: int) -> None:
    args = inputs(num_tokens)
    (ids, weights), (want_ids, want) = run(*args), exact("router", *args, A, SCALING)
    assert (ids.dtype, weights.dtype) == (torch.int64, torch.float32)
    assert torch.equal(ids, want_ids)
    assert ((weights - want).abs() <= gamma(D, torch.float32) * want).all()


@pytest.mark.parametrize(("x_dtype", "weight_dtype"), [(torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)])
def test_narrow_inputs_are_multiplied_in_float32(blocks: str, x_dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    x, weight, bias = inputs(5)
    args = (x.to(x_dtype), weight.to(weight_dtype), bias)
    (ids, weights), (want_ids, want) = run(*args), exact("router", *args, A, SCALING)
    assert torch.equal(ids, want_ids)
    assert ((weights - want).abs() <= gamma(D, torch.float32) * want).all()


def test_of_equal_scores_the_lower_id_comes_first(blocks: str) -> None:
    x, weight, _ = inputs(3)
    x, weight = x.round(), weight[:1].sign().expand(E, D).contiguous()  # whole numbers add up the same in any order
    ids, weights = run(x, weight, torch.zeros(E), 5)
    assert ids.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert torch.allclose(weights, torch.full((3, 5), SCALING / 5))


def test_every_expert_may_be_chosen(blocks: str) -> None:
    x, weight, bias = inputs(2)
    ids, weights = run(x, weight, bias, E)
    assert ids.sort().values.tolist() == [list(range(E))] * 2
    assert torch.allclose(weights.sum(dim=-1), torch.tensor(SCALING))


@pytest.mark.parametrize("parts", [1, 4, 8])
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (5, 3), (36, 8), (288, 8), (288, 40)])
def test_parts_of_the_experts_choose_as_all_of_them(
    parts: int, num_experts: int, top_k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch_for(kernel: str, device: torch.device, **sizes: int | str) -> launch.Launch:
        found = launch.launch_for(kernel, device, **sizes)
        in_parts = {**found.options, "PARTS": parts, "num_warps": parts}
        return replace(found, options=in_parts) if kernel == "router_choice" else found

    monkeypatch.setattr(module, "launch_for", launch_for)
    random = torch.Generator().manual_seed(num_experts)
    x, weight = torch.randn(3, 64, generator=random).round(), torch.randn(num_experts, 64, generator=random).round() / 8
    weight[num_experts // 3 :: 3] = weight[0].clone()  # equals, in several parts
    bias = torch.zeros(num_experts)
    (ids, weights), (want_ids, want) = run(x, weight, bias, top_k), exact("router", x, weight, bias, top_k, SCALING)
    assert torch.equal(ids, want_ids)
    assert ((weights - want).abs() <= gamma(64, torch.float32) * want + 1e-30).all()


def test_parts_that_are_not_the_warps_are_refused_on_a_gpu() -> None:
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert _parts(512, 8, gpu, {"PARTS": 4, "num_warps": 4}) == 4
    assert _parts(512, 64, gpu, {"PARTS": 4, "num_warps": 4}) == 1
    assert _parts(2, 2, gpu, {"PARTS": 4, "num_warps": 4}) == 1
    assert _parts(512, 8, cpu, {"PARTS": 2, "num_warps": 1}) == 2
    with pytest.raises(LookupError, match="PARTS is 8; want 1 or 4, as many as num_warps"):
        _parts(512, 8, gpu, {"PARTS": 8, "num_warps": 4})


def test_biases_without_bound_still_choose_different_experts(blocks: str) -> None:
    x, weight, bias = inputs(2)
    bias[:] = -torch.inf
    bias[7] = torch.inf
    assert run(x, weight, bias)[0].tolist() == [[7, 0, 1]] * 2


def test_a_row_of_nan_weighs_nan_and_keeps_its_ids_in_range(blocks: str) -> None:
    x, weight, bias = inputs(3)
    want_ids, want = run(x, weight, bias)
    x[1] = torch.nan
    ids, weights = run(x, weight, bias)
    assert weights[1].isnan().all()
    assert ids[1].tolist() == [0, 1, 2]
    assert torch.equal(ids[::2], want_ids[::2])
    assert torch.equal(weights[::2], want[::2])


def test_bits_of_a_row_do_not_depend_on_the_number_of_rows(blocks: str) -> None:
    x, weight, bias = inputs(9)
    ids, weights = run(x, weight, bias)
    for rows in (slice(0, 1), slice(4, 9)):
        got_ids, got = run(x[rows], weight, bias)
        assert torch.equal(got_ids, ids[rows])
        assert torch.equal(got, weights[rows])


def test_refusals_name_what_is_wrong_and_what_is_wanted() -> None:
    x, weight, bias = (one.to(DEVICE) for one in inputs(2))
    for args, message in (
        ((x[0], weight, bias, A), r"x is \(136,\).*; want \[T, D\]"),
        ((x.long(), weight, bias, A), "x is .*want float32, bfloat16 or float16"),
        ((x, weight[:, 1:], bias, A), r"weight is \(40, 135\).*; want \[E, 136\]"),
        ((x, weight, bias[1:], A), r"bias is \(39,\).*; want \[40\]"),
        ((x, weight, bias, 0), "top_k is 0; want 1 to 40"),
        ((x, weight, bias, E + 1), "top_k is 41; want 1 to 40"),
    ):
        with pytest.raises(ValueError, match=message):
            router(*args, SCALING)
