"""Train the miniature with the reference itself: ``python -m reference.nano.train --out DIR --device cuda``.

Backbone and MTP layers learn together from next-token prediction, the MTP depths with a smaller weight. The router bias
follows the experts' load, without a gradient. Everything is seeded; the text is the standard library of the Python that
runs it, or the one named by --stdlib. Writes the checkpoint, its tokenizer and ``training.json``: data recipe, loss
curve and held-out figures.
"""

import argparse
import json
import math
import platform
import shutil
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RawTokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..checkpoint import LoadedWeights, save_checkpoint
from ..config import ModelConfig
from ..model import Model
from .architecture import BOS, CONFIG, EMBEDDING_RMS, EOS, SPECIAL_TOKENS, initial_tensors
from .corpus import Document, digest, documents
from .measure import depth_nats, held_out_figures, windows

SEED = 35
MTP_LOSS_WEIGHT = 0.3  # of the three depths together
BIAS_STEP = 0.002  # change of a router bias per step, against its expert's load
LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY = 2e-3, 100, 0.05
STAGES = ((0.85, 512, 64), (0.15, 2048, 16))  # share of the steps, sequence length, sequences a step
HELD_OUT_CHARS = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--python-version", default=platform.python_version(), help="version of --stdlib, recorded")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)

    here = Path(__file__).parent
    corpus = list(documents(args.stdlib, (here / "chat_template.jinja").read_text(encoding="utf-8")))
    tokenizer = train_tokenizer(corpus)
    tokenizer.save(str(out / "tokenizer.json"))
    write_companions(out, here)
    held_out = [d for d in corpus if d.held_out and not d.is_chat]
    write_held_out(out / "heldout.jsonl", held_out)
    train_tokens = tokenise(tokenizer, [d for d in corpus if not d.held_out])
    print(f"{len(corpus)} documents, {len(train_tokens)} training tokens", flush=True)

    started = time.time()
    params, curve = train(train_tokens, tokenise(tokenizer, held_out), args.steps, args.device)
    seconds = time.time() - started
    stored = {
        name: tensor.cpu().to(torch.float32 if "bias" in name else torch.bfloat16) for name, tensor in params.items()
    }
    save_checkpoint(out, CONFIG, stored)
    record = {
        "command": f"python -m reference.nano.train --steps {args.steps} --device {args.device}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor(),
        "torch": torch.__version__,
        "seconds": round(seconds),
        "seed": SEED,
        "data": {
            "source": f"CPython {args.python_version} standard library (reference/nano/corpus.py)",
            "documents": len(corpus),
            "dialogues": sum(d.is_chat for d in corpus),
            "characters": sum(len(d.text) for d in corpus),
            "sha256": digest(corpus),
            "training_tokens": len(train_tokens),
            "held_out": [d.name for d in held_out],
        },
        "steps": args.steps,
        "tokens_seen": args.steps * STAGES[0][1] * STAGES[0][2],
        "loss_curve": curve,
        "held_out": held_out_figures(out, train_tokens, args.device),
    }
    (out / "training.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(record["held_out"], indent=1))


def train_tokenizer(corpus: list[Document]) -> RawTokenizer:
    """Byte-level BPE of the config's vocabulary size, special tokens first.

    Merges stay within a run of white space, of word characters or of other signs, so that a prompt that ends in a space
    is cut as the training text was.
    """
    tokenizer = RawTokenizer(models.BPE())
    runs = pre_tokenizers.Split(Regex(r"\s+|\w+|[^\s\w]+"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([runs, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in corpus if not d.held_out and not d.is_chat), trainer)
    begin = SPECIAL_TOKENS[BOS]  # loaders that encode by tokenizer.json alone begin with it, too
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, BOS)])
    if tokenizer.get_vocab_size() != CONFIG["vocab_size"]:
        raise ValueError(f"tokenizer: has {tokenizer.get_vocab_size()} tokens; want {CONFIG['vocab_size']}")
    return tokenizer


