"""The published shapes, from the published config.json: nothing of the architecture is typed in again."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from reference import config
from reference.config import LayerConfig, ModelConfig

PUBLISHED = Path(config.__file__).parent / "configs/step_3_5_flash.json"

DECODE_TOKENS = (1, 4, 16, 64)  # sequences, or drafts to verify
FEW_TOKENS = (1, 4)
PREFILL_TOKENS = (4096, 16_384)
CONTEXTS = (4096, 32_768, 131_072, 262_144)  # cached positions of full layers
PREFILL_CONTEXT = 32_768


@dataclass(frozen=True)
class Published:
    """The model and one layer of each kind."""

    model: ModelConfig
    full: LayerConfig  # full attention
    sliding: LayerConfig
    dense: LayerConfig  # a dense feed-forward block
    moe: LayerConfig


@cache
def published() -> Published:
    """Read the published configuration, once."""
    model = ModelConfig.from_file(PUBLISHED)
    layers = model.layers
    return Published(
        model=model,
        full=next(layer for layer in layers if layer.sliding_window is None),
        sliding=next(layer for layer in layers if layer.sliding_window is not None),
        dense=next(layer for layer in layers if not layer.is_moe),
        moe=next(layer for layer in layers if layer.is_moe),
    )


def projections() -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the large projections, q, k and v as one product."""
    shapes = published()
    hidden = shapes.model.hidden_size
    return {
        "sliding qkv": (hidden, _qkv(shapes.sliding)),
        "full qkv": (hidden, _qkv(shapes.full)),
        "sliding o": (shapes.sliding.num_attention_heads * shapes.sliding.head_dim, hidden),
        "full o": (shapes.full.num_attention_heads * shapes.full.head_dim, hidden),
        "lm_head": (hidden, shapes.model.vocab_size),
    }


def _qkv(layer: LayerConfig) -> int:
    return (layer.num_attention_heads + 2 * layer.num_key_value_heads) * layer.head_dim
