"""Counts of the published configs, to the unit. Source: published totals of stepfun-ai/Step-3.5-Flash."""

from pathlib import Path

import pytest

from reference.accounting import inspect, kv_cache_bytes
from reference.checkpoint import expected_tensors
from reference.config import ModelConfig

CONFIGS = Path(__file__).parents[2] / "reference" / "configs"
BF16, FP8 = CONFIGS / "step_3_5_flash.json", CONFIGS / "step_3_5_flash_fp8.json"


def test_the_published_checkpoint_is_counted_exactly() -> None:
    counts = inspect(ModelConfig.from_file(BF16))
    assert counts["num_tensors"] == 804
    assert counts["checkpoint_bytes"] == 398_768_626_944
    assert counts["parameters"] == {
        "embedding": 527_958_016,
        "lm_head": 527_958_016,
        "attention_full_layers": 909_118_464,
        "attention_sliding_layers": 3_611_697_408,
        "dense_mlp": 415_236_096,
        "routed_experts": 190_253_629_440,
        "shared_experts": 660_602_880,
        "router": 49_557_312,
        "norms": 372_736,
        "backbone": 196_956_130_368,
        "mtp": 2_428_171_008,
        "total": 199_384_301_376,
    }
    assert counts["kv_cache_bytes"]["262144"] == 12_954_107_904


def test_groups_add_up_to_the_backbone() -> None:
    parameters = inspect(ModelConfig.from_file(BF16))["parameters"]
    groups = {name: count for name, count in parameters.items() if name not in ("backbone", "mtp", "total")}
    assert sum(groups.values()) == parameters["backbone"]
    assert parameters["backbone"] + parameters["mtp"] == parameters["total"]


def test_eleven_billion_parameters_are_active() -> None:
    active = inspect(ModelConfig.from_file(BF16))["active_parameters_per_token"]
    assert active == {"without_lm_head": 10_931_407_936, "with_lm_head": 11_459_365_952}


def test_the_fp8_checkpoint_has_the_same_parameters_and_its_own_bytes() -> None:
    bf16, fp8 = inspect(ModelConfig.from_file(BF16)), inspect(ModelConfig.from_file(FP8))
    assert fp8["parameters"] == bf16["parameters"]
    assert fp8["num_tensors"] == 804 + 3 * 42
    assert fp8["checkpoint_bytes"] == bf16["weight_bytes_by_expert_format"]["fp8"]["with_mtp"] == 208_561_446_144


def test_sliding_layers_cache_one_window() -> None:
    config = ModelConfig.from_file(BF16)
    assert kv_cache_bytes(config, 512) == 45 * 512 * 4096
    assert kv_cache_bytes(config, 1024) - kv_cache_bytes(config, 1023) == 12 * 4096


@pytest.mark.parametrize("path", [BF16, FP8], ids=["bf16", "fp8"])
def test_no_tensor_name_appears_twice_and_mtp_comes_after_the_backbone(path: Path) -> None:
    names = list(expected_tensors(ModelConfig.from_file(path)))
    assert len(set(names)) == len(names)
    assert "model.layers.47.transformer.shared_head.output.weight" in names
    assert "model.layers.48.input_layernorm.weight" not in names
    assert "model.layers.3.moe.router_bias" in names  # no .weight at its end
