"""A geometry small enough to compute in milliseconds, with every kind of layer and no two equal axes."""

from typing import Any

TINY: dict[str, Any] = {
    "model_type": "step3p5",
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 5,
    "vocab_size": 72,
    "num_attention_heads": 4,
    "num_attention_groups": 2,
    "head_dim": 16,
    "attention_other_setting": {
        "attention_type": "sliding_attention",
        "num_attention_heads": 6,
        "num_attention_groups": 2,
        "head_dim": 16,
    },
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"] * 2,
    "sliding_window": 7,
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
    "moe_num_experts": 11,
    "moe_top_k": 3,
    "moe_intermediate_size": 24,
    "share_expert_dim": 32,
    "moe_router_scaling_factor": 3.0,
    "swiglu_limits": [0.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0],
    "swiglu_limits_shared": [0.0, 0.0, 0.0, 0.0, 0.7, 0.0, 0.0, 0.0],
    "num_nextn_predict_layers": 3,
    "bos_token_id": 0,
    "eos_token_id": [1],
}
