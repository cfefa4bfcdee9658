"""Right ways to multiply by weights, to route and to run experts, unlike the reference's.

They owe nothing to ``legal.py``, which the judge derives its bounds from: what is accepted here is out of its sample.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from reference.quantization import FP8_MAX, Fp8Weight, dense, dequantize_fp8_activation

from .operators.arithmetic import R, wide

Rows = Mapping[str, Callable[..., Any]]
Product = Callable[[Tensor, Tensor], Tensor]  # [..., T, I] and [O, I], both wide, to [..., T, O]


def over_product(product: Product) -> Rows:
    """Every row that multiplies by a weight, with another way to multiply."""

    def linear(x: Tensor, weight: Tensor) -> Tensor:
        return product(wide(x), wide(weight)).to(x.dtype)

    def mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
        return linear(R.swiglu(linear(x, gate), linear(x, up), limit), down)

    def mtp_input(embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float) -> Tensor:
        return linear(torch.cat((R.rms_norm(embedded, enorm, eps), R.rms_norm(hidden, hnorm, eps)), dim=-1), eh)

    def router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
        return router_of(product(wide(x), wide(weight)), bias, top_k, scaling)

    def experts(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
        return experts_by(product, x, ids, weights, *rest)

    def experts_fp8(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
        return experts_by(product, x, ids, weights, *rest, rounded=rounded_to_fp8)

    return {
        "linear": linear,
        "mlp": mlp,
        "mtp_input": mtp_input,
        "router": router,
        "experts": experts,
        "experts_fp8": experts_fp8,
    }


def router_of(logits: Tensor, bias: Tensor, top_k: int, scaling: float, highest_first: bool = False) -> Any:
    """Ids and weights from float32 logits; exact ties by the lower id first, or by the higher one."""
    scores = 1 / (1 + (-logits).exp())
    biased = scores + bias.to(scores.dtype)
    if highest_first:
        ids = len(bias) - 1 - biased.flip(-1).sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    else:
        ids = biased.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    chosen = scores.gather(-1, ids)
    return ids, scaling / (chosen.sum(dim=-1, keepdim=True) + 1e-20) * chosen


def rounded_to_fp8(rows: Tensor) -> Tensor:
    codes, scale = R.quantize_activation(rows)
    return dequantize_fp8_activation(codes, scale, dtype=rows.dtype)


def experts_by(
    product: Product,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate: Any,
    up: Any,
    down: Any,
    limit: float,
    *,
    rounded: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Tensor:
    """The experts one slot at a time, each token's sum in the order of its slots from the last to the first."""
    x_TD = rounded(wide(x))
    y_TD = torch.zeros_like(wide(x))
    for slot in reversed(range(ids.shape[1])):
        for expert in ids[:, slot].unique().tolist():
            token = (ids[:, slot] == expert).nonzero()[:, 0]
            g, u = (product(x_TD[token], dense(weight[expert], x_TD.dtype)) for weight in (gate, up))
            row = product(rounded(R.swiglu(g, u, limit)), dense(down[expert], x_TD.dtype))
            y_TD[token] += row * weights[token, slot, None].to(x_TD.dtype)
    return y_TD.to(x.dtype)


# Products


def _split(count: int) -> Product:
    """Partial sums over parts of the inputs, added up last: split-K."""

    def product(x: Tensor, weight: Tensor) -> Tensor:
        parts = zip(x.tensor_split(count, dim=-1), weight.tensor_split(count, dim=-1), strict=True)
        return torch.stack([a @ b.T for a, b in parts]).sum(dim=0)

    return product


def _in_blocks(size: int) -> Product:
    """Blocks of the inputs, added to one accumulator as they come."""

    def product(x: Tensor, weight: Tensor) -> Tensor:
        total = x[..., :0] @ weight[:, :0].T
        for start in range(0, x.shape[-1], size):
            total = total + x[..., start : start + size] @ weight[:, start : start + size].T
        return total

    return product


def _one_by_one(x: Tensor, weight: Tensor) -> Tensor:
    """Products are added one after the other, from the first to the last: the least exact order there is."""
    total = x[..., :0] @ weight[:, :0].T
    for i in range(x.shape[-1]):
        total = total + x[..., i, None] * weight[:, i]
    return total


