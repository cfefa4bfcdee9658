"""The commands ``s35 inspect``, ``generate``, ``logits`` and ``quantize``. Nothing heavy is imported until one runs."""

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

MINIATURE = Path(__file__).parent / "nano"
DTYPES = ("float32", "float64", "bfloat16")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command that the parser is for."""
    add = {"inspect": _add_inspect, "generate": _add_generate, "logits": _add_logits, "quantize": _add_quantize}
    add[parser.get_default("command")](parser)


def run(args: Namespace) -> int:
    """Run the command; errors of the caller are ValueErrors."""
    commands = {"inspect": _inspect, "generate": _generate, "logits": _logits, "quantize": _quantize}
    return commands[args.command](args)


def _add_inspect(parser: ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="a config.json: count what a checkpoint of it would hold")
    source.add_argument("--checkpoint", type=Path, help="a checkpoint folder: account for every tensor in its files")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_generate(parser: ArgumentParser) -> None:
    _add_model_arguments(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", help="text to continue")
    prompt.add_argument("--chat", type=Path, help="JSON file: a list of messages, or an object of messages and tools")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="default: 128")
    parser.add_argument(
        "--mtp",
        type=drafts,
        default=0,
        help="drafts a step, 0 to 3 (default: 0); auto, with engine optimized: as pays",
    )
    parser.add_argument(
        "--draft-heads",
        choices=("fp8", "int4"),
        help="round the MTP layers' output heads: fewer bytes a step, worse drafts, the same greedy text",
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--top-k", type=int, default=0, help="keep the k most likely tokens; 0, the default, keeps all")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep the most likely tokens that reach p together")
    parser.add_argument("--min-p", type=float, default=0.0, help="keep tokens at least p times as likely as the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--engine", default="reference", help="registered name or module:attribute (default: reference)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text as it comes")


def drafts(word: str) -> int | str:
    """The value of ``--mtp``."""
    return word if word == "auto" else int(word)


def _add_logits(parser: ArgumentParser) -> None:
    _add_model_arguments(parser)
    parser.add_argument("--prompt", required=True, help="text to run through the model")
    parser.add_argument("--stream", action="store_true", help="read one layer at a time from the files")
    parser.add_argument("--top", type=int, default=5, help="most likely next tokens to show (default: 5)")
    parser.add_argument("--out", type=Path, help="write all logits [T, V] to a .safetensors file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_quantize(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a checkpoint in bfloat16")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
    parser.add_argument("--format", choices=("int4", "fp8"), required=True, help="of the routed experts")
    parser.add_argument(
        "--device", default="cpu", help="where experts are rounded: cpu, cuda, cuda:N or mps (default: cpu)"
    )


def _add_model_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, default=MINIATURE, help="folder (default: the trained miniature)")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cpu, or the engine's own)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the reference's activations (default: float32)")


def _inspect(args: Namespace) -> int:
    from .accounting import inspect
    from .checkpoint import Checkpoint
    from .config import ModelConfig

    # opening a checkpoint raises unless every tensor is accounted for
    counts = inspect(Checkpoint(args.checkpoint).config if args.checkpoint else ModelConfig.from_file(args.config))
    if args.json:
        print(json.dumps(counts, indent=2))
        return 0
    from tabulate import tabulate

    rows: list[tuple[str, str]] = [("tensors", f"{counts['num_tensors']:,}")]
    rows += [("checkpoint, GB", f"{counts['checkpoint_bytes'] / 1e9:,.2f}")]
    rows += [(f"parameters, {group}", f"{count:,}") for group, count in counts["parameters"].items()]
    for what, count in counts["active_parameters_per_token"].items():
        rows.append((f"active parameters, {what.replace('_', ' ')}", f"{count:,}"))
    for name, sizes in counts["weight_bytes_by_expert_format"].items():
        rows.append((f"weights with {name} experts, GB", f"{sizes['backbone'] / 1e9:,.2f}"))
        rows.append((f"weights with {name} experts and MTP, GB", f"{sizes['with_mtp'] / 1e9:,.2f}"))
    for context, size in counts["kv_cache_bytes"].items():
        rows.append((f"KV cache at {int(context):,} tokens, GB", f"{size / 1e9:,.3f}"))
    print(tabulate(rows, disable_numparse=True, colalign=("left", "right")))
    return 0


def _generate(args: Namespace) -> int:
    from .chat import load_chat, render
    from .generate import SamplingParams
    from .tokenizer import Tokenizer

    tokenizer = Tokenizer.from_checkpoint(args.checkpoint)
    tools = None
    if args.chat is not None:
        chat = load_chat(args.chat)
        tools = chat.tools
        text = render(tokenizer.chat_template, chat.messages, chat.tools, bos_token=tokenizer.bos_token)
    else:
        text = args.prompt
    prompt_ids = tokenizer.encode(text, add_bos=True)
    sampling = SamplingParams(args.temperature, args.top_k, args.top_p, args.min_p, args.seed)
    decoder = tokenizer.stream_decoder(skip_special=True)

    def show(token: int) -> None:
        if not args.json:
            print(decoder.push(token), end="", flush=True)

    if args.engine == "reference":
        result = _generate_here(args, prompt_ids, sampling, show)
    else:
        result = _generate_elsewhere(args, prompt_ids, sampling, tokenizer.eos_ids)
        for token in result.tokens:
            show(token)
    output = tokenizer.decode(result.tokens, skip_special=True)
    if args.json:
        record: dict[str, Any] = {
            "text": output,
            "tokens": result.tokens,
            "acceptance_per_position": result.acceptance_per_position,
            "drafted_per_position": result.drafted_per_position,
            "accepted_per_position": result.accepted_per_position,
            "finish_reason": result.finish_reason,
            "prompt_tokens": len(prompt_ids),
            "prefill_s": result.prefill_s,
            "decode_s": result.decode_s,
            "tokens_per_s": result.tokens_per_s,
        }
        if args.chat is not None:
            record["message"] = _message_of(output, tools)
        print(json.dumps(record, ensure_ascii=False, indent=2))
        return 0
    print(decoder.finish())
    speed = f"{result.tokens_per_s:.1f} tokens/s" if result.tokens_per_s else "speed not known"
    accepted = ", ".join("-" if a is None else f"{a:.0%}" for a in result.acceptance_per_position)
    drafts = f"; drafts accepted by position: {accepted}" if args.mtp else ""
    print(f"{len(result.tokens)} tokens ({result.finish_reason}), {speed}{drafts}", file=sys.stderr)
    return 0


def _logits(args: Namespace) -> int:
    import torch

    from .tokenizer import Tokenizer

    tokenizer = Tokenizer.from_checkpoint(args.checkpoint)
    token_ids = torch.tensor(tokenizer.encode(args.prompt, add_bos=True))
    model = _open(args.checkpoint, args.device, args.dtype, args.stream)
    started = time.perf_counter()
    with torch.inference_mode():
        logits = model.logits(model.hidden(token_ids)).cpu()
    seconds = time.perf_counter() - started
    if args.out is not None:
        from safetensors.torch import save_file

        save_file({"logits": logits, "token_ids": token_ids}, args.out)
    probabilities, ids = logits[-1].double().softmax(-1).topk(min(args.top, logits.shape[-1]))
    top = [
        {"token": token, "text": tokenizer.decode([token], skip_special=False), "probability": probability}
        for token, probability in zip(ids.tolist(), probabilities.tolist(), strict=True)
    ]
    if args.json:
        record = {
            "tokens": token_ids.tolist(),
            "next": top,
            "seconds": seconds,
            "peak_memory_bytes": _peak_memory_bytes(),
        }
        print(json.dumps(record, ensure_ascii=False, indent=2))
    else:
        for row in top:
            print(f"{row['probability']:8.4f}  {row['token']:6}  {row['text']!r}")
    return 0


def _quantize(args: Namespace) -> int:
    from .checkpoint import Checkpoint
    from .save_quantized import save_quantized

    source = Checkpoint(args.checkpoint)
    save_quantized(source, args.out, args.format, device=_device(args.device))
    before, after = (
        sum(file.stat().st_size for file in folder.glob("*.safetensors")) for folder in (source.folder, args.out)
    )
    print(f"{args.out}: experts in {args.format}, {after / 1e9:.3f} GB of {before / 1e9:.3f} GB")
    return 0


def generate_text(checkpoint: Path, prompt: str, max_new_tokens: int, mtp: int, device: str) -> dict[str, Any]:
    """Continue a prompt greedily with the reference; what ``s35 run`` shows.

    Returns:
        text, tokens, tokens_per_s and acceptance_per_position, as ``s35 generate --json`` prints them.
    """
    import torch

    from .generate import generate
    from .tokenizer import Tokenizer

    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    with torch.inference_mode():
        model = _open(checkpoint, device)
        result = generate(model, tokenizer.encode(prompt, add_bos=True), max_new_tokens, mtp)
    return {
        "text": tokenizer.decode(result.tokens, skip_special=True),
        "tokens": result.tokens,
        "tokens_per_s": result.tokens_per_s,
        "acceptance_per_position": result.acceptance_per_position,
    }


def _open(
    checkpoint: Path,
    device: str | None,
    dtype: str | None = None,
    stream: bool = False,
    draft_heads: str | None = None,
) -> Any:
    """The reference's model, loaded or, with ``stream``, run from its files."""
    import torch

    from .checkpoint import Checkpoint
    from .model import Model

    place, activations = _device(device or "cpu"), getattr(torch, dtype or "float32")
    if stream and place.type != "cpu":
        raise ValueError(f"stream: device is {device}; want cpu: a streamed layer stays in the file's memory map")
    opened = Checkpoint(checkpoint)
    weights: Any = opened if stream else opened.load(place, None if activations == torch.bfloat16 else activations)
    if draft_heads is not None:
        weights = weights.with_draft_heads(draft_heads)
    return Model(opened.config, weights, activations, place)


