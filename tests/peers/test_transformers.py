"""transformers reads the embedded checkpoint with its own key mapping, config, tokenizer and chat template."""

from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.subjects import hf_transformers
from reference import chat
from reference.config import ModelConfig
from reference.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers", minversion="5.17")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Wetter für <eine> Stadt & ihre Umgebung",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": [1, None, True]}}}
QUESTION = {"role": "user", "content": "Wie wird das Wetter?"}
CALLING = {"role": "assistant", "content": "", "reasoning_content": "Look it up.", "tool_calls": [CALL, CALL]}
RESULT = {"role": "tool", "content": "sunny"}
ANSWER = {"role": "assistant", "content": "<think>\nIt is sunny.\n</think>\nSunny."}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "one_question": ([QUESTION], None),
    "system_and_history": ([{"role": "system", "content": "Be brief."}, QUESTION, ANSWER, QUESTION], None),
    "tools_offered": ([{"role": "system", "content": "Be brief."}, QUESTION], [WEATHER]),
    "tools_called": ([QUESTION, CALLING, RESULT, RESULT], [WEATHER]),
    "tools_answered": ([QUESTION, CALLING, RESULT, RESULT, ANSWER, QUESTION], [WEATHER]),
}


@pytest.fixture(scope="module")
def text_config(nano: Path) -> Any:
    return transformers.AutoConfig.from_pretrained(nano)


@pytest.fixture(scope="module")
def fast_tokenizer(nano: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(nano)


def test_every_tensor_of_the_text_model_finds_its_place(nano: Path) -> None:
    model, info = hf_transformers.load(nano, torch.float32)
    absent = [name for name in info["missing_keys"] if "vision_model" not in name and "projector" not in name]
    assert not absent
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    head, embedding = model.lm_head.weight, model.get_input_embeddings().weight
    assert head.data_ptr() != embedding.data_ptr()


def test_the_config_means_the_same(nano: Path, text_config: Any) -> None:
    config = ModelConfig.from_file(nano)
    assert text_config.layer_types == [layer.attention_type for layer in config.layers]
    assert [kind == "sparse" for kind in text_config.mlp_layer_types] == [layer.is_moe for layer in config.layers]
    assert text_config.num_nextn_predict_layers == config.num_nextn_predict_layers
    assert tuple(text_config.eos_token_id) == config.eos_token_ids
    for layer in config.layers:
        rope = text_config.rope_parameters[layer.attention_type]
        assert rope["rope_theta"] == layer.rope_theta
        assert rope["partial_rotary_factor"] * text_config.head_dim == layer.rotary_dim
        assert (rope["rope_type"] == "llama3") == (layer.rope_scaling is not None)


def test_the_tokenizer_gives_the_same_ids(fast_tokenizer: Any, tokenizer: Tokenizer, held_out: list[str]) -> None:
    for text in held_out:
        ids = tokenizer.encode(text, add_bos=False)
        assert fast_tokenizer(text, add_special_tokens=False).input_ids == ids
        assert fast_tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_tokenizer_knows_the_same_special_tokens(fast_tokenizer: Any, tokenizer: Tokenizer) -> None:
    assert fast_tokenizer.bos_token_id == tokenizer.bos_id
    assert fast_tokenizer.eos_token_id in tokenizer.eos_ids
    assert len(fast_tokenizer) <= tokenizer.vocab_size


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_chat_template_renders_the_same(
    fast_tokenizer: Any, tokenizer: Tokenizer, name: str, add_generation_prompt: bool
) -> None:
    messages, tools = CONVERSATIONS[name]
    ours = chat.render(tokenizer.chat_template, messages, tools, add_generation_prompt, bos_token=tokenizer.bos_token)
    options = {"tools": tools, "add_generation_prompt": add_generation_prompt}
    assert fast_tokenizer.apply_chat_template(messages, tokenize=False, **options) == ours
    theirs = fast_tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    assert theirs["input_ids"] == tokenizer.encode(ours, add_bos=True)
