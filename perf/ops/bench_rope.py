"""Cost and inputs of ``rope``."""

import torch

from reference.config import LayerConfig

from ..agreement import whole
from ..case import Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import FEW_TOKENS, published


def cost(T: int, N: int, H: int, R: int, itemsize: int = 2) -> Cost:
    """Read and write x once; six operations a rotated pair. Positions and frequencies are too small to count."""
    return Cost(hbm_bytes=2 * T * N * H * itemsize, flops=6 * T * N * R // 2)


def cases() -> list[Case]:
    layers = (published().full, published().sliding)
    return [_case(T, layer) for layer in layers for T in FEW_TOKENS]


def _case(T: int, layer: LayerConfig) -> Case:
    N, H, R = layer.num_attention_heads, layer.head_dim, layer.rotary_dim

    def build(maker: Maker) -> Draw:
        exponents = torch.arange(0, R, 2, dtype=torch.float64) / R  # the scaling of full layers costs nothing here
        frequencies = maker.to_device(layer.rope_theta**-exponents)
        positions = maker.to_device(torch.arange(100_003, 100_003 + T))

        def draw() -> Args:
            return maker.normal(T, N, H), positions, frequencies

        return draw

    return Case("rope", f"T={T} N={N} H={H} R={R}", "bf16", cost(T, N, H, R), build, whole)
