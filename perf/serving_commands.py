"""The command ``s35 perf serve``."""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``perf serve``."""
    parser.description = "Keep requests under way in a closed loop; tokens/s, and the times until tokens come."
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="with real text (default: the trained miniature)"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="instead: random weights of a geometry, on a GPU")
    parser.add_argument("--format", choices=["int4", "fp8", "bf16"], default="int4", help="of these (default: int4)")
    parser.add_argument(
        "--draft-heads", choices=["fp8", "int4"], help="of the MTP layers (default: as --format has it, or as stored)"
    )
    parser.add_argument(
        "--engine", default="optimized", help="registered name or module:attribute (default: optimized)"
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--concurrency", type=numbers, default=(1, 8, 32), metavar="N,...", help="default: 1,8,32")
    parser.add_argument("--requests", type=int, default=64, metavar="N", help="of each load (default: 64)")
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="N", help="of each request (default: 512)")
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N", help="of each request (default: 128)")
    parser.add_argument("--token-budget", type=int, default=2048, metavar="N", help="of a step (default: 2048)")
    parser.add_argument("--mtp", default="0", metavar="N", help="drafts a step, or auto: as many as pay (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    return tuple(int(word) for word in text.split(","))


def run(args: Namespace) -> int:
    """Load once, then measure one load after the other."""
    import dataclasses
    import json
    from datetime import UTC, datetime

    from conformance.engine import find_engine, move, with_draft_heads
    from hardware.identify import identify
    from reference.config import ModelConfig
    from reports.verdict import ExitCode

    from .prompts import Prompts, load_prompts
    from .serving import Load, Served, measure, table, warm_up
    from .whole import MINIATURE

    engine = with_draft_heads(find_engine(args.engine), args.draft_heads)
    move(engine, args.device)
    offered = getattr(engine, "served_synthetic" if args.config else "served_model", None)
    if offered is None:
        raise ValueError(f"engine: {args.engine} serves no requests; want one with served_model and served_synthetic")
    most, longest = max(args.concurrency), args.prompt_tokens + args.new_tokens + 2 * max(args.concurrency) + 8
    if args.config:
        config = ModelConfig.from_file(args.config)
        prompts = Prompts([number * 7919 % config.vocab_size for number in range(1 << 17)], "random tokens")
        model: Served = offered(config, args.format, most, longest)
    else:
        prompts = load_prompts(None, args.checkpoint or MINIATURE)
        model = offered(args.checkpoint or MINIATURE, most, longest)
    mtp = args.mtp if args.mtp == "auto" else int(args.mtp)
    results = []
    for concurrency in args.concurrency:
        load = Load(concurrency, args.requests, args.prompt_tokens, args.new_tokens)
        scheduler = model.serve(concurrency, args.token_budget, mtp)
        warm_up(scheduler, lambda _, count: model.request(prompts.window(args.prompt_tokens), count), concurrency)
        results.append(
            measure(scheduler, lambda _: model.request(prompts.window(args.prompt_tokens), args.new_tokens), load)
        )
    record = {
        "kind": "perf serve",
        "command": ["s35", *args.words],
        "date": datetime.now(UTC).date().isoformat(),
        "machine": dataclasses.asdict(identify(args.device)),
        "prompts": prompts.source,
        "results": [dataclasses.asdict(result) for result in results],
    }
    print(json.dumps(record, indent=2) if args.json else table(results))
    return ExitCode.PASS
