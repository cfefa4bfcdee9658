"""Right engines that compute otherwise than the reference: rows, sessions and models that nothing may reject.

They owe nothing to ``legal.py``, which the judge derives its bounds from: what is accepted here is out of its sample.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reference.cache import KVCache, LayerCache
from reference.engine import ReferenceModel, ReferenceSession
from reference.model import Model
from reference.quantization import Fp8Weight, dense, dequantize_fp8_activation

from ..legal import reordered_operators
from ..profiles import PROFILES
from . import caches
from .operators.arithmetic import R, wide
from .operators.composed import Composed

OTHER_ORDER = 1001  # odd: in a narrow profile it also rounds what the profile lets an engine round
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


# Attention


def _tiled(size: int) -> Rows:
    """Keys in tiles, with a running maximum and a running sum: flash attention."""

    def attention(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
        group = q.shape[-2] // k.shape[-2]
        empty = (kp < 0)[:, None, None]
        k, v = (wide(x).masked_fill(empty, 0).repeat_interleave(group, dim=-2) for x in (k, v))
        q_wide = wide(q) * q.shape[-1] ** -0.5
        maximum = torch.full((*q.shape[:-3], q.shape[-2], q.shape[-3], 1), -math.inf, dtype=q_wide.dtype)
        total, mixed = torch.zeros_like(maximum), torch.zeros_like(q_wide)
        for start in range(0, len(kp), size):
            tile = slice(start, start + size)
            distance = qp[:, None] - kp[None, tile]
            seen = (distance >= 0) & (kp[tile] >= 0) & (distance < (window or math.inf))
            scores = torch.einsum("...tnh,...snh->...nts", q_wide, k[..., tile, :, :]).masked_fill(~seen, -math.inf)
            highest = torch.maximum(maximum, scores.amax(dim=-1, keepdim=True))
            safe = highest.masked_fill(highest == -math.inf, 0)
            powers, shrink = (scores - safe).exp(), (maximum - safe).exp()
            total = total * shrink + powers.sum(dim=-1, keepdim=True)
            mixed = mixed * shrink.transpose(-3, -2) + torch.einsum("...nts,...snh->...tnh", powers, v[..., tile, :, :])
            maximum = highest
        return (mixed / total.transpose(-3, -2)).to(q.dtype)

    return {"attention": attention}


def attention_tiles_of_16() -> Rows:
    return _tiled(16)


def attention_tiles_of_64() -> Rows:
    return _tiled(64)


def attention_tiles_of_128() -> Rows:
    return _tiled(128)


def attention_by_head() -> Rows:
    """One head at a time, powers of two for powers of e, and only the keys that are seen."""

    def attention(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
        group, y = q.shape[-2] // k.shape[-2], torch.zeros_like(wide(q))
        empty = (kp < 0)[:, None]
        for head in range(q.shape[-2]):
            key, value = (wide(x[..., head // group, :]).masked_fill(empty, 0) for x in (k, v))
            scores = wide(q[..., head, :]) @ key.transpose(-1, -2) * (q.shape[-1] ** -0.5 / math.log(2))
            distance = qp[:, None] - kp[None, :]
            seen = (distance >= 0) & (kp >= 0) & (distance < (window or math.inf))
            scores = scores.masked_fill(~seen, -math.inf)
            powers = (scores - scores.amax(dim=-1, keepdim=True)).exp2()
            y[..., head, :] = powers @ value / powers.sum(dim=-1, keepdim=True)
        return y.to(q.dtype)

    return {"attention": attention}


# Norms, activations, rotation


def norm_by_division() -> Rows:
    """x over the root, times w + 1; the row is scaled by its largest element before it is squared."""

    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = wide(x)
        largest = rows.abs().amax(dim=-1, keepdim=True)
        largest = torch.where(largest > 0, 2.0 ** largest.clamp(min=1e-30).log2().floor(), 1.0)
        mean = (rows / largest).square().sum(dim=-1, keepdim=True) / x.shape[-1] * largest.square()
        return (rows / (mean + eps).sqrt() * (wide(weight) + 1)).to(x.dtype)

    return _with_norm(rms_norm)


def norm_in_halves() -> Rows:
    """The sum of squares in two parts, as two ranks would form it."""

    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = wide(x)
        half = rows.shape[-1] // 2
        total = rows[..., :half].square().sum(dim=-1, keepdim=True) + rows[..., half:].square().sum(-1, keepdim=True)
        return (rows * (total / x.shape[-1] + eps).rsqrt() * (1 + wide(weight))).to(x.dtype)

    return _with_norm(rms_norm)


def _with_norm(norm: Callable[[Tensor, Tensor, float], Tensor]) -> Rows:
    def qk_norm(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> Any:
        return norm(q, q_weight, eps), norm(k, k_weight, eps)

    def mtp_input(embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float) -> Tensor:
        return R.linear(torch.cat((norm(embedded, enorm, eps), norm(hidden, hnorm, eps)), dim=-1), eh)

    return {"rms_norm": norm, "qk_norm": qk_norm, "mtp_input": mtp_input}


def activations_by_exp() -> Rows:
    """The sigmoid as 1 / (1 + exp(-x)), and silu as x times it."""

    def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
        g, u = wide(gate), wide(up)
        activated = g / (1 + (-g).exp())
        if limit:
            activated, u = activated.minimum(torch.tensor(limit)), u.maximum(torch.tensor(-limit)).clamp(max=limit)
        return (u * activated).to(gate.dtype)

    def head_gate(x: Tensor, gate: Tensor) -> Tensor:
        return (wide(x) / (1 + (-wide(gate)).exp())[..., None]).to(x.dtype)

    return {"swiglu": swiglu, "head_gate": head_gate}


def activated_gates_rounded() -> Rows:
    """silu gives back the dtype that it was given."""

    def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
        activated, u = torch.nn.functional.silu(gate), up
        if limit:
            activated, u = activated.clamp(max=limit), up.clamp(-limit, limit)
        return activated * u

    return {"swiglu": swiglu, "mlp": Composed(replace(R, swiglu=swiglu)).mlp}


def rotary_angles_in_float32() -> Rows:
    def rope(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
        angles = positions.float()[:, None, None] * frequencies.float()
        half = len(frequencies)
        first, second = wide(x[..., :half]), wide(x[..., half : 2 * half])
        cos, sin = angles.cos().to(first.dtype), angles.sin().to(first.dtype)
        turned = torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
        return torch.cat((turned.to(x.dtype), x[..., 2 * half :]), dim=-1)

    return {"rope": rope}


def rotary_by_complex_numbers() -> Rows:
    def rope(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
        half = len(frequencies)
        angles = positions.double()[:, None, None] * frequencies
        turned = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double()) * torch.polar(
            torch.ones_like(angles), angles
        )
        return torch.cat((turned.real.to(x.dtype), turned.imag.to(x.dtype), x[..., 2 * half :]), dim=-1)

    return {"rope": rope}


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


# Everything at once


def reordered(profile: str) -> Rows:
    """An order of summation that the judge does not draw for its own bounds."""
    return dict(vars(reordered_operators(PROFILES[profile], OTHER_ORDER)))


def in_float64() -> Rows:
    """A more exact engine: every row in float64, rounded once."""
    names = ("rms_norm", "qk_norm", "rope", "attention", "head_gate", "linear", "swiglu", "mlp", "mtp_input")

    def widened(name: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            y = getattr(R, name)(*(_double(value) for value in args))
            dtype = args[0].dtype
            return tuple(part.to(dtype) for part in y) if isinstance(y, tuple) else y.to(dtype)

        return run

    def router(*args: Any) -> Any:
        ids, weights = R.router(*(_double(value) for value in args))
        return ids, weights.to(torch.promote_types(args[0].dtype, torch.float32))

    def experts(x: Tensor, *rest: Any) -> Tensor:
        return R.experts(*(_double(value) for value in (x, *rest))).to(x.dtype)

    return {name: widened(name) for name in names} | {"router": router, "experts": experts}


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def not_contiguous() -> Rows:
    """Right numbers in tensors whose strides are those of another layout."""
    names = (
        "rms_norm",
        "rope",
        "attention",
        "head_gate",
        "linear",
        "swiglu",
        "mlp",
        "experts",
        "mtp_input",
        "sampling",
    )

    def strided(name: str) -> Callable[..., Tensor]:
        def run(*args: Any) -> Tensor:
            y = getattr(R, name)(*args)
            return y.transpose(-1, -2).contiguous().transpose(-1, -2)

        return run

    return {name: strided(name) for name in names}


def composed_from_rows() -> Rows:
    """Nothing is fused: each composed row calls the rows that it is made of."""
    composed = Composed(R)
    return {name: getattr(composed, name) for name in ("qk_norm", "mlp", "experts", "experts_fp8", "mtp_input")}


# Sampling


def sampling_by_thresholds() -> Rows:
    """Filters as thresholds on probabilities by id; nothing is scattered back."""

    def sampling(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
        if temperature == 0:
            return R.sampling(logits, temperature, top_k, top_p, min_p)
        values = wide(logits)
        rank = values.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        p = ((values - values.amax(dim=-1, keepdim=True)) / temperature).exp()
        p = p / p.sum(dim=-1, keepdim=True)
        if 0 < top_k < p.shape[-1]:
            p = p * (rank < top_k)
            p = p / p.sum(dim=-1, keepdim=True)
        if top_p < 1:
            ranked = torch.zeros_like(p).scatter(-1, rank, p)
            before = (ranked.double().cumsum(dim=-1) - ranked).gather(-1, rank)
            p = p * (before < top_p)
            p = p / p.sum(dim=-1, keepdim=True)
        if min_p > 0:
            p = p * (p >= min_p * p.amax(dim=-1, keepdim=True))
            p = p / p.sum(dim=-1, keepdim=True)
        return p

    return {"sampling": sampling}


def draw_one_by_one() -> Rows:
    """Probabilities are taken away from the uniform number until none is left of it."""

    def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
        drawn = []
        for row, uniform in zip(probabilities.double().tolist(), uniforms.tolist(), strict=True):
            last, total = 0, 0.0
            for token, share in enumerate(row):
                total += share
                if share > 0:
                    last = token
                    if total > uniform:
                        break
            drawn.append(last)
        return torch.tensor(drawn, dtype=torch.int64)

    return {"draw": draw}


# Sessions


class InChunksOf(ReferenceSession):
    """Takes many tokens as several chunks."""

    size = 1 << 30

    def extend(self, token_ids: list[int]) -> Tensor:
        logits, routing = [], []
        for start in range(0, len(token_ids), self.size):
            logits.append(super().extend(token_ids[start : start + self.size]))
            routing.append(super().routing())
        self._joined = {
            index: tuple(torch.cat([part[index][which] for part in routing]) for which in (0, 1))
            for index in routing[0]
        }
        return torch.cat(logits)

    def routing(self) -> dict[int, Any]:
        return self._joined


class InChunksOf1(InChunksOf):
    """One token at a time, as an engine without prefill."""

    size = 1


class InChunksOf7(InChunksOf):
    """A size that divides nothing."""

    size = 7


class InChunksOf64(InChunksOf):
    """A usual size."""

    size = 64


class LogitsInFloat64(ReferenceSession):
    """Logits in a wider dtype than the profile's."""

    def extend(self, token_ids: list[int]) -> Tensor:
        return super().extend(token_ids).double()


