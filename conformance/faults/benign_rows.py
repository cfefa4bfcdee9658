"""Right ways to compute the other rows, and all of them at once, unlike the reference's.

They owe nothing to ``legal.py``, which the judge derives its bounds from: what is accepted here is out of its sample.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..legal import reordered_operators
from ..profiles import PROFILES
from .benign_products import Rows
from .operators.arithmetic import R, wide
from .operators.composed import Composed

OTHER_ORDER = 1001  # odd: in a narrow profile it also rounds what the profile lets an engine round

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


def rotary_table_in_bf16() -> Rows:
    def rope(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
        cos, sin = _rounded_table(positions, frequencies)
        half = len(frequencies)
        first, second = wide(x[..., :half]), wide(x[..., half : 2 * half])
        turned = torch.cat((first * wide(cos) - second * wide(sin), first * wide(sin) + second * wide(cos)), dim=-1)
        return torch.cat((turned.to(x.dtype), x[..., 2 * half :]), dim=-1)

    return {"rope": rope}


def rotary_products_in_bf16() -> Rows:
    """x cos + rotate_half(x) sin, each of them rounded."""

    def rope(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
        cos, sin = (torch.cat((part, part), dim=-1) for part in _rounded_table(positions, frequencies))
        half = len(frequencies)
        turning = x[..., : 2 * half]
        rotated_half = torch.cat((-turning[..., half:], turning[..., :half]), dim=-1)
        return torch.cat((turning * cos + rotated_half * sin, x[..., 2 * half :]), dim=-1)

    return {"rope": rope}


def _rounded_table(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    angles = positions.float()[:, None, None] * frequencies.float()
    return angles.cos().bfloat16(), angles.sin().bfloat16()


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


def sampling_ties_highest_first() -> Rows:
    def sampling(logits: Tensor, *setting: Any) -> Tensor:
        return R.sampling(logits.flip(-1), *setting).flip(-1)

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
