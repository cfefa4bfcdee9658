"""The tokenizer: ids come from the checkpoint, bos is never doubled, streams never split a character."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from reference.tokenizer import MARKUP_TOKENS, MissingTokenizerFileError, Tokenizer, TokenizerError

BAR = "\uff5c"  # DeepSeek's fullwidth bar; the ChatML tokens have a plain one
CONTROL = [f"<{BAR}begin▁of▁sentence{BAR}>", f"<{BAR}end▁of▁sentence{BAR}>", f"<{BAR}▁pad▁{BAR}>"]
CONTROL += ["<|im_start|>", "<|im_end|>"]
MARKUP = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
BOS = CONTROL[0]
VOCAB_SIZE = 400  # more rows than tokens, as published checkpoints have


def train_backend() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=CONTROL + MARKUP,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the capital of France is Paris", "the theme of the hour"] * 4, trainer)
    return backend


def write_checkpoint(folder: Path, **config: Any) -> Path:
    train_backend().save(str(folder / "tokenizer.json"))
    full = {"bos_token_id": 0, "eos_token_id": [1, 2, 4], "vocab_size": VOCAB_SIZE, **config}
    (folder / "config.json").write_text(json.dumps(full), encoding="utf-8")
    return folder


BACKEND = train_backend()
TOKENIZER = Tokenizer(train_backend(), bos_id=0, eos_ids=[1, 2, 4], vocab_size=VOCAB_SIZE, chat_template=None)
ANY_IDS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.mark.parametrize(("eos", "ids"), [(2, {2}), ([1, 2, 4], {1, 2, 4})])
def test_bos_and_eos_come_from_the_config(tmp_path: Path, eos: int | list[int], ids: set[int]) -> None:
    tokenizer = Tokenizer.from_checkpoint(write_checkpoint(tmp_path, eos_token_id=eos))
    assert tokenizer.bos_id == 0
    assert tokenizer.bos_token == BOS
    assert tokenizer.eos_ids == ids
    assert tokenizer.vocab_size == VOCAB_SIZE


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (write_checkpoint(tmp_path) / name).unlink()
    with pytest.raises(MissingTokenizerFileError, match=name):
        Tokenizer.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bos_token_id": None}, "bos_token_id is None; want an integer"),
        ({"bos_token_id": 399}, "bos_token_id 399 is not a token"),
        ({"eos_token_id": []}, r"eos_token_id is \[\]"),
        ({"eos_token_id": [1, "2"]}, "want an integer or a list"),
        ({"eos_token_id": 400}, "token id is 400"),
        ({"vocab_size": 20}, "want at most vocab_size = 20"),
    ],
)
def test_an_unusable_config_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_checkpoint(write_checkpoint(tmp_path, **config))


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 1}'])
def test_a_broken_tokenizer_file_is_refused(tmp_path: Path, text: str) -> None:
    (write_checkpoint(tmp_path) / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.from_checkpoint(tmp_path)


def test_a_decoder_that_is_not_byte_level_is_refused() -> None:
    backend = train_backend()
    backend.decoder = decoders.Fuse()
    with pytest.raises(TokenizerError, match="want ByteLevel"):
        Tokenizer(backend, bos_id=0, eos_ids=[1], vocab_size=VOCAB_SIZE, chat_template=None)


def test_the_template_file_goes_before_the_tokenizer_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    with pytest.raises(MissingTokenizerFileError, match="chat template"):
        _ = Tokenizer.from_checkpoint(tmp_path).chat_template
    listed = {"chat_template": [{"name": "other", "template": "o"}, {"name": "default", "template": "d"}]}
    for stored, want in [({"chat_template": "inline"}, "inline"), (listed, "d")]:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(stored), encoding="utf-8")
        assert Tokenizer.from_checkpoint(tmp_path).chat_template == want
    (tmp_path / "chat_template.jinja").write_text("file ▁", encoding="utf-8")
    assert Tokenizer.from_checkpoint(tmp_path).chat_template == "file ▁"


def test_stored_truncation_and_padding_do_not_touch_a_prompt(tmp_path: Path) -> None:
    backend = train_backend()
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    write_checkpoint(tmp_path)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "the capital of France"
    assert Tokenizer.from_checkpoint(tmp_path).encode(text, add_bos=False) == BACKEND.encode(text).ids


def test_bos_is_added_once() -> None:
    plain = TOKENIZER.encode("the", add_bos=False)
    assert TOKENIZER.encode("the", add_bos=True) == [0, *plain]
    assert TOKENIZER.encode(BOS + "the", add_bos=True) == [0, *plain]
    assert TOKENIZER.encode(BOS + "the", add_bos=False) == [0, *plain]
    assert TOKENIZER.encode("", add_bos=True) == [0]


def test_special_tokens_in_text_become_their_ids() -> None:
    ids = TOKENIZER.encode("<|im_start|>the</think><tool_call>", add_bos=False)
    assert ids[0] == TOKENIZER.token_id("<|im_start|>")
    assert ids[-2:] == [TOKENIZER.token_id("</think>"), TOKENIZER.token_id("<tool_call>")]


def test_an_unknown_token_and_half_a_surrogate_pair_are_refused() -> None:
    with pytest.raises(TokenizerError, match="'<thought>' is not one token"):
        TOKENIZER.token_id("<thought>")
    with pytest.raises(TokenizerError, match="lone surrogate at character 2"):
        TOKENIZER.encode("ab\ud800", add_bos=False)


@given(TEXTS)
def test_decoding_undoes_encoding(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_bos=False), skip_special=False) == text


@given(ANY_IDS)
def test_decoding_agrees_with_the_tokenizers_library(ids: list[int]) -> None:
    assert TOKENIZER.decode(ids, skip_special=False) == BACKEND.decode(ids, skip_special_tokens=False)


def test_skipping_drops_control_tokens_but_keeps_markup() -> None:
    text = "".join(CONTROL) + "a<think>b</think>c<tool_call>d</tool_call>e"
    ids = TOKENIZER.encode(text, add_bos=False)
    assert TOKENIZER.decode(ids, skip_special=True) == "a<think>b</think>c<tool_call>d</tool_call>e"
    assert TOKENIZER.decode(ids, skip_special=False) == text
    assert set(MARKUP) >= MARKUP_TOKENS


def test_padding_rows_decode_to_nothing_and_ids_outside_the_vocabulary_are_refused() -> None:
    assert TOKENIZER.decode([VOCAB_SIZE - 1], skip_special=False) == ""
    for token_id in (-1, VOCAB_SIZE):
        with pytest.raises(TokenizerError, match=f"token id is {token_id}"):
            TOKENIZER.decode([token_id], skip_special=False)


@given(ANY_IDS, st.booleans())
def test_a_stream_adds_up_to_the_whole(ids: list[int], skip_special: bool) -> None:
    stream = TOKENIZER.stream_decoder(skip_special)
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join([*pieces, stream.finish()]) == TOKENIZER.decode(ids, skip_special)


@given(TEXTS.filter(lambda text: "\ufffd" not in text))
def test_a_stream_of_valid_text_never_shows_half_a_character(text: str) -> None:
    stream = TOKENIZER.stream_decoder(skip_special=False)
    shown = ""
    for token_id in TOKENIZER.encode(text, add_bos=False):
        shown += stream.push(token_id)
        assert text.startswith(shown)
    assert shown == text
    assert stream.finish() == ""


def test_a_stream_cut_inside_a_character_says_so_only_at_its_end() -> None:
    *all_but_one, _ = TOKENIZER.encode("a語", add_bos=False)
    stream = TOKENIZER.stream_decoder(skip_special=False)
    assert [stream.push(token_id) for token_id in all_but_one] == ["a", "", ""]
    assert stream.finish() == "\ufffd"
    assert stream.push(TOKENIZER.encode("b", add_bos=False)[0]) == "b"
