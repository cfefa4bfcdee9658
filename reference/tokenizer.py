"""Text to token ids and back, as a checkpoint's own files define it.

Step 3.5 uses byte-level BPE of the DeepSeek-V3 family: every ordinary token stands for bytes, so a character
may be spread over several tokens, and decoding joins bytes before it reads UTF-8. No token id is written
here: bos and eos come from ``config.json``, all others from ``tokenizer.json``.
"""

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders

# What a response parser reads. Some checkpoints flag these as special, and dropping them would glue reasoning
# and answer together; decoding keeps them whatever the flag says.
MARKUP_TOKENS = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>"})


class TokenizerError(ValueError):
    """A checkpoint's text files, or what was asked of them, cannot be used; the message names the culprit."""


class MissingTokenizerFileError(TokenizerError):
    """A file that the request needs is not in the checkpoint folder."""


class Tokenizer:
    """The tokenizer of one checkpoint; build it with :meth:`from_checkpoint`.

    Attributes:
        bos_id: id that begins every prompt.
        eos_ids: ids that end a response.
        vocab_size: rows of the embedding; may exceed the number of named tokens.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        bos_id: int,
        eos_ids: Iterable[int],
        vocab_size: int,
        chat_template: str | None,
    ) -> None:
        """Take the parts as read; the caller limits lengths, so stored truncation and padding are off."""
        backend.no_truncation()
        backend.no_padding()
        self.bos_id = bos_id
        self.eos_ids = frozenset(eos_ids)
        self.vocab_size = vocab_size
        self._backend = backend
        self._chat_template = chat_template
        self._added = backend.get_added_tokens_decoder()
        if not isinstance(backend.decoder, decoders.ByteLevel):
            raise TokenizerError(f"tokenizer.json: decoder is {backend.decoder!r}; want ByteLevel")
        if (named := backend.get_vocab_size(with_added_tokens=True)) > vocab_size:
            raise TokenizerError(f"tokenizer.json: {named} tokens; want at most vocab_size = {vocab_size}")
        for token_id in (bos_id, *self.eos_ids):
            self._check(token_id)
        if backend.id_to_token(bos_id) is None:
            raise TokenizerError(f"config.json: bos_token_id {bos_id} is not a token of tokenizer.json")

    @classmethod
    def from_checkpoint(cls, folder: str | Path) -> "Tokenizer":
        """Read ``tokenizer.json``, ``config.json`` and the chat template, if there is one.

        The template is ``chat_template.jinja`` or else ``chat_template`` in ``tokenizer_config.json``.

        Raises:
            MissingTokenizerFileError: ``tokenizer.json`` or ``config.json`` is not there.
            TokenizerError: a file is not what its name says.
        """
        folder = Path(folder)
        config = _read_json(folder / "config.json")
        path = folder / "tokenizer.json"
        text = _read_text(path)
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise TokenizerError(f"{path}: {error}; want a tokenizer in the tokenizers library's format") from error
        return cls(
            backend,
            bos_id=_integer(config, "bos_token_id"),
            eos_ids=_integers(config, "eos_token_id"),
            vocab_size=_integer(config, "vocab_size"),
            chat_template=_read_chat_template(folder),
        )

    @property
    def bos_token(self) -> str:
        """The text of the bos token, which chat templates ask for by this name."""
        return str(self._backend.id_to_token(self.bos_id))

    @property
    def chat_template(self) -> str:
        """The Jinja source of the chat template.

        Raises:
            MissingTokenizerFileError: the checkpoint has none.
        """
        if self._chat_template is None:
            raise MissingTokenizerFileError(
                "chat template: neither chat_template.jinja nor tokenizer_config.json has one; "
                "want one of them, or a prompt without chat turns"
            )
        return self._chat_template

    def token_id(self, token: str) -> int:
        """Look up the id of one token by its text, such as ``<think>``.

        Raises:
            TokenizerError: the tokenizer has no such token.
        """
        found = self._backend.token_to_id(token)
        if found is None:
            raise TokenizerError(f"tokenizer: {token!r} is not one token of this checkpoint")
        return int(found)

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        """Tokenise ``text``; special tokens spelled in it become their ids.

        Args:
            text: plain text, or a prompt that a chat template rendered.
            add_bos: begin with ``bos_id``; a text that begins with the bos token already gets no second one.

        Raises:
            TokenizerError: ``text`` holds half a surrogate pair, which has no UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"encode: lone surrogate at character {error.start}; want Unicode text") from error
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return [self.bos_id, *ids] if add_bos and ids[:1] != [self.bos_id] else ids

    def token_bytes(self, token_id: int, *, skip_special: bool = False) -> bytes:
        """Give the bytes that one token stands for; they need not be whole UTF-8 characters.

        An id that the embedding has but the tokenizer does not name (padding rows) stands for no bytes.

        Args:
            token_id: in [0, vocab_size).
            skip_special: special tokens stand for no bytes, except ``MARKUP_TOKENS``.

        Raises:
            TokenizerError: ``token_id`` is outside [0, vocab_size).
        """
        self._check(token_id)
        if (added := self._added.get(token_id)) is not None:
            skipped = skip_special and added.special and added.content not in MARKUP_TOKENS
            return b"" if skipped else added.content.encode()
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else bytes(_BYTE_OF_CHARACTER[character] for character in token)

    def decode(self, ids: Iterable[int], skip_special: bool) -> str:
        """Join the tokens' bytes and read them as UTF-8; U+FFFD replaces what is not valid.

        Raises:
            TokenizerError: an id is outside [0, vocab_size).
        """
        joined = b"".join(self.token_bytes(token_id, skip_special=skip_special) for token_id in ids)
        return joined.decode(errors="replace")

    def stream_decoder(self, skip_special: bool) -> "StreamDecoder":
        """Start decoding a response token by token."""
        return StreamDecoder(self, skip_special)

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"tokenizer: token id is {token_id}; want 0 <= id < {self.vocab_size} (vocab_size)")


