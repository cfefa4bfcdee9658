"""Legal evaluations: the reference's formulas with their sums in another order, and rounded where a profile may round.

An error of these is an error that a correct engine may make.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from reference.operators import Operators
from reference.quantization import Fp8Weight, QuantizedWeight, dense

from .profiles import Profile

REFERENCE = Operators()
REORDERED = (
    *("rms_norm", "qk_norm", "rope", "linear", "mlp", "router", "experts", "experts_fp8", "mtp_input", "attention"),
)

GROUPED_WEIGHTS = 1 << 18  # elements of a stacked weight: a group's numbers stay in a core's cache

E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()  # by the bits of the code


@dataclass(frozen=True)
class _Reordered:
    """Operators whose reduction axes are permuted by a seed.

    ``rounds_inside``: the intermediates that a profile may keep narrow (see ``Profile``) are rounded.
    ``rotation``: as of the profile.
    """

    seed: int
    rounds_inside: bool
    rotation: torch.dtype | None = None

    def order(self, size: int) -> Tensor:
        return _order(self.seed, size)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        order = self.order(x.shape[-1])
        return REFERENCE.rms_norm(x[..., order], weight[order], eps)[..., order.argsort()]

    def qk_norm(self, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return self.rms_norm(q, q_weight, eps), self.rms_norm(k, k_weight, eps)

    def rope(self, x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
        """Angles in float32, as engines form them; the reference's are float64."""
        angles_of = _angles_rounded_once if self.seed // 2 % 2 == 0 else _angles_multiplied_up
        angles_T1F = angles_of(positions.float(), frequencies)[:, None, :]
        wide = torch.promote_types(x.dtype, torch.float32)
        half = len(frequencies)
        cos, sin = angles_T1F.cos().to(self.rotation or wide), angles_T1F.sin().to(self.rotation or wide)
        inner = x.dtype if self.rotation and self.rounds_inside else wide
        cos, sin, first, second = (t.to(inner) for t in (cos, sin, x[..., :half], x[..., half : 2 * half]))
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
        return torch.cat((rotated, x[..., 2 * half :]), dim=-1)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [..., T, I] and weight [..., O, I], both of the same leading axes or the weight of none."""
        wide = torch.promote_types(x.dtype, torch.float32)
        x_wide, weight_wide = self._reordered(x.to(wide)), self._reordered(weight.to(wide))
        if x.dtype == torch.float32 and self.seed % 4 == 2:
            return _added_one_by_one(x_wide, weight_wide)
        return (x_wide @ weight_wide.mT).to(x.dtype)

    def _reordered(self, x: Tensor) -> Tensor:
        return x.flatten(0, -2).index_select(-1, self.order(x.shape[-1]).to(x.device)).reshape(x.shape)

    def mlp(self, x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, limit: float) -> Tensor:
        gate, up = self.linear(x, gate_weight), self.linear(x, up_weight)
        return self.linear(REFERENCE.swiglu(gate, up, limit), down_weight)

    def router(self, x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling_factor: float) -> Any:
        order = self.order(x.shape[-1])
        return REFERENCE.router(x[..., order], weight[:, order], bias, top_k, scaling_factor)

    def experts(
        self,
        x: Tensor,
        expert_ids: Tensor,
        expert_weights: Tensor,
        gate_weight: Tensor | QuantizedWeight,
        up_weight: Tensor | QuantizedWeight,
        down_weight: Tensor | QuantizedWeight,
        limit: float,
    ) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        inner = x.dtype if self.rounds_inside else wide
        stacked = gate_weight, up_weight, down_weight
        y = torch.zeros(x.shape, dtype=wide, device=x.device)
        for group in _groups(self.order(gate_weight.shape[0]), expert_ids, gate_weight.shape):
            gate, up, down = (torch.stack([dense(weight[e], inner) for e in group.experts]) for weight in stacked)
            padded = self._expert(group.padded(x.to(inner)), gate, up, down, limit)
            y = group.added(y, padded.to(wide), expert_weights.to(wide))
        return y.to(x.dtype)

    def _expert(self, x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, limit: float) -> Tensor:
        """Every fourth evaluation that rounds inside keeps the activation wide, as one fused with what comes next."""
        if not (self.rounds_inside and self.seed % 4 == 3):
            return self.mlp(x, gate_weight, up_weight, down_weight, limit)
        gate, up = self.linear(x, gate_weight).float(), self.linear(x, up_weight).float()
        return self.linear(REFERENCE.swiglu(gate, up, limit), down_weight.float()).to(x.dtype)

    def experts_fp8(
        self,
        x: Tensor,
        expert_ids: Tensor,
        expert_weights: Tensor,
        gate_weight: Fp8Weight,
        up_weight: Fp8Weight,
        down_weight: Fp8Weight,
        limit: float,
    ) -> Tensor:
        """As DeepGEMM: each block of 128 inputs is summed over its codes and scaled, then the blocks are added."""
        wide = torch.promote_types(x.dtype, torch.float32)
        y = torch.zeros(x.shape, dtype=wide, device=x.device)
        for group in _groups(self.order(gate_weight.shape[0]), expert_ids, gate_weight.shape):
            rows = group.padded(x)
            gate, up = (self._blocks(rows, _of(weight, group.experts)) for weight in (gate_weight, up_weight))
            if self.rounds_inside:
                gate, up = gate.to(x.dtype), up.to(x.dtype)
            inner = self._unsettled(REFERENCE.swiglu(gate, up, limit), x.dtype)
            y = group.added(y, self._blocks(inner, _of(down_weight, group.experts)), expert_weights.to(wide))
        return y.to(x.dtype)

    def _unsettled(self, inner: Tensor, dtype: torch.dtype) -> Tensor:
        """Every fourth evaluation moves each value by up to half a step of ``dtype``, as rounding may.

        What lies near the border of two e4m3 codes then falls to either side; all others round to the same codes.
        """
        if not (self.rounds_inside and self.seed % 4 == 3):
            return inner
        random = torch.Generator().manual_seed(self.seed)
        steps = torch.rand(inner.shape, generator=random).to(inner.device) - 0.5
        return inner.float() * (1 + steps * torch.finfo(dtype).eps)

    def _blocks(self, x: Tensor, weight: Fp8Weight) -> Tensor:
        """x [E, M, I] and weight [E, O, I] to [E, M, O]."""
        rows, size = weight.block
        codes, scale = (t.unflatten(0, x.shape[:2]) for t in REFERENCE.quantize_activation(x.flatten(0, 1)))
        split = ((codes.shape[-1] + size - 1) // size, size)
        padding = (0, split[0] * size - codes.shape[-1])
        x_EKMB, w_EKOB = (
            pad(_widened(c), padding).unflatten(-1, split).transpose(-2, -3) for c in (codes, weight.data)
        )
        scale_EOK = weight.scale_inv.float().repeat_interleave(rows, dim=-2)[:, : weight.shape[-2]]
        products_EKMO = x_EKMB @ w_EKOB.mT * scale.mT[..., None] * scale_EOK.mT[..., None, :]
        total = torch.zeros(products_EKMO[:, 0].shape, device=x.device)
        for block in self.order(split[0]).tolist():
            total += products_EKMO[:, block]
        return total

    def mtp_input(
        self,
        embedded: Tensor,
        hidden: Tensor,
        enorm_weight: Tensor,
        hnorm_weight: Tensor,
        eh_weight: Tensor,
        eps: float,
    ) -> Tensor:
        halves = self.rms_norm(embedded, enorm_weight, eps), self.rms_norm(hidden, hnorm_weight, eps)
        return self.linear(torch.cat(halves, dim=-1), eh_weight)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        query_positions: Tensor,
        key_positions: Tensor,
        window: int | None,
    ) -> Tensor:
        keys, dims = self.order(k.shape[-3]), self.order(q.shape[-1])
        k, v, key_positions = k[..., keys, :, :], v[..., keys, :, :], key_positions[keys]
        q, k = q[..., dims], k[..., dims]
        if not self.rounds_inside:
            return REFERENCE.attention(q, k, v, query_positions, key_positions, window)
        return _attention_rounding_probabilities(q, k, v, query_positions, key_positions, window)


@lru_cache(1024)  # as many as a session has seeds times sizes
def _order(seed: int, size: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + size))


def _added_one_by_one(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., T, I] and weight [..., O, I]: products added one by one, which errs more than a library's blocks."""
    y = torch.zeros(*x.shape[:-1], weight.shape[-2], device=x.device)
    for column, row in zip(x.movedim(-1, 0).contiguous(), weight.movedim(-1, 0).contiguous(), strict=True):
        y.addcmul_(column[..., None], row[..., None, :])
    return y