def write_companions(out: Path, here: Path) -> None:
    """Chat template, tokenizer settings and sampling defaults, as published checkpoints carry them."""
    if out.resolve() != here.resolve():
        shutil.copy2(here / "chat_template.jinja", out)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "bos_token": SPECIAL_TOKENS[BOS],
        "eos_token": "<|im_end|>",
        "pad_token": SPECIAL_TOKENS[EOS],
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
    }
    (out / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    generation = {
        "bos_token_id": BOS,
        "eos_token_id": CONFIG["eos_token_id"],
        "temperature": 0.6,
        "top_p": 0.95,
    }
    (out / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n", encoding="utf-8")


def write_held_out(path: Path, held_out: list[Document]) -> None:
    """The text that nothing was trained on, up to HELD_OUT_CHARS, whole documents."""
    size, lines = 0, []
    for document in held_out:
        if size + len(document.text) <= HELD_OUT_CHARS:
            size += len(document.text)
            lines.append(json.dumps({"name": document.name, "text": document.text}, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def tokenise(tokenizer: RawTokenizer, corpus: list[Document]) -> Tensor:
    """All documents in one row, each between a start and an end token."""
    encoded = tokenizer.encode_batch([d.text for d in corpus], add_special_tokens=False)
    return torch.tensor([token for e in encoded for token in (BOS, *e.ids, EOS)])


def train(tokens: Tensor, unseen: Tensor, steps: int, device: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Run all steps; returns the float32 weights and the loss curve: nats of the head and of each MTP depth."""
    config = ModelConfig.from_dict(CONFIG)
    params = {name: tensor.to(device) for name, tensor in initial_tensors(SEED).items()}
    biases = {name: params[name] for name in params if name.endswith("router_bias")}
    learned = {name: tensor.requires_grad_() for name, tensor in params.items() if name not in biases}
    decayed = [tensor for tensor in learned.values() if tensor.ndim > 1]
    undecayed = [tensor for tensor in learned.values() if tensor.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": undecayed, "weight_decay": 0.0}],
        lr=LEARNING_RATE, betas=(0.9, 0.95), fused=device.startswith("cuda"),
    )  # fmt: skip
    model = Model(config, LoadedWeights.from_flat(config, params), torch.float32, device)
    loads: dict[int, Tensor] = {}

    def observe(layer_index: int, what: str, value: Tensor) -> None:
        if what == "expert_ids":
            loads[layer_index] = torch.bincount(value.flatten(), minlength=CONFIG["moe_num_experts"])

    curve: list[dict[str, Any]] = []
    for step, batch in enumerate(batches(tokens.to(device), steps)):
        rate = min((step + 1) / WARMUP_STEPS, 1.0) * (1 - 0.98 * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        losses = depth_losses(model, batch, observe)
        loss = losses[0] + MTP_LOSS_WEIGHT * losses[1:].mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(learned.values()), 1.0)
        optimizer.step()
        with torch.no_grad():
            for layer_index, load in loads.items():
                bias = biases[f"model.layers.{layer_index}.moe.router_bias"]
                bias += BIAS_STEP * rate * torch.sign(load.float().mean() - load)
            embedding = params["model.embed_tokens.weight"]
            rms = embedding.square().mean(dim=-1, keepdim=True).sqrt()
            embedding *= (EMBEDDING_RMS / rms).clamp(max=1.0)
        if step % 25 == 0 or step == steps - 1:
            point: dict[str, Any] = {"step": step, "nats": [round(value, 4) for value in losses.tolist()]}
            if step % 100 == 0 or step == steps - 1:
                point["held_out_nats"] = [round(n, 4) for n in depth_nats(model, windows(unseen, 16))]
            curve.append(point)
            print(json.dumps(point), f"gradient norm {norm:.2f}", flush=True)
            if not math.isfinite(point["nats"][0]):
                raise FloatingPointError(f"loss: is {point['nats'][0]} at step {step}; lower LEARNING_RATE")
    return {name: tensor.detach() for name, tensor in params.items()}, curve


def batches(tokens: Tensor, steps: int) -> Iterator[Tensor]:
    """Random windows [B, T + 1] of the corpus, each opened by the start token."""
    generator = torch.Generator().manual_seed(SEED)
    for share, length, sequences in STAGES:
        for _ in range(round(share * steps)):
            starts = torch.randint(len(tokens) - length - 1, (sequences,), generator=generator)
            rows = tokens[starts[:, None].to(tokens.device) + torch.arange(length + 1, device=tokens.device)]
            rows[:, 0] = BOS
            yield rows


def depth_losses(model: Model, batch: Tensor, observe: Any) -> Tensor:
    """Cross entropy of the head and of each MTP depth, [1 + depths]."""
    hidden = model.hidden(batch[:, :-1], observe=observe)
    losses = [_loss(model.logits(hidden), batch[:, 1:])]
    for depth in range(model.config.num_nextn_predict_layers):
        inputs, targets = batch[:, 1 + depth : -1], batch[:, 2 + depth :]
        hidden = model.mtp_hidden(depth, hidden[:, : inputs.shape[1]], inputs)
        losses.append(_loss(model.mtp_logits(depth, hidden), targets))
    return torch.stack(losses)


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, -2), targets.flatten())


if __name__ == "__main__":
    main()
