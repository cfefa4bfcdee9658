"""llama.cpp computes what the reference computes, from the embedded checkpoint rewritten as GGUF in float32.

The file holds what llama.cpp's own converter (conversion/step3.py) writes for the backbone: keys and tensor names come
from the ``gguf`` package's tables for the architecture step35. The tokenizer stays out: token ids go in.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reference.checkpoint import Checkpoint
from reference.config import LayerConfig, ModelConfig
from reference.ops.rope import inverse_frequencies

gguf = pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("llama_cpp")

PREFILL = 100  # tokens; past the sliding window
FLOAT32 = 0  # GGML_TYPE_F32
NO_FLASH_ATTENTION = 0  # its kernels on CPUs round to float16


@pytest.fixture(scope="module")
def gguf_file(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "nano.gguf"
    checkpoint = Checkpoint(nano)
    config = checkpoint.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.STEP35])
    add_config(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.STEP35, config.num_hidden_layers)
    mtp_prefixes = tuple(f"model.layers.{layer.index}." for layer in config.mtp_layers)
    for name, tensor in checkpoint.read([name for name in checkpoint.files if not name.startswith(mtp_prefixes)]):
        published = f"{name}.bias" if name.endswith("router_bias") else name
        gguf_name = names.get_name(published, try_suffixes=(".weight", ".bias"))
        assert gguf_name is not None, name
        added = 1 if name.endswith("norm.weight") else 0
        writer.add_tensor(gguf_name, (tensor.float() + added).numpy())
    writer.add_tensor("rope_freqs.weight", frequency_divisors(config.layers[0]).float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_config(writer: Any, config: ModelConfig) -> None:
    """Everything that the architecture's loader asks for."""
    layers, moe = config.layers, config.layers[-1]
    sliding = next(layer for layer in layers if layer.sliding_window)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_leading_dense_block_count(sum(not layer.is_moe for layer in layers))
    writer.add_feed_forward_length(layers[0].intermediate_size)
    writer.add_head_count([layer.num_attention_heads for layer in layers])
    writer.add_head_count_kv([layer.num_key_value_heads for layer in layers])
    writer.add_key_length(moe.head_dim)
    writer.add_value_length(moe.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(layers[0].rope_theta)
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


def frequency_divisors(layer: LayerConfig) -> Tensor:
    """[head_dim / 2]: what llama.cpp divides a full layer's frequencies by; it reads the first rotary_dim / 2."""
    plain = inverse_frequencies(layer.rotary_dim, layer.rope_theta)
    divisors = plain / inverse_frequencies(layer.rotary_dim, layer.rope_theta, layer.rope_scaling)
    return torch.cat((divisors, torch.ones(layer.head_dim // 2 - len(divisors))))


@pytest.fixture(scope="module")
def model(gguf_file: Path) -> Iterator[Any]:
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    opened = llama_cpp.llama_model_load_from_file(str(gguf_file).encode(), parameters)
    assert opened, f"{gguf_file}: llama.cpp refuses it; its log says why"
    yield opened
    llama_cpp.llama_model_free(opened)


@pytest.fixture
def context(model: Any) -> Iterator[Any]:
    """An empty cache in float32."""
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 256
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.type_k = parameters.type_v = FLOAT32
    parameters.flash_attn_type = NO_FLASH_ATTENTION
    opened = llama_cpp.llama_init_from_model(model, parameters)
    assert opened, "llama.cpp makes no context of this model; its log says why"
    yield opened
    llama_cpp.llama_free(opened)


def extend(context: Any, token_ids: list[int], start: int) -> Tensor:
    """Feed tokens that stand at ``start`` and after; [T, V]."""
    batch = llama_cpp.llama_batch_init(len(token_ids), 0, 1)
    batch.n_tokens = len(token_ids)
    for index, token in enumerate(token_ids):
        batch.token[index], batch.pos[index] = token, start + index
        batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
    status = llama_cpp.llama_decode(context, batch)
    llama_cpp.llama_batch_free(batch)
    assert status == 0, f"llama_decode: returned {status}; want 0"
    vocab = llama_cpp.llama_model_get_vocab(llama_cpp.llama_get_model(context))
    size = len(token_ids) * llama_cpp.llama_vocab_n_tokens(vocab)
    address = ctypes.cast(llama_cpp.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
    return torch.from_numpy(np.ctypeslib.as_array(address, (size,)).copy()).reshape(len(token_ids), -1)


def test_logits_of_a_whole_context_agree(context: Any, passages: list[Any], agree: Any) -> None:
    for passage in passages:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        agree(extend(context, passage.token_ids, 0), passage.logits)


def test_logits_of_single_tokens_after_a_cached_context_agree(context: Any, passages: list[Any], agree: Any) -> None:
    for passage in passages:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        rows = [extend(context, passage.token_ids[:PREFILL], 0)]
        rows += [extend(context, [passage.token_ids[at]], at) for at in range(PREFILL, len(passage.token_ids))]
        agree(torch.cat(rows), passage.logits)
