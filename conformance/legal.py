"""Legal evaluations: the reference's formulas with their sums in another order, and rounded where a profile may round.

An error of these is an error that a correct engine may make.
"""

import math
from dataclasses import dataclass, replace
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
        return torch.randperm(size, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + size))

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
        order = self.order(x.shape[-1])
        return self._product(x[..., order], weight[:, order])

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Every fourth evaluation in float32 adds products one by one, which errs more than a library's blocks."""
        if x.dtype != torch.float32 or self.seed % 4 != 2:
            return REFERENCE.linear(x, weight)
        y = torch.zeros(*x.shape[:-1], len(weight), device=x.device)
        for column, row in zip(x.movedim(-1, 0)[..., None], weight.T.float().contiguous(), strict=True):
            y.addcmul_(column, row)
        return y

    def mlp(self, x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, limit: float) -> Tensor:
        order = self.order(gate_weight.shape[0])
        gate, up = self.linear(x, gate_weight[order]), self.linear(x, up_weight[order])
        return self._product(REFERENCE.swiglu(gate, up, limit), down_weight[:, order])

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
        y = torch.zeros(x.shape, dtype=wide, device=x.device)
        for expert in self.order(gate_weight.shape[0]).tolist():
            token, slot = (expert_ids == expert).nonzero(as_tuple=True)
            if len(token) == 0:
                continue
            gate, up, down = (dense(weight[expert], inner) for weight in (gate_weight, up_weight, down_weight))
            rows = self._expert(x[token].to(inner), gate, up, down, limit)
            y = y.index_add(0, token, rows.to(wide) * expert_weights[token, slot, None].to(wide))
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
        for expert in self.order(gate_weight.shape[0]).tolist():
            token, slot = (expert_ids == expert).nonzero(as_tuple=True)
            if len(token) == 0:
                continue
            rows = x[token]
            gate, up = (self._blocks(rows, weight[expert]) for weight in (gate_weight, up_weight))
            if self.rounds_inside:
                gate, up = gate.to(x.dtype), up.to(x.dtype)
            inner = self._unsettled(REFERENCE.swiglu(gate, up, limit), x.dtype)
            contribution = self._blocks(inner, down_weight[expert])
            y = y.index_add(0, token, contribution * expert_weights[token, slot, None].to(wide))
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
        rows, size = weight.block
        codes, scale = REFERENCE.quantize_activation(x)
        split = ((codes.shape[-1] + size - 1) // size, size)
        padding = (0, split[0] * size - codes.shape[-1])
        x_NKB, w_OKB = (pad(c.float(), padding).unflatten(-1, split) for c in (codes, weight.data))
        scale_OK = weight.scale_inv.float().repeat_interleave(rows, dim=0)[: weight.shape[0]]
        products_KNO = torch.einsum("nkb,okb->kno", x_NKB, w_OKB) * scale.T[:, :, None] * scale_OK.T[:, None, :]
        total = torch.zeros(len(x), weight.shape[0], device=x.device)
        for block in self.order(split[0]).tolist():
            total += products_KNO[block]
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
