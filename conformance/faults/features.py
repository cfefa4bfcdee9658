"""What each feature of the model is worth to the miniature: ``python -m conformance.faults.features``.

A fault that leaves the miniature untouched cannot be caught by anyone who uses it. Each row here is a fault of the
catalogue that takes one feature away or does it wrong, and reports what held-out text shows: the change of the mean
negative log-likelihood (nats per token), the mean KL divergence of next-token distributions from the true model's, and
the share of positions whose most likely token changes; for the MTP layers the same of the depth that the fault concerns
most. The first rows have nothing wrong but narrower arithmetic: a fault that does less than an engine's own arithmetic
needs a wider engine, an operator check or more text to be seen. Writes features.md beside the checkpoint.
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

from reference.checkpoint import Checkpoint
from reference.engine import build_model
from reference.model import Model
from reference.nano.measure import held_out_tokens, windows

from .catalogue import EQUIVALENTS, FAULTS, Change

NANO = Path(__file__).parents[2] / "reference" / "nano"
ARITHMETIC = {  # profiles in which nothing is wrong
    "bf16": "bfloat16 activations",
    "w8a16": "bfloat16 activations, FP8 experts",
    "fp8": "bfloat16 activations, FP8 experts on FP8 activations",
    "w4a16": "bfloat16 activations, int4 experts",
}


@dataclass(frozen=True)
class Effect:
    """What a change does to one output."""

    feature: str
    change: str
    output: str
    nats: float  # change of the mean negative log-likelihood
    kl: float  # mean, nats
    flips: float  # share of positions whose most likely token changes


def measured() -> list[Change]:
    """The faults and equivalents that have a feature to their name, those of one feature together."""
    changes: list[Change] = [c for c in (*FAULTS.values(), *EQUIVALENTS.values()) if c.feature is not None]
    features = list(dict.fromkeys(change.feature for change in changes))
    return sorted(changes, key=lambda change: features.index(change.feature))


def changed(model: Model, change: Change) -> Model:
    """A model like the given one with a change."""
    ops = change.operators(model.ops)
    return change.of_model(Model(model.config, model.weights, model.dtype, model.device, ops))


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
    """Judge every change on the same held-out windows."""
    opened = Checkpoint(checkpoint)
    right = build_model(opened, "float32", device)
    batch = windows(held_out_tokens(checkpoint), num_windows, length).to(device)
    truth: dict[int, Tensor] = {}

    def effect(feature: str, what: str, model: Model, depth: int) -> Effect:
        if depth not in truth:
            truth[depth] = log_probabilities(right, batch, depth)
        true, got = truth[depth], log_probabilities(model, batch, depth)
        targets = batch[:, 1 + depth :, None]

        def nats(log_p: Tensor) -> float:
            return -float(log_p[:, : targets.shape[1]].gather(-1, targets).mean())

        return Effect(
            feature,
            what,
            f"MTP {depth}" if depth else "model",
            nats(got) - nats(true),
            float((true.exp() * (true - got)).sum(dim=-1).mean()),
            float((true.argmax(dim=-1) != got.argmax(dim=-1)).double().mean()),
        )

    for profile, what in ARITHMETIC.items():
        yield effect("(nothing)", what, build_model(opened, profile, device), 0)
    for change in measured():
        yield effect(str(change.feature), str(change.what), changed(right, change), change.depth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=NANO)
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
        f"Made by `python -m conformance.faults.features --device {args.device} --windows {args.windows} "
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
