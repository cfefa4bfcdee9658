"""Random weights: what a step with them shows of the real model's cost."""

import pytest
import torch

from optimized.synthetic import FORMATS, GROUP, _Maker


@pytest.mark.parametrize("kind", ["int4", "fp8"])
def test_weights_have_no_mean_that_would_make_all_tokens_alike(kind: str) -> None:
    weight = _Maker(FORMATS[kind], torch.device("cpu"), seed=3).experts(3, 256, 512)
    values = weight.dequantize(torch.float64)  # type: ignore[union-attr]
    groups = values.unflatten(-1, (-1, GROUP)).mean(dim=-1).flatten()  # those of one group share a sign
    assert groups.mean().abs() < 4 * groups.std() / len(groups) ** 0.5  # four standard errors


@pytest.mark.parametrize("kind", ["int4", "fp8"])
def test_weights_keep_the_scale_of_their_inputs(kind: str) -> None:
    weight = _Maker(FORMATS[kind], torch.device("cpu"), seed=4).experts(2, 256, 512)
    values = weight.dequantize(torch.float64)  # type: ignore[union-attr]
    assert values.square().mean().sqrt().item() == pytest.approx(512**-0.5, rel=4 / values.numel() ** 0.5)