def _by_row(x: Tensor, weight: Tensor) -> Tensor:
    """One row at a time, as a kernel for decoding."""
    rows = [weight @ row for row in x.reshape(-1, x.shape[-1])]
    return torch.stack(rows).view(*x.shape[:-1], -1) if rows else x @ weight.T


def _padded(x: Tensor, weight: Tensor) -> Tensor:
    """Rows, inputs and outputs padded with zeros to whole tiles of 16."""
    rows = x.reshape(-1, x.shape[-1])
    more = [-size % 16 for size in (len(rows), rows.shape[-1], len(weight))]
    a = torch.nn.functional.pad(rows, (0, more[1], 0, more[0]))
    b = torch.nn.functional.pad(weight, (0, more[1], 0, more[2]))
    return (a @ b.T)[: len(rows), : len(weight)].reshape(*x.shape[:-1], len(weight))


def sums_reversed() -> Rows:
    return {
        **over_product(lambda x, weight: x.flip(-1) @ weight.flip(-1).T),
        "rms_norm": lambda x, weight, eps: R.rms_norm(x.flip(-1), weight.flip(-1), eps).flip(-1),
        "attention": lambda q, k, v, qp, kp, window: R.attention(
            q.flip(-1), k.flip(-1).flip(-3), v.flip(-3), qp, kp.flip(0), window
        ),
    }


def sums_permuted() -> Rows:
    def product(x: Tensor, weight: Tensor) -> Tensor:
        order = torch.arange(x.shape[-1]) * 7919 % x.shape[-1]  # a prime: every input once
        order = order if len(order.unique()) == len(order) else torch.arange(x.shape[-1])
        return x[..., order] @ weight[:, order].T

    return over_product(product)


def split_k_2() -> Rows:
    return over_product(_split(2))


def split_k_4() -> Rows:
    return over_product(_split(4))


def split_k_8() -> Rows:
    return over_product(_split(8))


def blocks_of_64() -> Rows:
    return over_product(_in_blocks(64))


def blocks_of_128() -> Rows:
    return over_product(_in_blocks(128))


def blocks_of_16() -> Rows:
    return over_product(_in_blocks(16))


def sums_one_by_one() -> Rows:
    return over_product(_one_by_one)


def row_by_row() -> Rows:
    return over_product(_by_row)


def padded_tiles() -> Rows:
    return over_product(_padded)


# Router


def router_ties_highest_first() -> Rows:
    def router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
        return router_of(wide(x) @ wide(weight).T, bias, top_k, scaling, highest_first=True)

    return {"router": router}


def router_in_rising_ids() -> Rows:
    """The chosen experts in the order of their ids, each with its weight."""

    def router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
        ids, weights = R.router(x, weight, bias, top_k, scaling)
        order = ids.argsort(dim=-1)
        return ids.gather(-1, order), weights.gather(-1, order)

    return {"router": router}


def router_padded() -> Rows:
    """Experts padded to a multiple of 32 that can never be chosen."""

    def router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling: float) -> Any:
        more = -len(bias) % 32
        padded = torch.cat((weight, weight.new_zeros(more, weight.shape[1])))
        return R.router(x, padded, torch.cat((bias, torch.full((more,), -math.inf))), top_k, scaling)

    return {"router": router}


# Experts


