"""What each feature of the model is worth to the miniature: ``python -m reference.nano.features``.

A fault that leaves the miniature untouched cannot be caught by anyone who uses it. Each row here takes one feature away
or does it wrong, and reports what held-out text shows: the change of the mean negative log-likelihood (nats per token),
the mean KL divergence of next-token distributions from the true model's, and the share of positions whose most likely
token changes; for the MTP layers the same of the depth that the fault concerns most. The first rows have
nothing wrong but narrower arithmetic: a fault that does less than an engine's own arithmetic needs a wider engine, an
operator check or more text to be seen. Writes features.md beside the checkpoint.
"""

import argparse
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import Checkpoint
from ..model import Model
from .measure import held_out_tokens, windows
from .variants import VARIANTS


@dataclass(frozen=True)
class Effect:
    """What a variant does to one output."""

    feature: str
    change: str
    output: str
    nats: float  # change of the mean negative log-likelihood
    kl: float  # mean, nats
    flips: float  # share of positions whose most likely token changes


@torch.inference_mode()
def log_probabilities(model: Model, batch: Tensor, depth: int) -> Tensor:
    """[B, T, V] of the backbone (depth 0) or of MTP depth ``depth`` - 1, float64."""
    hidden = model.hidden(batch)
    logits = model.logits(hidden)
    for d in range(depth):
        inputs = batch[:, 1 + d :]
        hidden = model.mtp_hidden(d, hidden[:, : inputs.shape[1]], inputs)
        logits = model.mtp_logits(d, hidden)
    return logits.double().log_softmax(dim=-1)


def effects(checkpoint: Path, device: str, num_windows: int, length: int) -> Iterator[Effect]:
    """Judge every variant on the same held-out windows."""
    opened = Checkpoint(checkpoint)
    weights = opened.load(device, torch.float32)
    batch = windows(held_out_tokens(checkpoint), num_windows, length).to(device)
    truth: dict[int, Tensor] = {}
    for variant in VARIANTS:
        if variant.depth not in truth:
            model = Model(opened.config, weights, torch.float32, device)
            truth[variant.depth] = log_probabilities(model, batch, variant.depth)
        true, ahead = truth[variant.depth], 1 + variant.depth
        changed = variant.weights(opened.config, weights)
        model = variant.model(variant.config(opened.config), changed, variant.dtype, device, variant.ops)
        got = log_probabilities(model, batch, variant.depth)
        targets = batch[:, ahead:, None]

        def nats(log_p: Tensor, targets: Tensor = targets) -> float:
            return -float(log_p[:, : targets.shape[1]].gather(-1, targets).mean())

        yield Effect(
            variant.feature,
            variant.change,
            f"MTP {variant.depth}" if variant.depth else "model",
            nats(got) - nats(true),
            float((true.exp() * (true - got)).sum(dim=-1).mean()),
            float((true.argmax(dim=-1) != got.argmax(dim=-1)).double().mean()),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path(__file__).parent)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    args = parser.parse_args()
    rows = []
    for effect in effects(args.checkpoint, args.device, args.windows, args.length):
        rows.append(effect)
        print(effect, flush=True)
    cpu = f"a {os.cpu_count()}-core {platform.machine()} CPU"
    machine = torch.cuda.get_device_name() if args.device.startswith("cuda") else cpu
    (args.checkpoint / "features.md").write_text(
        "# What each feature is worth to the miniature\n\n"
        f"Made by `python -m reference.nano.features --device {args.device} --windows {args.windows} "
        f"--length {args.length}` on {machine}, torch {torch.__version__}, {time.strftime('%Y-%m-%d', time.gmtime())}, "
        f"on held-out text: {args.windows * args.length} tokens.\n\n"
        "Δ nats: change of the mean negative log-likelihood. KL: mean divergence of the next-token distribution "
        "from the true model's, in nats. Flips: share of positions whose most likely token changes.\n\n"
        "| feature | what is wrong | seen in | Δ nats | KL | flips |\n|---|---|---|---:|---:|---:|\n"
        + "".join(
            f"| {e.feature} | {e.change} | {e.output} | {e.nats:+.5f} | {e.kl:.1e} | {e.flips:.2%} |\n" for e in rows
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
