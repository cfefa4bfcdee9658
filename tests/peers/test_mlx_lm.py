"""mlx-lm computes what the reference computes, once the weights are widened before its loader touches them.

Its loader adds the norms' 1 in the dtype of the file, so that 1 + w is rounded to bfloat16; the last test shows that
this is all that it does differently.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reference.checkpoint import Checkpoint, LoadedWeights
from reference.config import ModelConfig

mx = pytest.importorskip("mlx.core")
step3p5 = pytest.importorskip("mlx_lm.models.step3p5")
mlx_lm_utils = pytest.importorskip("mlx_lm.utils")

PREFILL = 100  # tokens; past the sliding window, so that decoding starts with a full ring


@pytest.fixture(scope="module")
def model(nano: Path) -> Any:
    """Built from config.json and model.safetensors by mlx-lm's own name table, in float32."""
    fields = json.loads((nano / "config.json").read_text(encoding="utf-8"))
    built = step3p5.Model(step3p5.ModelArgs.from_dict(fields))
    wide = {name: array.astype(mx.float32) for name, array in mx.load(str(nano / "model.safetensors")).items()}
    built.load_weights(list(built.sanitize(wide).items()), strict=True)
    return built


def logits(model: Any, token_ids: list[int], cache: Any = None) -> Tensor:
    return torch.from_numpy(np.array(model(mx.array([token_ids]), cache=cache))[0])


def with_rounded_norms(weights: LoadedWeights, config: ModelConfig) -> LoadedWeights:
    """The same weights, with each norm's w such that 1 + w is a bfloat16."""

    def rounded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: (1 + tensor).bfloat16().to(tensor.dtype) - 1 if name.endswith("norm.weight") else tensor
            for name, tensor in tensors.items()
        }

    return LoadedWeights(rounded(weights.top()), [rounded(weights.layer(layer.index)) for layer in config.layers])


def test_logits_of_a_whole_context_agree(model: Any, passages: list[Any], agree: Any) -> None:
    for passage in passages:
        agree(logits(model, passage.token_ids), passage.logits)


def test_logits_of_single_tokens_after_a_cached_context_agree(model: Any, passages: list[Any], agree: Any) -> None:
    for passage in passages:
        cache = model.make_cache()
        rows = [logits(model, passage.token_ids[:PREFILL], cache)]
        rows += [logits(model, [token], cache) for token in passage.token_ids[PREFILL:]]
        agree(torch.cat(rows), passage.logits)


def test_its_loader_rounds_norms_to_bfloat16_and_does_nothing_else(
    nano: Path, passages: list[Any], weights: dict[torch.dtype, LoadedWeights], envelope: Any, agree: Any
) -> None:
    model, _ = mlx_lm_utils.load_model(nano)
    model.set_dtype(mx.float32)
    token_ids = passages[0].token_ids
    config = Checkpoint(nano).config
    rounded = {dtype: with_rounded_norms(loaded, config) for dtype, loaded in weights.items()}
    agree(logits(model, token_ids), envelope(token_ids, rounded))
