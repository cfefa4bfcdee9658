"""mlx-lm's loader adds the norms' 1 in the dtype of the file: 1 + w is rounded to bfloat16, and nothing else."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.counters import Counters
from conformance.tolerance import ConformanceError
from reference.checkpoint import LoadedWeights
from reference.config import ModelConfig


def with_rounded_norms(weights: LoadedWeights, config: ModelConfig) -> LoadedWeights:
    """The same weights, with each norm's w such that 1 + w is a bfloat16."""

    def rounded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: (1 + tensor).bfloat16().to(tensor.dtype) - 1 if name.endswith("norm.weight") else tensor
            for name, tensor in tensors.items()
        }

    layers = (*config.layers, *config.mtp_layers)
    return LoadedWeights(rounded(weights.top()), [rounded(weights.layer(layer.index)) for layer in layers])


def test_its_loader_rounds_norms_to_bfloat16_and_does_nothing_else(
    nano: Path, load: Callable[[str], Any], passages: list[Any], weights: Any, envelope: Any, agree: Any
) -> None:
    token_ids = passages[0].token_ids
    got = load("apple_mlx_lm:loader_engine").new_session().extend(token_ids)
    config = ModelConfig.from_file(nano)
    agree(got, envelope(token_ids, {dtype: with_rounded_norms(loaded, config) for dtype, loaded in weights.items()}))
    with pytest.raises(ConformanceError, match="times the bound"):
        passages[0].logits.check(got, Counters(), "logits")
    assert (got.double() - passages[0].logits.exact).abs().max() > torch.finfo(torch.bfloat16).eps
