"""Text to measure on: random tokens would falsify which experts are chosen, and how many drafts are accepted.

Each use takes another window of the text, so that no cache of prompts can help.
"""

import json
from pathlib import Path
from typing import Any

from reference import config
from reference.tokenizer import Tokenizer

PACKAGED = Path(config.__file__).parent / "nano/heldout.jsonl"  # source of CPython; nothing was trained on it
HUB = "hf:"
STRIDE = 1013  # tokens between the beginnings of two windows: a prime, so that windows differ for a long time
MOST_CHARACTERS = 4_000_000  # of a hub set: a million tokens or so


class Prompts:
    """A text in a model's tokens.

    Attributes:
        source: where the text is from.
    """

    def __init__(self, token_ids: list[int], source: str) -> None:
        if not token_ids:
            raise ValueError(f"prompts: {source} has no tokens; want text")
        self._ids, self.source, self._number = token_ids, source, 0

    def window(self, length: int) -> list[int]:
        """The next ``length`` tokens to measure on; a text that is shorter goes on from its beginning."""
        start = self._number * STRIDE % len(self._ids)
        self._number += 1
        found = self._ids[start : start + length]
        while len(found) < length:
            found += self._ids[: length - len(found)]
        return found


def load_prompts(source: str | None, checkpoint: Path) -> Prompts:
    """Read text and tokenise it as the checkpoint does.

    Args:
        source: None: the packaged text; a file of plain text, or .jsonl with a field ``text`` in each line; or
            hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]] of the hub, which needs ``datasets``.

    Raises:
        ValueError: there is no such text, or it cannot be read.
    """
    name = source or "packaged"
    text = _hub(source) if source and source.startswith(HUB) else _file(Path(source) if source else PACKAGED)
    return Prompts(Tokenizer.from_checkpoint(checkpoint).encode(text, add_bos=False), name)


def _file(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".jsonl":
            return text
        return "\n".join(json.loads(line)["text"] for line in text.splitlines() if line.strip())
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"prompts: {path} cannot be read ({error}); want text, or .jsonl with a field text") from error


def _hub(source: str) -> str:
    """Documents of a set, as they stream in."""
    try:
        import datasets
    except ImportError:
        wanted = "pip install 'step35-suite[data]', or a file"
        raise ValueError(f"prompts: datasets is not installed; want {wanted}") from None
    name, *rest = source.removeprefix(HUB).split(":")
    subset, split, column = [*rest, "", "", ""][:3]
    rows: Any = datasets.load_dataset(name, subset or None, split=split or "train", streaming=True)
    parts, count = [], 0
    for row in rows:
        if (column or "text") not in row:
            raise ValueError(f"prompts: {source} has no column {column or 'text'}; it has {', '.join(row)}")
        parts.append(str(row[column or "text"]))
        count += len(parts[-1])
        if count >= MOST_CHARACTERS:
            break
    return "\n".join(parts)
