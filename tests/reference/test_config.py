"""ModelConfig: the published files, the spellings of re-exports, and errors that name the field."""

import json
from pathlib import Path
from typing import Any

import pytest

from reference.config import ConfigError, ModelConfig

CONFIGS = Path(__file__).parents[2] / "reference" / "configs"


@pytest.fixture
def published() -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((CONFIGS / "step_3_5_flash.json").read_text())
    return fields


def test_reads_the_published_geometry() -> None:
    config = ModelConfig.from_file(CONFIGS / "step_3_5_flash.json")
    full = [layer for layer in config.layers if layer.attention_type == "full_attention"]
    sliding = [layer for layer in config.layers if layer.attention_type == "sliding_attention"]
    assert [layer.index for layer in full] == list(range(0, 45, 4))
    assert {(a.num_attention_heads, a.num_key_value_heads, a.rotary_dim, a.rope_theta) for a in full} == {
        (64, 8, 64, 5e6)
    }
    assert {(a.num_attention_heads, a.num_key_value_heads, a.rotary_dim, a.rope_theta) for a in sliding} == {
        (96, 8, 128, 1e4)
    }
    assert {a.sliding_window for a in sliding} == {512}
    assert {a.sliding_window for a in full} == {None}
    assert all(a.rope_scaling is not None for a in full)
    assert all(a.rope_scaling is None for a in sliding + list(config.mtp_layers))
    assert [a.index for a in config.layers if not a.is_moe] == [0, 1, 2]
    assert {a.index: a.swiglu_limit for a in config.layers if a.swiglu_limit} == {43: 7.0, 44: 7.0}
    assert {a.index: a.swiglu_limit_shared for a in config.layers if a.swiglu_limit_shared} == {44: 16.0}
    assert [(a.index, a.attention_type, a.is_moe) for a in config.mtp_layers] == [
        (index, "sliding_attention", False) for index in (45, 46, 47)
    ]
    assert config.rms_norm_eps == 1e-5  # absent from the file
    assert config.eos_token_ids == (1, 2, 128007)


def test_reads_lists_of_45_as_lists_of_48(published: dict[str, Any]) -> None:
    whole = ModelConfig.from_dict(published)
    names = ("layer_types", "rope_theta", "partial_rotary_factors", "swiglu_limits", "swiglu_limits_shared")
    cut = ModelConfig.from_dict(published | {name: published[name][:45] for name in names})
    assert cut == whole


def test_reads_moe_layers_as_a_list_or_a_string(published: dict[str, Any]) -> None:
    as_list = published | {"moe_layers_enum": list(range(3, 45))}
    assert ModelConfig.from_dict(as_list) == ModelConfig.from_dict(published)


def test_does_not_tie_the_head_when_the_field_is_absent(published: dict[str, Any]) -> None:
    del published["tie_word_embeddings"]
    assert ModelConfig.from_dict(published).layers  # and expected_tensors always asks for lm_head.weight


def test_widens_the_window_of_sliding_layers_only() -> None:
    config = ModelConfig.from_file(CONFIGS / "step_3_5_flash.json").with_window(513)
    assert {layer.sliding_window for layer in config.layers + config.mtp_layers} == {None, 513}
    assert config.layers[0].sliding_window is None
    with pytest.raises(ConfigError, match=r"sliding_window: is 0; want 1 or more"):
        config.with_window(0)


def test_reads_the_fp8_config_with_or_without_a_list_of_exceptions() -> None:
    fields = json.loads((CONFIGS / "step_3_5_flash_fp8.json").read_text())
    config = ModelConfig.from_dict(fields)
    assert config.quantization is not None
    assert config.quantization.weight_block_size == (128, 128)
    fields["quantization_config"]["modules_to_not_convert"] = ["model.layers.0.self_attn.qkv_proj"]
    assert ModelConfig.from_dict(fields) == config


WRONG = [
    ({"hidden_sise": 4096}, r"unknown field hidden_sise = 4096; want only fields of a step3p5 config"),
    ({"model_type": "llama"}, r"model_type: is 'llama'; want 'step3p5'"),
    ({"tie_word_embeddings": True}, r"tie_word_embeddings: is True; want False"),
    ({"moe_router_activation": "softmax"}, r"moe_router_activation: is 'softmax'; want 'sigmoid'"),
    ({"hidden_size": "4096"}, r"hidden_size: is '4096'; want a whole number of 1 or more"),
    ({"layer_types": ["full_attention"] * 44}, r"layer_types: has 44 entries; want 45 .* or 48"),
    ({"layer_types": ["linear_attention"] * 48}, r"layer_types\[0\]: is 'linear_attention'; want 'full_attention'"),
    ({"rope_theta": 10000.0}, r"rope_theta: is 10000.0; want a list of 45 or 48 entries"),
    ({"swiglu_limits": 7.0}, r"swiglu_limits: is 7.0; want a list of 45 or 48 entries"),
    ({"rope_theta": [0.0] * 48}, r"rope_theta\[0\]: is 0.0; want a number above 0"),
    ({"partial_rotary_factors": [0.33] * 48}, r"partial_rotary_factors\[0\]: is 0.33; want a fraction"),
    ({"moe_layers_enum": "3,4,45"}, r"moe_layers_enum: is '3,4,45'; want each layer below 45"),
    ({"moe_layers_enum": "3-44"}, r"moe_layers_enum: is '3-44'; want '3,4,5' or \[3, 4, 5\]"),
    ({"moe_top_k": 289}, r"moe_top_k: is 289; want at most moe_num_experts = 288"),
    ({"share_expert_dims": 2560}, r"share_expert_dim: is 1280, but share_expert_dims is 2560"),
    ({"max_seq_len": 131072}, r"max_seq_len: is 131072, but max_position_embeddings is 262144"),
    ({"swiglu_limits": [-1.0] * 48}, r"swiglu_limits\[3\]: is -1.0; want 0 \(no clamp\)"),
    ({"rope_scaling": {"rope_type": "yarn"}}, r"rope_scaling.rope_type: is 'yarn'; want 'llama3'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, r"rope_scaling: lacks a number for low_freq_factor"),
    ({"yarn_only_types": ["mtp"]}, r"yarn_only_types: is \['mtp'\]"),
    ({"num_attention_heads": 60}, r"num_attention_heads: is 60; want a multiple of num_attention_groups = 8"),
    ({"attention_other_setting": None}, r"attention_other_setting: is None; want the head counts"),
    ({"quantization_config": {"quant_method": "awq"}}, r"quantization_config.quant_method: is 'awq'; want 'fp8'"),
]


@pytest.mark.parametrize(
    ("change", "message"), WRONG, ids=[next(iter(change)) + str(i) for i, (change, _) in enumerate(WRONG)]
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_wanted(
    published: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(published | change)


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "layer_types", "rope_theta", "moe_layers_enum"])
def test_a_missing_field_is_named(published: dict[str, Any], name: str) -> None:
    del published[name]
    with pytest.raises(ConfigError, match=rf"{name}: is missing; want"):
        ModelConfig.from_dict(published)


def test_a_file_that_is_missing_or_no_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.json: no such file; want a checkpoint's config.json"):
        ModelConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        ModelConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="is a JSON list; want an object"):
        ModelConfig.from_file(tmp_path)
