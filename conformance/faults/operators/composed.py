"""The rows that are made of other rows, over another table: a change of ``rms_norm`` can be one of every norm."""

from typing import Any

import torch
from torch import Tensor

from reference.operators import Operators
from reference.quantization import dense, dequantize_fp8_activation


class Composed:
    """``qk_norm``, ``mlp``, ``experts``, ``experts_fp8`` and ``mtp_input`` as the reference's, from a given table."""

    def __init__(self, ops: Operators) -> None:
        self.ops = ops

    def qk_norm(self, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return self.ops.rms_norm(q, q_weight, eps), self.ops.rms_norm(k, k_weight, eps)

    def mlp(self, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
        activated: Tensor = self.ops.swiglu(self.ops.linear(x, gate), self.ops.linear(x, up), limit)
        return self.ops.linear(activated, down)

    def mtp_input(self, embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float) -> Any:
        halves = self.ops.rms_norm(embedded, enorm, eps), self.ops.rms_norm(hidden, hnorm, eps)
        return self.ops.linear(torch.cat(halves, dim=-1), eh)

    def experts(self, x: Tensor, ids: Tensor, weights: Tensor, gate: Any, up: Any, down: Any, limit: float) -> Tensor:
        return self._experts(x, ids, weights, gate, up, down, limit, lambda rows: rows)

    def experts_fp8(
        self, x: Tensor, ids: Tensor, weights: Tensor, gate: Any, up: Any, down: Any, limit: float
    ) -> Tensor:
        def rounded(rows: Tensor) -> Tensor:
            codes, scale = self.ops.quantize_activation(rows)
            return dequantize_fp8_activation(codes, scale, dtype=rows.dtype)

        return self._experts(x, ids, weights, gate, up, down, limit, rounded)

    def _experts(
        self, x: Tensor, ids: Tensor, weights: Tensor, gate: Any, up: Any, down: Any, limit: float, rounded: Any
    ) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        x_TD, y_TD = rounded(x.to(wide)), torch.zeros(x.shape, dtype=wide)
        for expert in ids.unique().tolist():
            token, slot = (ids == expert).nonzero(as_tuple=True)
            g, u = (x_TD[token] @ dense(weight[expert], wide).T for weight in (gate, up))
            row = rounded(self.ops.swiglu(g, u, limit)) @ dense(down[expert], wide).T
            y_TD = y_TD.index_add(0, token, row * weights[token, slot, None].to(wide))
        return y_TD.to(x.dtype)
