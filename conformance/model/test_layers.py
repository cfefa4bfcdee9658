"""Checks of what an engine says that it built, against the fields of config.json themselves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reference.checkpoint import save_checkpoint
from reference.config import ModelConfig

from ..clauses import clause
from ..counters import EXACTLY, Counters
from ..engine import LAYER_FIELDS
from ..guard import GuardedModel
from ..tolerance import ConformanceError
from ..under_test import UnderTest
from . import tiny
from .loading import Load

NUM_LAYERS = tiny.NUM_LAYERS
LISTS = ("layer_types", "rope_theta", "partial_rotary_factors", "swiglu_limits", "swiglu_limits_shared")
# What a config may say otherwise, and what engines have taken from a list's length or from a layer's number.
VARIANTS: dict[str, dict[str, Any]] = {
    "lists with entries for the MTP layers": {},
    "lists of the backbone only": {name: tiny.TINY[name][:NUM_LAYERS] for name in LISTS},
    "a list of MoE layers": {"moe_layers_enum": [1, 2, 3, 4]},
    "MoE layers with gaps": {"moe_layers_enum": "1,3"},
    "no clamp": {"swiglu_limits": [0.0] * 8, "swiglu_limits_shared": [0.0] * 8},
    "clamps in early layers": {
        "swiglu_limits": [0.0, 7.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        "swiglu_limits_shared": [16.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    },
    "full layers elsewhere": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"] * 2,
        "rope_theta": [1e4, 5e6, 1e4, 1e4] * 2,
        "partial_rotary_factors": [1.0, 0.5, 1.0, 1.0] * 2,
    },
    "scaling on every layer": {"yarn_only_types": ["full_attention", "sliding_attention"]},
    "no scaling": {"rope_scaling": None},
    "one MTP layer": {"num_nextn_predict_layers": 1, **{name: tiny.TINY[name][: NUM_LAYERS + 1] for name in LISTS}},
}


def wanted(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of a config, from the published fields; written apart from the reference's reader."""
    backbone, depths = fields["num_hidden_layers"], fields["num_nextn_predict_layers"]
    enum = fields["moe_layers_enum"]
    moe_layers = [int(part) for part in enum.split(",")] if isinstance(enum, str) else enum

    def entry(name: str, layer: int, beyond: Any) -> Any:
        return fields[name][layer] if layer < len(fields[name]) else beyond

    layers = []
    for layer in range(backbone + depths):
        kind = entry("layer_types", layer, "sliding_attention")
        sliding = kind == "sliding_attention"
        like = layer if layer < len(fields["rope_theta"]) else fields["layer_types"].index("sliding_attention")
        heads = fields["attention_other_setting"] if sliding else fields
        is_moe = layer in moe_layers
        layers.append(
            {
                "attention_type": kind,
                "num_attention_heads": heads["num_attention_heads"],
                "num_key_value_heads": heads["num_attention_groups"],
                "sliding_window": fields["sliding_window"] if sliding else None,
                "rotary_dim": int(heads["head_dim"] * fields["partial_rotary_factors"][like]),
                "rope_theta": fields["rope_theta"][like],
                "has_rope_scaling": fields["rope_scaling"] is not None and kind in fields["yarn_only_types"],
                "is_moe": is_moe,
                "swiglu_limit": entry("swiglu_limits", layer, 0.0) if is_moe else 0.0,
                "swiglu_limit_shared": entry("swiglu_limits_shared", layer, 0.0),
            }
        )
    return layers


def check_layers(got: list[Mapping[str, Any]], want: list[dict[str, Any]], counters: Counters, where: str) -> None:
    """Field by field; a limit that does not clamp may be 0 or None."""
    if len(got) != len(want):
        raise ConformanceError(f"{where}: layers() has {len(got)} entries; want {len(want)}, MTP layers included")
    wrong = []
    for index, (found, layer) in enumerate(zip(got, want, strict=True)):
        for name in LAYER_FIELDS:
            value = found.get(name)
            if name.startswith("swiglu_limit"):
                value = value or 0.0
            same = value == layer[name] and isinstance(value, bool) == isinstance(layer[name], bool)
            if not same:
                wrong.append(f"layer {index} has {name} {found.get(name)!r}, want {layer[name]!r}")
    counters.add("fields", len(want) * len(LAYER_FIELDS))
    counters.compared(EXACTLY, len(wrong), 0, where)
    if wrong:
        raise ConformanceError(f"{where}: {len(wrong)} fields are wrong: {'; '.join(wrong[:6])}")


@clause("LAYERS-1")
def test_every_layer_is_built_as_the_config_says(model: GuardedModel, checkpoint: Path, counters: Counters) -> None:
    config = ModelConfig.from_file(checkpoint)
    want = [
        {
            **{name: getattr(layer, name) for name in LAYER_FIELDS if name != "has_rope_scaling"},
            "has_rope_scaling": layer.rope_scaling is not None,
        }
        for layer in config.layers + config.mtp_layers
    ]
    counters.add("kinds_of_layers", len({tuple(layer.values()) for layer in want}) - 1)
    check_layers(model.layers(), want, counters, "the checkpoint's layers")


@clause("LAYERS-1")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_is_built_as_another_config_says(
    engine: UnderTest, load: Load, tmp_path: Path, counters: Counters, seed: int, variant: str
) -> None:
    """Read from the lists, not from a layer's number or a list's length."""
    fields = tiny.fields_for(engine.profile, **VARIANTS[variant])
    save_checkpoint(tmp_path, fields, tiny.random_weights(fields, seed))
    want = wanted(fields)
    counters.add("kinds_of_layers", len({tuple(layer.values()) for layer in want}) - 1)
    check_layers(load(tmp_path).layers(), want, counters, variant)
