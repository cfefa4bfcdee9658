"""Checkpoints that a check makes for itself: small, with every kind of layer, and written in milliseconds.

Sizes are ones that kernels like: widths of 64 and 128, blocks of 128 in FP8. No two axes that could be swapped are
equal.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from reference.checkpoint import EXPERT_NAMES, FP8_CONFIG, INDEX_NAME, SINGLE_NAME, save_checkpoint
from reference.config import ModelConfig
from reference.quantization import quantize_fp8_weight
from reference.synthetic import random_tensors

from ..profiles import Profile

NUM_LAYERS, NUM_DEPTHS = 5, 3
TINY: Mapping[str, Any] = {
    "model_type": "step3p5",
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": NUM_LAYERS,
    "vocab_size": 256,
    "num_attention_heads": 4,
    "num_attention_groups": 2,
    "head_dim": 64,
    "attention_other_setting": {
        "attention_type": "sliding_attention",
        "num_attention_heads": 6,
        "num_attention_groups": 2,
        "head_dim": 64,
    },
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"] * 2,
    "sliding_window": 16,
    "rope_theta": [5e6, 1e4, 1e4, 1e4] * 2,
    "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0] * 2,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 2.0,
        "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0,
        "high_freq_factor": 32.0,
    },
    "yarn_only_types": ["full_attention"],
    "max_position_embeddings": 128,
    "moe_layers_enum": "1,2,3,4",
    "moe_num_experts": 12,
    "moe_top_k": 4,
    "moe_intermediate_size": 128,
    "share_expert_dim": 64,
    "moe_router_scaling_factor": 3.0,
    "swiglu_limits": [0.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0],
    "swiglu_limits_shared": [0.0, 0.0, 0.0, 0.0, 0.7, 0.0, 0.0, 0.0],
    "num_nextn_predict_layers": NUM_DEPTHS,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": [1],
    "torch_dtype": "bfloat16",
}


def fields_for(profile: Profile, **changes: Any) -> dict[str, Any]:
    """The tiny config with some fields changed, in FP8 where the profile's experts are."""
    fp8 = {"quantization_config": FP8_CONFIG} if profile.expert_weights == "fp8" else {}
    return dict(TINY) | changes | fp8


def random_weights(fields: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Random tensors of a config, experts in FP8 where it says so; end tokens that no generation ever chooses."""
    dense_fields = {name: value for name, value in fields.items() if name != "quantization_config"}
    config = ModelConfig.from_dict(dense_fields)
    tensors = random_tensors(config, seed)
    tensors["lm_head.weight"][list(config.eos_token_ids)] = 0
    return with_fp8_experts(tensors) if "quantization_config" in fields else tensors


def with_fp8_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with routed experts as codes and scales."""
    stored = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(EXPERT_NAMES):
            quantised = quantize_fp8_weight(tensor)
            stored[name], stored[f"{name}_scale_inv"] = quantised.data, quantised.scale_inv
    return stored


def successor_weights(
    fields: Mapping[str, Any], seed: int, mistaken: Sequence[tuple[int, int]] = ()
) -> dict[str, Tensor]:
    """A model that counts: after token t comes t + 1 (after the last, 0), by a margin that no rounding reaches.

    No layer adds anything to the residual stream, so that the head sees the token's own embedding, and so does the head
    of every MTP depth.

    Args:
        mistaken: (depth, token): after this token, this depth drafts the token itself.
    """
    config = ModelConfig.from_dict(fields)
    tensors = random_weights(fields, seed)
    table = torch.randn(config.vocab_size, config.hidden_size, generator=torch.Generator().manual_seed(seed))
    follows = table.roll(1, dims=0)  # row t + 1 is the embedding of t
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = torch.zeros_like(tensor)
        elif tensor.ndim == 1 and not name.endswith("router_bias"):
            tensors[name] = torch.zeros_like(tensor)  # norms that scale by one
        elif name.endswith("eh_proj.weight"):
            tensors[name] = torch.eye(config.hidden_size, 2 * config.hidden_size).to(tensor.dtype)
        elif name.endswith("shared_head.output.weight"):
            depth = int(name.split(".")[2]) - config.num_hidden_layers
            head = follows.clone()
            for _, token in (pair for pair in mistaken if pair[0] == depth):
                head[(token + 1) % config.vocab_size] = 0
                head[token] += table[token]
            tensors[name] = head.to(tensor.dtype)
    tensors["model.embed_tokens.weight"] = table.to(torch.bfloat16)
    tensors["lm_head.weight"] = follows.to(torch.bfloat16)
    return tensors


def write(folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """One file, in the published format; returns the folder."""
    save_checkpoint(folder, fields, tensors)
    return folder


def write_sharded(folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], parts: int) -> Path:
    """Several files and an index; neighbours of a layer land in different files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    weight_map: dict[str, str] = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        names = list(tensors)[part::parts]
        save_file({name: tensors[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items(), reverse=True))}
    (folder / INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")
    return folder


def write_in_order(
    folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], names: Sequence[str]
) -> Path:
    """One file whose header and data follow ``names``; the library that writes safetensors sorts them by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    dtypes = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name in names:
        tensor = tensors[name].contiguous()
        start = len(data)
        data += tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": dtypes[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, len(data)],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / SINGLE_NAME).write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    return folder
