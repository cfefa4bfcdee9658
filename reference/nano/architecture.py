"""The miniature's config.json, and the numbers it starts training from.

The published geometry in small: three sliding layers to a full one, the last layer full, one dense layer first, clamps
on the last two MoE layers, three MTP layers; query sizes two and three times the hidden size, as published. Clamp
limits, theta, epsilon and scaling factor are the published ones, because some engines know no others.
"""

from typing import Any

import torch
from torch import Tensor

from ..checkpoint import expected_tensors
from ..config import ModelConfig

SPECIAL_TOKENS = (
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<|im_start|>", "<|im_end|>",
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip
BOS, EOS, PAD, IM_END = 0, 1, 2, 4

_FULL_THEN_SLIDING = ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"]

CONFIG: dict[str, Any] = {
    "architectures": ["Step3p5ForCausalLM"],
    "model_type": "step3p5",
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 5,
    "vocab_size": 768,
    "torch_dtype": "bfloat16",
    "num_attention_heads": 8,
    "num_attention_groups": 2,
    "head_dim": 64,
    "attention_other_setting": {
        "attention_type": "sliding_attention",
        "num_attention_heads": 12,
        "num_attention_groups": 2,
        "head_dim": 64,
        "true_head_dim": 64,
    },
    "layer_types": _FULL_THEN_SLIDING * 2,
    "sliding_window": 32,
    "rope_theta": [5000000.0, 10000.0, 10000.0, 10000.0] * 2,
    "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0] * 2,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 2.0,
        "original_max_position_embeddings": 1024,
        "low_freq_factor": 1.0,
        "high_freq_factor": 32.0,
    },
    "yarn_only_types": ["full_attention"],
    "use_rope_layers": [],
    "max_seq_len": 2048,
    "max_position_embeddings": 2048,
    "use_qk_norm": True,
    "use_head_wise_attn_gate": True,
    "sink": False,
    "att_impl_type": "GQA",
    "use_moe": True,
    "moe_layers_enum": "1,2,3,4",
    "moe_layer_offset": 0,
    "moe_every_n_layer": 1,
    "moe_num_experts": 24,
    "moe_top_k": 8,
    "moe_intermediate_size": 128,
    "share_expert_dim": 128,
    "moe_router_activation": "sigmoid",
    "use_moe_router_bias": True,
    "norm_expert_weight": True,
    "moe_router_scaling_factor": 3.0,
    "need_fp32_gate": True,
    "swiglu_limits": [0.0, 0.0, 0.0, 7.0, 7.0, 0.0, 0.0, 0.0],
    "swiglu_limits_shared": [0.0, 0.0, 0.0, 0.0, 16.0, 0.0, 0.0, 0.0],
    "zero_centered": True,
    "rms_norm_eps": 1e-05,
    "num_nextn_predict_layers": 3,
    "tie_word_embeddings": False,
    "bos_token_id": BOS,
    "eos_token_id": [EOS, PAD, IM_END],
    "pad_token_id": EOS,
}

EMBEDDING_RMS = 0.02  # so small that the norms' epsilon matters where embeddings enter
LOUD_NORM = 3.0  # zero-centred, so inputs of a loud layer's feed-forward are four times as large as elsewhere
LOUD_SHARED = 3.5  # and its shared expert's gate and up weights this much larger again


def initial_tensors(seed: int) -> dict[str, Tensor]:
    """Weights to train from, float32, by checkpoint name.

    Layers with a clamp, and their shared experts, start loud: some of their activations lie beyond 7 and 16, so that
    the clamp shapes the model from the first step on.
    """
    config = ModelConfig.from_dict(CONFIG)
    generator = torch.Generator().manual_seed(seed)
    loud = {layer.index for layer in config.layers if layer.swiglu_limit}
    residual_scale = (2 * config.num_hidden_layers) ** -0.5
    tensors = {}
    for name, spec in expected_tensors(config).items():
        weight = torch.randn(spec.shape, generator=generator)
        parts = name.split(".")
        is_loud = parts[1] == "layers" and int(parts[2]) in loud
        if len(spec.shape) == 1:  # norms and the router bias
            weight = 0.1 * weight if "norm" in name else torch.zeros_like(weight)
            if is_loud and "post_attention_layernorm" in name:
                weight += LOUD_NORM
        elif "embed_tokens" in name:
            weight *= EMBEDDING_RMS
        else:
            weight *= spec.shape[-1] ** -0.5
            if "o_proj" in name or "down_proj" in name:
                weight *= residual_scale
            if is_loud and "share_expert" in name:
                weight *= LOUD_SHARED if "down" not in name else LOUD_SHARED**-2 / (1 + LOUD_NORM) ** 2
            elif is_loud and "moe.down_proj" in name:
                weight /= (1 + LOUD_NORM) ** 2
            elif is_loud and "moe.gate.weight" in name:
                weight /= 1 + LOUD_NORM
        tensors[name] = weight
    return tensors