class LogitsInFloat32(ReferenceSession):
    """Logits in a wider dtype than a narrow profile's."""

    def extend(self, token_ids: list[int]) -> Tensor:
        return super().extend(token_ids).float()


class Recomputes(ReferenceSession):
    """Keeps no keys and values: every step runs the whole context."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    def extend(self, token_ids: list[int]) -> Tensor:
        self.tokens = self.tokens + token_ids
        self.cache = self.model.new_cache()
        self.newest = len(token_ids)
        return super().extend(self.tokens)[-self.newest :]

    def routing(self) -> dict[int, Any]:
        """Of the newest tokens only, as the protocol says."""
        return {index: tuple(part[-self.newest :] for part in pair) for index, pair in super().routing().items()}

    def truncate(self, length: int) -> None:
        self.tokens = self.tokens[:length]


class CachesWholePrefixes(ReferenceSession):
    """A context that was seen before, token for token, is copied."""

    def extend(self, token_ids: list[int]) -> Tensor:
        held: dict[Any, Any] = self.model.__dict__.setdefault("whole_prefixes", {})
        key = tuple(token_ids)
        if self.length or len(key) < 2:
            return super().extend(token_ids)
        if key not in held:
            logits = super().extend(token_ids)
            held[key] = copy.deepcopy((self.cache, logits, self._routing))
        cache, logits, routing = copy.deepcopy(held[key])
        self.cache, self._routing = cache, routing
        return logits


# Caches


class SlotsReversed(LayerCache):
    """Keys are handed out from the newest slot to the oldest."""

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> caches.Seen:
        k, v, positions = super().extend(k_TKH, v_TKH, positions_T)
        return k.flip(0), v.flip(0), positions.flip(0)


class _Exchanged(Model):
    layer_cache: type[LayerCache] = LayerCache

    def new_cache(self) -> KVCache:
        return caches.exchanged(super().new_cache(), self.config.layers, self.layer_cache)


class LargerRings(_Exchanged):
    """Rings of twice the window and some."""

    layer_cache = caches.RingOfTwiceTheWindow


class ReversedSlots(_Exchanged):
    """Slots in another order."""

    layer_cache = SlotsReversed


# Loaded models


class BatchBackwards(ReferenceModel):
    """Contexts of a batch run from the last to the first."""

    def extend_batch(self, sessions: Any, token_ids: Any) -> list[Tensor]:
        logits = super().extend_batch(list(sessions)[::-1], list(token_ids)[::-1])
        return logits[::-1]
