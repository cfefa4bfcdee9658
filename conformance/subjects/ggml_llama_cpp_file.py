"""Write a checkpoint as GGUF in float32, with the names and keys of llama.cpp's own converter (conversion/step3.py).

Keys and tensor names come from the ``gguf`` package's tables for the architecture step35. The tokenizer stays out:
token ids go in.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.checkpoint import Checkpoint
from reference.config import LayerConfig, ModelConfig
from reference.ops.rope import inverse_frequencies

from .installed import find

MTP_TENSORS = {
    "eh_proj": "NEXTN_EH_PROJ",
    "enorm": "NEXTN_ENORM",
    "hnorm": "NEXTN_HNORM",
    "shared_head.norm": "NEXTN_SHARED_HEAD_NORM",
    "shared_head.output": "NEXTN_SHARED_HEAD_HEAD",
}


def write_gguf(checkpoint: Path, path: Path) -> None:
    """Write every tensor, MTP layers included; norms hold ``1 + weight``, as llama.cpp's do."""
    gguf, opened = find("gguf", "gguf"), Checkpoint(checkpoint)
    config = opened.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.STEP35])
    _add_config(gguf, writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.STEP35, len(config.layers) + len(config.mtp_layers))
    for name, tensor in opened.read(list(opened.files)):
        added = 1 if name.endswith("norm.weight") else 0
        writer.add_tensor(_gguf_name(gguf, names, name), (tensor.float() + added).numpy())
    full = next(layer for layer in config.layers if layer.sliding_window is None)
    writer.add_tensor("rope_freqs.weight", _frequency_divisors(full).float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(gguf: Any, names: Any, published: str) -> str:
    """The name in the file; the table of the architecture lacks the tensors that only MTP layers have."""
    prefix, _, own = published.removesuffix(".weight").partition(".transformer.")
    own = own or prefix.rpartition(".")[2]
    if own in MTP_TENSORS:
        layer = published.split(".")[2]
        return str(gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[MTP_TENSORS[own]]].format(bid=layer)) + ".weight"
    with_suffix = f"{published}.bias" if published.endswith("router_bias") else published
    name: str | None = names.get_name(with_suffix, try_suffixes=(".weight", ".bias"))
    assert name is not None, published
    return name


def _add_config(gguf: Any, writer: Any, config: ModelConfig) -> None:
    """Everything that the architecture's loader asks for."""
    layers = (*config.layers, *config.mtp_layers)
    full, sliding = (next(layer for layer in layers if bool(layer.sliding_window) is kind) for kind in (False, True))
    dense, moe = (next(layer for layer in layers if layer.is_moe is kind) for kind in (False, True))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_block_count(len(layers))
    writer.add_nextn_predict_layers(len(config.mtp_layers))
    writer.add_leading_dense_block_count(sum(not layer.is_moe for layer in config.layers))
    writer.add_feed_forward_length(dense.intermediate_size)
    writer.add_head_count([layer.num_attention_heads for layer in layers])
    writer.add_head_count_kv([layer.num_key_value_heads for layer in layers])
    writer.add_key_length(moe.head_dim)
    writer.add_value_length(moe.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(full.rope_theta)
    writer.add_rope_freq_base_swa(sliding.rope_theta)
    writer.add_sliding_window(sliding.sliding_window)
    writer.add_sliding_window_pattern([layer.sliding_window is not None for layer in layers])
    writer.add_expert_count(moe.num_experts)
    writer.add_expert_used_count(moe.num_experts_per_tok)
    writer.add_expert_feed_forward_length(moe.intermediate_size)
    writer.add_expert_shared_feed_forward_length(moe.shared_expert_intermediate_size)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_scale(moe.routed_scaling_factor)
    writer.add_expert_weights_norm(True)
    writer.add_swiglu_clamp_exp([layer.swiglu_limit for layer in layers])
    writer.add_swiglu_clamp_shexp([layer.swiglu_limit_shared for layer in layers])


def _frequency_divisors(layer: LayerConfig) -> Tensor:
    """[head_dim / 2]: what llama.cpp divides a full layer's frequencies by; it reads the first rotary_dim / 2."""
    plain = inverse_frequencies(layer.rotary_dim, layer.rope_theta)
    divisors = plain / inverse_frequencies(layer.rotary_dim, layer.rope_theta, layer.rope_scaling)
    return torch.cat((divisors, torch.ones(layer.head_dim // 2 - len(divisors))))
