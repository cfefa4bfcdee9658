"""Cost and inputs of ``qk_norm``."""

from reference.config import LayerConfig

from ..agreement import whole
from ..case import Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import FEW_TOKENS, published


def cost(T: int, N: int, K: int, H: int, itemsize: int = 2) -> Cost:
    """``rms_norm`` over T (N + K) vectors of H."""
    return Cost(hbm_bytes=(2 * T * (N + K) * H + 2 * H) * itemsize, flops=4 * T * (N + K) * H)


def cases() -> list[Case]:
    layers = (published().full, published().sliding)
    return [_case(T, layer) for layer in layers for T in FEW_TOKENS]


def _case(T: int, layer: LayerConfig) -> Case:
    N, K, H = layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim

    def build(maker: Maker) -> Draw:
        weights = maker.normal(H, scale=0.1), maker.normal(H, scale=0.1)

        def draw() -> Args:
            return maker.normal(T, N, H), maker.normal(T, K, H), *weights, layer.rms_norm_eps

        return draw

    return Case("qk_norm", f"T={T} N={N} K={K} H={H}", "bf16", cost(T, N, K, H), build, whole)
