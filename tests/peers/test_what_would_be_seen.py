"""The bound that the peers keep is one that a wrong model breaks: each of these is a choice that engines differ in."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from conformance.counters import Counters
from conformance.tolerance import ConformanceError
from reference.checkpoint import LoadedWeights
from reference.config import LayerConfig
from reference.model import Model

CHOICES: dict[str, Callable[[LayerConfig], LayerConfig]] = {
    "a_window_of_one_key_more": lambda layer: replace(
        layer, sliding_window=None if layer.sliding_window is None else layer.sliding_window + 1
    ),
    "frequencies_left_unscaled": lambda layer: replace(layer, rope_scaling=None),
    "routed_experts_left_unclamped": lambda layer: replace(layer, swiglu_limit=0.0),
    "shared_expert_left_unclamped": lambda layer: replace(layer, swiglu_limit_shared=0.0),
    "shared_expert_clamped_in_the_layer_before_too": lambda layer: replace(
        layer, swiglu_limit_shared=16.0 if layer.swiglu_limit else layer.swiglu_limit_shared
    ),
    "an_epsilon_of_1e-6": lambda layer: replace(layer, rms_norm_eps=1e-6),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_another_choice_is_out_of_bounds(
    choice: str, passages: list[Any], config: Any, weights: dict[torch.dtype, LoadedWeights]
) -> None:
    changed = replace(config, layers=tuple(CHOICES[choice](layer) for layer in config.layers))
    model = Model(changed, weights[torch.float32], torch.float32)
    with torch.inference_mode():
        logits = model.logits(model.hidden(torch.tensor(passages[0].token_ids)))
    with pytest.raises(ConformanceError, match="times the bound"):
        passages[0].logits.check(logits, Counters(), choice)


def test_the_reference_itself_is_within_bounds(
    passages: list[Any], config: Any, weights: dict[torch.dtype, LoadedWeights], agree: Any
) -> None:
    model = Model(config, weights[torch.float32], torch.float32)
    for passage in passages:
        with torch.inference_mode():
            agree(model.logits(model.hidden(torch.tensor(passage.token_ids))), passage.logits)
