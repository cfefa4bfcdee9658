"""Held-out figures of the miniature: perplexity beside count models, and acceptance of its drafts."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..checkpoint import Checkpoint
from ..generate import Generation, generate
from ..model import Model
from ..tokenizer import Tokenizer

WINDOW = 512  # tokens of context that a held-out window offers


def load(checkpoint: Path, device: str = "cpu") -> Model:
    """The checkpoint's model in float32."""
    opened = Checkpoint(checkpoint)
    return Model(opened.config, opened.load(device, torch.float32), torch.float32, device)


def held_out_tokens(checkpoint: Path) -> Tensor:
    """All held-out documents in one row, each opened by the start token."""
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    lines = (checkpoint / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [tokenizer.encode(json.loads(line)["text"], add_bos=True) for line in lines]
    return torch.tensor([token for row in rows for token in row])


def windows(tokens: Tensor, count: int, length: int = WINDOW) -> Tensor:
    """``count`` windows [count, length], spread evenly over the text."""
    starts = torch.linspace(0, len(tokens) - length, count).long()
    return tokens[starts[:, None] + torch.arange(length)]


@torch.inference_mode()
def depth_nats(model: Model, batch: Tensor) -> list[float]:
    """Mean negative log-likelihood of the head and of each MTP depth over windows [B, T]."""
    batch = batch.to(model.device)
    hidden = model.hidden(batch)
    nats = [_nats(model.logits(hidden[:, :-1]), batch[:, 1:])]
    for depth in range(model.config.num_nextn_predict_layers):
        inputs = batch[:, 1 + depth :]
        hidden = model.mtp_hidden(depth, hidden[:, : inputs.shape[1]], inputs)
        nats.append(_nats(model.mtp_logits(depth, hidden[:, :-1]), batch[:, 2 + depth :]))
    return nats


def _nats(logits: Tensor, targets: Tensor) -> float:
    return float(cross_entropy(logits.flatten(0, -2).double(), targets.flatten()))


def count_model_nats(train: Tensor, held_out: Tensor, vocab_size: int) -> dict[str, float]:
    """Mean negative log-likelihood of a unigram and a bigram model with additive and back-off smoothing."""
    unigram = torch.bincount(train, minlength=vocab_size).double() + 1
    unigram /= unigram.sum()
    pairs = torch.bincount(train[:-1] * vocab_size + train[1:], minlength=vocab_size**2).view(vocab_size, -1).double()
    strength = 20.0  # pseudo-counts of the unigram model in each row
    bigram = (pairs + strength * unigram) / (pairs.sum(dim=1, keepdim=True) + strength)
    return {
        "unigram": float(-unigram[held_out].log().mean()),
        "bigram": float(-bigram[held_out[:-1], held_out[1:]].log().mean()),
    }


@torch.inference_mode()
def continuations(
    model: Model, tokens: Tensor, prompts: int = 16, prompt_length: int = 96, new_tokens: int = 64
) -> list[Generation]:
    """Continue held-out text greedily, with a draft of every MTP depth in each step."""
    depths = model.config.num_nextn_predict_layers
    return [
        generate(model, prompt, new_tokens, mtp=depths) for prompt in windows(tokens, prompts, prompt_length).tolist()
    ]


def acceptance(made: Sequence[Generation]) -> list[float]:
    """Share of drafts accepted at each position, over several generations."""
    drafted, accepted = (
        [sum(counts) for counts in zip(*(getattr(one, name) for one in made), strict=True)]
        for name in ("drafted_per_position", "accepted_per_position")
    )
    return [round(a / d, 4) for a, d in zip(accepted, drafted, strict=True)]


def steps_of(made: Generation) -> int:
    """Steps after the first token: each brings the drafts that it accepts, and one token."""
    return len(made.tokens) - 1 - sum(made.accepted_per_position)


def held_out_figures(checkpoint: Path, train_tokens: Tensor, device: str) -> dict[str, Any]:
    """What ``training.json`` records: perplexities per token, and acceptance per position."""
    model = load(checkpoint, device)
    tokens = held_out_tokens(checkpoint)
    nats = depth_nats(model, windows(tokens, 32))
    counts = count_model_nats(train_tokens, tokens, model.config.vocab_size)
    guess = torch.bincount(tokens).max() / len(tokens)
    return {
        "tokens": len(tokens),
        "perplexity": round(math.exp(nats[0]), 3),
        "mtp_perplexity": [round(math.exp(n), 3) for n in nats[1:]],
        "unigram_perplexity": round(math.exp(counts["unigram"]), 3),
        "bigram_perplexity": round(math.exp(counts["bigram"]), 3),
        "acceptance_per_position": acceptance(continuations(model, tokens)),
        "most_frequent_token_share": round(float(guess), 4),
    }
