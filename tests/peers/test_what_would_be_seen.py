"""The bound that the peers keep is one that a wrong model breaks: each of these is a choice that engines differ in."""

from typing import Any

import pytest
import torch

from conformance.counters import Counters
from conformance.faults.catalogue import FAULTS
from conformance.tolerance import ConformanceError
from reference.checkpoint import LoadedWeights
from reference.model import Model

CHOICES = (  # of the catalogue
    "window_one_more",
    "rope_scaling_off",
    "routed_clamp_off",
    "shared_clamp_off",
    "shared_clamp_on_both",
    "norms_eps_1e_6",
)


@pytest.mark.parametrize("choice", CHOICES)
def test_another_choice_is_out_of_bounds(
    choice: str, passages: list[Any], config: Any, weights: dict[torch.dtype, LoadedWeights]
) -> None:
    model = FAULTS[choice].of_model(Model(config, weights[torch.float32], torch.float32))
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