@dataclass(frozen=True)
class _Group:
    """Some experts, and the tokens of each, which rows of zeros fill up to the same number.

    Attributes:
        experts: their ids, [E'].
        expert, row: where in [E', M] each of their routed rows stands, [R].
        token, slot: where it comes from, [R].
    """

    experts: list[int]
    expert: Tensor
    row: Tensor
    token: Tensor
    slot: Tensor

    def padded(self, x: Tensor) -> Tensor:
        """[T, D] to [E', M, D]."""
        rows = x.new_zeros(len(self.experts), int(self.row.max()) + 1, x.shape[-1])
        rows[self.expert, self.row] = x[self.token]
        return rows

    def added(self, y: Tensor, padded: Tensor, expert_weights: Tensor) -> Tensor:
        """Add rows [E', M, D], weighed, to y [T, D], one expert after the other."""
        contributions = padded[self.expert, self.row] * expert_weights[self.token, self.slot, None]
        return y.index_add(0, self.token, contributions)


def _groups(order: Tensor, expert_ids: Tensor, weight_shape: Sequence[int]) -> Iterator[_Group]:
    """The experts that tokens [T, A] chose, in an order, as many at a time as ``GROUPED_WEIGHTS`` allows."""
    order = order.to(expert_ids.device)
    chosen = order[torch.isin(order, expert_ids)]
    count = max(GROUPED_WEIGHTS // math.prod(weight_shape[1:]), 1)
    for experts in chosen.split(count) if len(chosen) else ():
        expert, token, slot = (expert_ids == experts[:, None, None]).nonzero(as_tuple=True)
        sizes = expert.bincount(minlength=len(experts))
        row = torch.arange(len(expert), device=expert.device) - (sizes.cumsum(dim=0) - sizes)[expert]
        yield _Group(experts.tolist(), expert, row, token, slot)


def _widened(codes: Tensor) -> Tensor:
    """``codes.float()``, of e4m3, by the table of all of them: several times as fast."""
    return E4M3.to(codes.device).index_select(0, codes.view(torch.uint8).flatten().int()).reshape(codes.shape)


def _of(weight: Fp8Weight, experts: list[int]) -> Fp8Weight:
    return Fp8Weight(weight.data[experts], weight.scale_inv[experts], weight.block)


def _angles_rounded_once(positions: Tensor, frequencies: Tensor) -> Tensor:
    """As transformers, mlx-lm and vLLM: a float32 frequency times a float32 position."""
    return positions[:, None] * frequencies.float()


def _angles_multiplied_up(positions: Tensor, frequencies: Tensor) -> Tensor:
    """As llama.cpp (ggml_rope_cache_init): each pair's angle from the one before, rounded every time.

    Legal in a whole model's logits; the row ``rope`` is held to position times frequency.
    """
    angles = [positions * frequencies[0].float()]
    for ratio in (frequencies[1:] / frequencies[:-1]).float():
        angles.append(angles[-1] * ratio)
    return torch.stack(angles, dim=-1)


def _attention_rounding_probabilities(
    q: Tensor, k: Tensor, v: Tensor, query_positions: Tensor, key_positions: Tensor, window: int | None
) -> Tensor:
    """As flash kernels: exp(score - max) goes narrow into the second product, its sum stays wide and divides last."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[-2] // k.shape[-2]
    distance = query_positions[:, None] - key_positions[None, :]
    visible = (distance >= 0) & (key_positions >= 0)
    if window is not None:
        visible = visible & (distance < window)
    empty = (key_positions < 0)[:, None, None]
    k_wide, v_wide = (t.to(wide).masked_fill(empty, 0).repeat_interleave(group, dim=-2) for t in (k, v))
    scores = torch.einsum("...tnh,...snh->...nts", q.to(wide), k_wide) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~visible, -math.inf)
    powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    mixed = torch.einsum("...nts,...snh->...tnh", powers.to(q.dtype).to(wide), v_wide)
    return (mixed / powers.sum(dim=-1).transpose(-1, -2)[..., None]).to(q.dtype)


def reordered_operators(profile: Profile, seed: int) -> Operators:
    """The table of operators with other orders of summation; every second seed rounds inside, in a narrow profile."""
    reordered = _Reordered(seed, profile.is_narrow and seed % 2 == 1, profile.rotation)
    return replace(REFERENCE, **{name: getattr(reordered, name) for name in REORDERED})