def _of_experts(experts: Callable[..., Tensor]) -> Rows:
    """A way to run experts, given the row it runs; for both formats of activations."""

    def of(base: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
            return experts(base, x, ids, weights, *rest)

        return run

    return {"experts": of(R.experts), "experts_fp8": of(R.experts_fp8)}


def experts_in_chunks() -> Rows:
    """Five tokens at a time."""

    def run(base: Any, x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
        parts = zip(x.split(5), ids.split(5), weights.split(5), strict=True)
        return torch.cat([base(*part, *rest) for part in parts])

    return _of_experts(run)


def experts_on_padded_tokens() -> Rows:
    """Tokens padded to a multiple of eight; what the padding gets is thrown away."""

    def run(base: Any, x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
        more = -len(x) % 8
        slots = torch.arange(ids.shape[1]).expand(more, -1)
        padded = torch.cat((x, x.new_ones(more, x.shape[1]))), torch.cat((ids, slots))
        return base(*padded, torch.cat((weights, weights.new_ones(more, ids.shape[1]))), *rest)[: len(x)]

    return _of_experts(run)


def experts_scaled_after_the_sum() -> Rows:
    """The sum is formed with weights that sum to one, and scaled last."""

    def run(base: Any, x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
        total = weights.sum(dim=-1, keepdim=True)
        y = base(wide(x), ids, weights / total, *rest)
        return (y * total.to(y.dtype)).to(x.dtype)

    return _of_experts(run)


def experts_on_two_ranks() -> Rows:
    """Each rank runs half of the experts; their float32 sums are added."""

    def run(base: Any, x: Tensor, ids: Tensor, weights: Tensor, gate: Any, *rest: Any) -> Tensor:
        first = (ids < gate.shape[0] // 2).to(weights.dtype)
        y = base(wide(x), ids, weights * first, gate, *rest) + base(wide(x), ids, weights * (1 - first), gate, *rest)
        return y.to(x.dtype)

    return _of_experts(run)


def experts_sorted_by_token() -> Rows:
    """Tokens in the order of their first expert, brought back at the end."""

    def run(base: Any, x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
        order = ids[:, 0].argsort(stable=True)
        return base(x[order], ids[order], weights[order], *rest)[order.argsort()]

    return _of_experts(run)


def experts_rounded_inside() -> Rows:
    """Gate, up and their product in the dtype of the activations, where the profile lets an engine round."""

    def experts(x: Tensor, ids: Tensor, weights: Tensor, gate: Any, up: Any, down: Any, limit: float) -> Tensor:
        return experts_by(_rounding(x.dtype), x, ids, weights, gate, up, down, limit)

    return {"experts": experts}


def _rounding(dtype: torch.dtype) -> Product:
    return lambda x, weight: (x @ weight.T).to(dtype).to(x.dtype)


def experts_fp8_by_the_inverse() -> Rows:
    """Activations times the inverse of their scale, which decides many a tie between two codes otherwise."""

    def rounded(rows: Tensor) -> Tensor:
        scale = R.quantize_activation(rows)[1].repeat_interleave(128, dim=-1)[:, : rows.shape[-1]]
        codes = (rows.float() * (1 / scale)).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        return codes.to(rows.dtype) * scale

    def experts_fp8(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
        return experts_by(lambda rows, weight: rows @ weight.T, x, ids, weights, *rest, rounded=rounded)

    return {"experts_fp8": experts_fp8}


def experts_fp8_by_blocks() -> Rows:
    """Sums over the codes of each block of 128 inputs, both scales after each."""

    def product(codes: Tensor, scale: Tensor, weight: Fp8Weight) -> Tensor:
        rows, columns = weight.block
        outputs = weight.scale_inv.float().repeat_interleave(rows, dim=0)[: weight.shape[0]]
        total = torch.zeros(len(codes), weight.shape[0])
        for block in range(scale.shape[-1]):
            part = slice(block * columns, (block + 1) * columns)
            total += (codes[:, part].float() @ weight.data[:, part].float().T) * (
                scale[:, block, None] * outputs[:, block]
            )
        return total

    def experts_fp8(x: Tensor, ids: Tensor, weights: Tensor, gate: Any, up: Any, down: Any, limit: float) -> Tensor:
        y, quantised = torch.zeros_like(wide(x)), R.quantize_activation(x)
        for expert in ids.unique().tolist():
            token, slot = (ids == expert).nonzero(as_tuple=True)
            g, u = (product(quantised[0][token], quantised[1][token], weight[expert]) for weight in (gate, up))
            codes, scale = R.quantize_activation(R.swiglu(g, u, limit))
            row = product(codes, scale, down[expert])
            y = y.index_add(0, token, row * weights[token, slot, None])
        return y.to(x.dtype)

    return {"experts_fp8": experts_fp8}