def _generate_here(args: Namespace, prompt_ids: list[int], sampling: Any, show: Any) -> Any:
    import torch

    from .generate import generate

    with torch.inference_mode():
        model = _open(args.checkpoint, args.device, args.dtype, draft_heads=args.draft_heads)
        return generate(model, prompt_ids, args.max_new_tokens, args.mtp, sampling, show)


def _generate_elsewhere(args: Namespace, prompt_ids: list[int], sampling: Any, eos_ids: frozenset[int]) -> Any:
    """Generate with another engine; its time is shown where it is known by parts."""
    from dataclasses import asdict

    from conformance.engine import find_engine, move, with_draft_heads

    from .generate import Generation

    if args.dtype is not None:
        raise ValueError(f"dtype: is {args.dtype} for engine {args.engine}, whose profile decides; want it left out")
    engine = with_draft_heads(find_engine(args.engine), args.draft_heads)
    if args.device is not None:
        move(engine, args.device)
    load = getattr(engine, "load_anywhere", engine.load_model)  # what an engine refuses to be judged on may still run
    made = load(args.checkpoint).generate(prompt_ids, args.max_new_tokens, mtp=args.mtp, **asdict(sampling))
    tokens = list(made.tokens)
    return Generation(
        tokens=tokens,
        finish_reason="stop" if tokens and tokens[-1] in eos_ids else "length",
        drafted_per_position=list(made.drafted_per_position),
        accepted_per_position=list(made.accepted_per_position),
        prefill_s=getattr(made, "prefill_s", None),
        decode_s=getattr(made, "decode_s", None),
    )


def _message_of(text: str, tools: Any) -> dict[str, Any]:
    import dataclasses

    from .response import parse

    return dataclasses.asdict(parse(text, tools))


def _device(name: str) -> Any:
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = name.split(":")[0]
    if kind not in available:
        raise ValueError(f"device: is {name!r}; want cpu, cuda, cuda:N or mps")
    if not available[kind]:
        here = ", ".join(each for each, there in available.items() if there)
        raise ValueError(f"device: {name} is not available here; want one of {here}")
    return torch.device(name)


def _peak_memory_bytes() -> int:
    """Largest resident memory of this process, file pages included."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