class StreamDecoder:
    """Decode one response as its tokens arrive; the texts add up to ``Tokenizer.decode`` of all of them.

    Bytes that may still become a character are held back, so half a character is never shown.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Take one token; return the text that it completes, perhaps none.

        Raises:
            TokenizerError: ``token_id`` is outside [0, vocab_size).
        """
        return self._utf8.decode(self._tokenizer.token_bytes(token_id, skip_special=self._skip_special))

    def finish(self) -> str:
        """End the response; return U+FFFD if it ended inside a character. The decoder is then as new."""
        return self._utf8.decode(b"", final=True)


def _byte_alphabet() -> dict[str, int]:
    """Map byte-level BPE's characters to bytes: printable Latin-1 is itself, the rest count from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingTokenizerFileError(f"{path}: no such file; want a checkpoint folder that has it") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 at byte {error.start}; want UTF-8 text") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path}: not JSON, {error}; want a JSON object") from error
    if not isinstance(data, dict):
        raise TokenizerError(f"{path}: a JSON {type(data).__name__}; want a JSON object")
    return data


def _integer(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TokenizerError(f"config.json: {key} is {value!r}; want an integer")
    return value


def _integers(config: dict[str, Any], key: str) -> list[int]:
    value = config.get(key)
    values: list[Any] = value if isinstance(value, list) else [value]
    if not values or any(not isinstance(item, int) or isinstance(item, bool) for item in values):
        raise TokenizerError(f"config.json: {key} is {value!r}; want an integer or a list of them")
    return values


def _read_chat_template(folder: Path) -> str | None:
    """Find the template; a list of named ones, an older layout, is read at its entry ``default``."""
    if (path := folder / "chat_template.jinja").exists():
        return _read_text(path)
    if not (path := folder / "tokenizer_config.json").exists():
        return None
    template = _read_json(path).get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"{path}: chat_template is a {type(template).__name__}; want a string")
    return template
