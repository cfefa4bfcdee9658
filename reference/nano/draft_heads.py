"""What draft heads in fewer bits cost in acceptance: ``python -m reference.nano.draft_heads``.

Each MTP depth has an output head of its own, [V, D], which a step with drafts reads whole. Here the miniature continues
the same held-out prompts with its heads as stored, in FP8 and in int4, in float32 but for these heads. Greedy, so that
the text is the same and only the number of steps differs. Writes draft_heads.md beside the checkpoint.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import DRAFT_HEAD_NAME, Checkpoint
from ..config import ModelConfig
from ..engine import build_model
from ..generate import Generation
from ..quantization import FORMATS, quantization_error, weight_bytes
from .measure import acceptance, continuations, held_out_tokens, steps_of

NANO = Path(__file__).parent
PUBLISHED = NANO.parent / "configs" / "step_3_5_flash.json"


@dataclass(frozen=True)
class Cost:
    """What a format of the draft heads does.

    Attributes:
        snr_db: signal to noise of the rounded heads, mean over depths; None where nothing is rounded.
        published_bytes: of all draft heads of the published model.
        accepted: share of drafts that held, by position.
        tokens_per_step: after the first token of each text.
        more_steps: share of steps more than with the heads as stored; error: one standard error of it, over texts.
        other_texts: texts that differ from those with the heads as stored.
    """

    format: str
    snr_db: float | None
    published_bytes: int
    accepted: list[float]
    tokens_per_step: float
    more_steps: float
    error: float
    other_texts: int


def costs(checkpoint: Path, prompts: int, new_tokens: int) -> list[Cost]:
    """Measure the heads as stored, and in each format, on the same prompts."""
    opened, tokens = Checkpoint(checkpoint), held_out_tokens(checkpoint)
    stored = _continued(opened, None, tokens, prompts, new_tokens)
    found = [_cost("bf16", None, stored, stored)]
    for format in FORMATS:
        rounded = _continued(opened, format, tokens, prompts, new_tokens)
        found.append(_cost(format, _snr_db(opened, format), rounded, stored))
    return found


def _continued(
    opened: Checkpoint, format: str | None, tokens: Tensor, prompts: int, new_tokens: int
) -> list[Generation]:
    model = build_model(opened, "float32", draft_heads=format)
    return continuations(model, tokens, prompts, new_tokens=new_tokens)


def _cost(format: str, snr_db: float | None, made: Sequence[Generation], stored: Sequence[Generation]) -> Cost:
    published = ModelConfig.from_file(PUBLISHED)
    shape = (published.vocab_size, published.hidden_size)
    one_head = weight_bytes(format, shape) if format in FORMATS else 2 * shape[0] * shape[1]
    steps, before = [steps_of(one) for one in made], [steps_of(one) for one in stored]
    more = [now - then for now, then in zip(steps, before, strict=True)]
    return Cost(
        format,
        snr_db,
        one_head * published.num_nextn_predict_layers,
        acceptance(made),
        sum(len(one.tokens) - 1 for one in made) / sum(steps),
        sum(more) / sum(before),
        statistics.stdev(more) * len(more) ** 0.5 / sum(before),
        sum(one.tokens != other.tokens for one, other in zip(made, stored, strict=True)),
    )


def _snr_db(opened: Checkpoint, format: str) -> float:
    heads = [opened.layer(layer.index)[DRAFT_HEAD_NAME] for layer in opened.config.mtp_layers]
    return statistics.fmean(quantization_error(head, FORMATS[format].quantize(head)).snr_db for head in heads)


def page(found: Sequence[Cost], command: str, prompts: int, new_tokens: int) -> str:
    """Markdown of what was found."""
    rows = []
    for one in found:
        noise = "-" if one.snr_db is None else f"{one.snr_db:.1f}"
        shares = " | ".join(f"{share:.1%}".replace("%", " %") for share in one.accepted)
        more = "-" if one.snr_db is None else f"{100 * one.more_steps:+.1f} ± {100 * one.error:.1f} %"
        size = f"{one.published_bytes / 1e9:.2f}"
        rows.append(f"| {one.format} | {size} | {noise} | {shares} | {one.tokens_per_step:.3f} | {more} |")
    return (
        "# What draft heads in fewer bits cost in acceptance\n\n"
        f"Made by `{command}` on a {os.cpu_count()}-core {platform.machine()} CPU, torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}: {prompts} prompts of held-out text, up to {new_tokens} new "
        "tokens each, greedy, three drafts a step, float32 but for the heads.\n\n"
        "GB: all three heads at the published shape, read by each step with three drafts. dB: signal to noise of the "
        "miniature's rounded heads. Steps: more than with bf16 heads for the same text, ± one standard error over "
        f"texts. Texts that differ: {', '.join(f'{one.other_texts} in {one.format}' for one in found[1:])}.\n\n"
        "| heads | GB | dB | accepted at 1 | at 2 | at 3 | tokens a step | steps |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|\n" + "\n".join(rows) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=NANO)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    args = parser.parse_args()
    command = f"python -m reference.nano.draft_heads --prompts {args.prompts} --new-tokens {args.new_tokens}"
    text = page(costs(args.checkpoint, args.prompts, args.new_tokens), command, args.prompts, args.new_tokens)
    (args.checkpoint / "draft_heads.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
