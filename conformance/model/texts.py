"""Text that the model was not trained on, where the checkpoint brings some; else text that it writes itself."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from reference.nano.measure import held_out_tokens

from ..oracle import OracleModel
from .contexts import written_prompt

Windows = Callable[[int, int, int], list[list[int]]]  # how many, tokens of each, seed
HELD_OUT = "heldout.jsonl"


@cache
def held_out(checkpoint: Path) -> tuple[int, ...] | None:
    """All of a checkpoint's held-out text; None where it brings none."""
    return tuple(held_out_tokens(checkpoint).tolist()) if (checkpoint / HELD_OUT).exists() else None


def windows(checkpoint: Path, oracle: OracleModel, count: int, length: int, seed: int) -> list[list[int]]:
    """Pieces of text, spread over the whole of it; other ones for each seed."""
    text = held_out(checkpoint) or tuple(
        token for number in range(count) for token in written_prompt(oracle, 1000 * seed + number)
    )
    stride = (len(text) - length) // count
    assert stride > 0, "windows are shorter than the text"
    offset = int(torch.randint(stride, (1,), generator=torch.Generator().manual_seed(seed)))
    return [list(text[start : start + length]) for start in range(offset, offset + count * stride, stride)]
