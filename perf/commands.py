"""The commands ``s35 perf``, ``tune``, ``compile-check``, ``fit`` and ``doctor``."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import serving_commands

BUDGET_S = 60.0
MODEL_BUDGET_S = 200.0
FIXED_ORDER = "deterministic mode: a row's bits do not depend on what comes with it"


def add_arguments(parser: ArgumentParser) -> None:
    add = {
        "perf": _add_perf_arguments,
        "tune": _add_tune_arguments,
        "compile-check": _add_compile_check_arguments,
        "fit": _add_fit_arguments,
        "doctor": _add_doctor_arguments,
    }
    add[parser.get_default("command")](parser)


def run(args: Namespace) -> int:
    if args.command == "perf":
        run_what = {"ops": _run_ops, "model": _run_model, "serve": serving_commands.run, "page": _run_page}[args.what]
        return _in_fixed_order(run_what, args) if getattr(args, "fixed_order", False) else run_what(args)
    commands = {"tune": _run_tune, "compile-check": _run_compile_check, "fit": _run_fit, "doctor": _run_doctor}
    return commands[args.command](args)


def _in_fixed_order(run_what: Callable[[Namespace], int], args: Namespace) -> int:
    from optimized.launch import fixed_order

    if not args.engine.startswith("optimized"):
        raise ValueError(f"--fixed-order: is of the engine optimized; is {args.engine}: want it without, or optimized")
    with fixed_order():
        return run_what(args)


def _add_perf_arguments(parser: ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    ops = what.add_parser("ops", help="time operators at the published shapes", allow_abbrev=False)
    ops.description = (
        "Check each operator's output against the reference in float64, then time it. Exit code 0: all timed, "
        "1: a wrong output or an error, 5: something was not measured."
    )
    ops.add_argument("--engine", default="optimized", help="registered name or module:attribute (default: optimized)")
    ops.add_argument("--device", default="cuda", help="cuda or cuda:N; cpu prints the costs alone (default: cuda)")
    ops.add_argument("--op", action="append", default=[], metavar="ROW", help="only this one; may be repeated")
    ops.add_argument("--peers", action="store_true", help="time what PyTorch offers for the same work, too")
    ops.add_argument("--budget", type=float, default=BUDGET_S, metavar="S", help="seconds, then stop (default: 60)")
    ops.add_argument("--fixed-order", action="store_true", help=FIXED_ORDER)
    ops.add_argument("--json", action="store_true", help="print one JSON object")
    ops.add_argument("--out", type=Path, metavar="FILE", help="write the JSON object there, too, after each result")

    model = what.add_parser("model", help="time the whole model of a geometry", allow_abbrev=False)
    model.description = (
        "Time the steps of a geometry with random weights, made on the device, or of a checkpoint on real text, beside "
        "the bytes that they cannot avoid reading. Exit code 0: all timed, 1: a wrong output, 5: something was not "
        "measured, or is in doubt."
    )
    model.add_argument("--weights", choices=["synthetic"], default="synthetic", help="random, made on the device")
    model.add_argument("--config", type=Path, metavar="FILE", help="of random weights: a config.json, or its folder")
    model.add_argument("--format", choices=["int4", "fp8", "bf16"], default="int4", help="of experts (default: int4)")
    model.add_argument("--correlation", type=float, default=0.0, help="of tokens' choices; 0, the default: uniform")
    model.add_argument(
        "--draft-heads", choices=["fp8", "int4"], help="of the MTP layers (default: as --format has it, or as stored)"
    )
    model.add_argument("--checkpoint", type=Path, metavar="DIR", help="instead of random weights")
    model.add_argument("--prompts", metavar="FILE", help="text for --checkpoint (default: the packaged one)")
    model.add_argument("--engine", default="optimized", help="registered name or module:attribute (default: optimized)")
    model.add_argument("--device", default="cuda", help="cuda or cuda:N; cpu shows that it runs (default: cuda)")
    model.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="scenarios of this name, or with it in theirs"
    )
    model.add_argument("--budget", type=float, default=MODEL_BUDGET_S, metavar="S", help="seconds (default: 200)")
    model.add_argument("--min-time", type=float, default=0.5, metavar="S", help="of sampling (default: 0.5)")
    model.add_argument("--max-time", type=float, default=3.0, metavar="S", help="of sampling (default: 3)")
    model.add_argument("--fixed-order", action="store_true", help=FIXED_ORDER)
    model.add_argument("--seed", type=int, default=0)
    model.add_argument("--json", action="store_true", help="print one JSON object")
    model.add_argument("--out", type=Path, metavar="FILE", help="write the JSON object there, too, after each result")

    serving_commands.add_arguments(what.add_parser("serve", help="many requests at a time", allow_abbrev=False))

    shown = what.add_parser("page", help="a record of `perf ops` as Markdown", allow_abbrev=False)
    shown.add_argument("record", type=Path, metavar="FILE.json", help="what `perf ops --out` wrote")
    shown.add_argument("--title", default="Operators at the published shapes", help="of the page")


def _add_tune_arguments(parser: ArgumentParser) -> None:
    parser.epilog = "Needs a CUDA device. Writes the file of launch configurations with the best of each search in it."
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help="of perf/tune_candidates.toml (default: all)")
    parser.add_argument("--configs", type=Path, required=True, metavar="FILE.toml", help="the device's file")
    parser.add_argument("--out", type=Path, metavar="FILE.toml", help="write here (default: over --configs)")
    parser.add_argument("--budget", type=float, default=600, metavar="S", help="seconds, then stop (default: 600)")


def _add_compile_check_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "Needs no GPU: the engine's own launches, compiled and not run. Exit code 0: every kernel compiles and fits, "
        "1: one does not."
    )
    parser.add_argument("--target", action="append", default=[], metavar="ARCH", help="sm_90, ...; may be repeated")
    parser.add_argument("--op", action="append", default=[], metavar="ROW", help="only this one; may be repeated")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_fit_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "A projection: bytes and operations over a device's rates, from hardware/profiles; nothing is measured. "
        "Exit code 0: it fits at every batch, 1: it does not."
    )
    parser.add_argument("--hardware", required=True, metavar="NAME", help="a profile: h200, dgx_spark, m4_max, ...")
    parser.add_argument("--context", type=int, default=262_144, metavar="N", help="cached positions (default: 262144)")
    parser.add_argument("--format", default="fp8", help="of the weights: perf/formats.toml (default: fp8)")
    parser.add_argument("--batch", type=_numbers, default=(1,), metavar="N,...", help="sequences at once (default: 1)")
    parser.add_argument("--kv-bits", type=int, choices=(16, 8), default=16, help="of a cached value (default: 16)")
    parser.add_argument("--without-mtp", action="store_true", help="leave the weights of the draft layers out")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="that share the model (default: 1)")
    parser.add_argument("--experts-apart", action="store_true", help="expert parallel: the busiest device decides")
    parser.add_argument("--collective-us", type=float, metavar="US", help="of one all-reduce (default: 7)")
    parser.add_argument("--rates", choices=("published", "measured"), default="published", help="default: published")
    parser.add_argument("--memory-gb-per-s", type=float, metavar="X", help="instead of the profile's")
    parser.add_argument("--tflops", type=float, metavar="X", help="of linear layers, instead of the profile's")
    parser.add_argument("--attention-tflops", type=float, metavar="X", help="instead of the profile's")
    parser.add_argument(
        "--shared-experts", type=float, default=0.0, metavar="R", help="0: tokens choose independently (default); 0.66"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_doctor_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "Takes some seconds of the device. Exit code 0: timings can be trusted now, 5: the warnings say why not."
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _run_ops(args: Namespace) -> int:

    import torch

    from conformance.engine import find_engine
    from hardware.identify import identify
    from reports.verdict import ExitCode
    from s35_progress import progress

    from .catalogue import select
    from .ceilings import measure_ceilings
    from .cost import Ceilings
    from .result import Outcome, Result, table
    from .sweep import run_sweep, without_device

    cases = select(args.op)
    machine = identify(args.device)
    found: list[Result] = []
    ceilings: list[Ceilings] = []

    def write() -> str:
        return _written(args, machine, ceilings[0] if ceilings else None, found)

    if torch.device(args.device).type == "cuda" and torch.cuda.is_available():
        ours = find_engine(args.engine).name
        with progress("operators", len(cases)) as bar:

            def measured() -> Ceilings:
                ceilings.append(measure_ceilings())
                return ceilings[0]

            def say(result: Result) -> None:
                found.append(result)
                write()
                if not args.json:
                    bar.say(table([result]).splitlines()[1])
                if result.engine == ours:  # peers are of the same step
                    bar.advance()

            sweep = run_sweep(cases, args.engine, args.device, args.budget, args.peers, measured, say)
    else:
        sweep = without_device(cases, args.engine, "no CUDA device")
        found += sweep.results
    text = write()
    print(text if args.json else _summary(sweep, table(sweep.results)))
    outcomes = {result.outcome for result in sweep.results}
    if outcomes & {Outcome.FAIL, Outcome.ERROR}:
        return ExitCode.FAIL
    missing = Outcome.NOT_MEASURED in outcomes or Outcome.TIMED not in outcomes
    return ExitCode.INCONCLUSIVE if missing else ExitCode.PASS


def _run_model(args: Namespace) -> int:
    import time

    import torch

    from conformance.engine import find_engine, move
    from hardware.energy import EnergyWindow, counters_of
    from hardware.identify import identify
    from reports.verdict import ExitCode
    from s35_progress import progress

    from .ceilings import measure_ceilings
    from .model import How, ModelResult, NotOfferedError, measure_all, speculation, table
    from .sampling import StopRule
    from .whole import MINIATURE, Wanted, chosen, subject_of

    started = time.monotonic()
    if args.checkpoint is None and args.config is None:
        raise ValueError("perf model: has neither --config FILE nor --checkpoint DIR; want one of them")
    engine = find_engine(args.engine)
    move(engine, args.device)
    wanted = Wanted(
        weights="checkpoint" if args.checkpoint else "synthetic",
        config=args.config,
        format=args.format,
        checkpoint=args.checkpoint or MINIATURE,
        prompts=args.prompts,
        seed=args.seed,
        correlation=args.correlation,
        draft_heads=args.draft_heads,
    )
    on_gpu = torch.device(args.device).type == "cuda"
    ceilings = measure_ceilings() if on_gpu else None
    try:
        model = subject_of(engine, args.device, wanted)
    except NotOfferedError as error:
        raise ValueError(f"engine: {error}") from error
    left_s = args.budget - (time.monotonic() - started)
    scenarios = chosen(wanted.scenarios(args.device), args.only)

    once = StopRule(least_samples=1, least_s=0.0, most_s=0.0, most_warmup=0)  # interpreted steps take seconds
    how = How(
        once if wanted.is_synthetic and not on_gpu else StopRule(least_s=args.min_time, most_s=args.max_time),
        ceilings,
        energy=lambda: EnergyWindow(counters_of(args.device)),
    )
    machine = identify(args.device)
    results: list[ModelResult] = []

    def write() -> str:
        described = dict(model.description())
        return _written(args, machine, ceilings, results, model=described, speculation=speculation(results))

    with progress("scenarios", len(scenarios)) as bar:

        def say(result: ModelResult) -> None:
            results.append(result)
            write()
            if not args.json:
                bar.say(table([result]).splitlines()[1])
            bar.advance()

        measure_all(model, scenarios, how, left_s, say)
    text, drafts = write(), speculation(results)
    print(text if args.json else table(results))
    if not args.json:
        for row in drafts:
            print(f"{row['name']}: pays from {row['break_even_tokens_per_step']:.2f} tokens a step; tokens/s at "
                  f"{', '.join(f'{n}: {rate:.0f}' for n, rate in row['tokens_per_s_at_length'].items())}")  # fmt: skip
    if any(result.wrong for result in results):
        return ExitCode.FAIL
    doubts = [f"{result.name}: {doubt}" for result in results for doubt in result.suspicions]
    if doubts and not args.json:
        print("\n".join(["in doubt:", *doubts]))
    is_whole = all(result.ms is not None or not result.offered for result in results) and not doubts
    is_timed = any(result.ms is not None for result in results)
    is_shown = wanted.is_synthetic and not on_gpu  # that it runs, on no device whose time is told
    return ExitCode.PASS if is_whole and is_timed and not is_shown else ExitCode.INCONCLUSIVE


def _run_page(args: Namespace) -> int:
    import json
    from datetime import UTC, datetime

    from reports.verdict import ExitCode

    from .page import page

    record = json.loads(args.record.read_text(encoding="utf-8"))
    date = record.get("date") or datetime.fromtimestamp(args.record.stat().st_mtime, UTC).date().isoformat()
    print(page(record, args.title, date))
    return ExitCode.PASS


def _run_tune(args: Namespace) -> int:
    from datetime import UTC, datetime

    import torch
    import triton

    from reports.verdict import ExitCode
    from s35_progress import progress

    from .tune import Tuned, merged, searches, tune

    wanted = searches(args.kernels)
    if not torch.cuda.is_available():
        print("tune: no CUDA device; want one, as times are what is compared")
        return ExitCode.INCONCLUSIVE

    with progress("searches", len(wanted)) as bar:

        def say(tuned: Tuned) -> None:
            best, worst = (", ".join(f"{us:.1f}" for us in tuned.ranked[at][1]) for at in (0, -1))
            search = tuned.search
            print(f"{search.kernel} {search.holds}: {tuned.ranked[0][0]}: {best} us, worst {worst}, "
                  f"{tuned.failed} failed", flush=True)  # fmt: skip
            bar.advance()

        found = tune(wanted, args.budget, say)
    made = {
        "by": " ".join(["s35 tune", *args.kernels]),
        "on": f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}",
        "date": datetime.now(UTC).date().isoformat(),
    }
    text = merged(args.configs.read_text(encoding="utf-8"), found, made)
    (args.out or args.configs).write_text(text, encoding="utf-8")
    return ExitCode.PASS if len(found) == len(wanted) else ExitCode.INCONCLUSIVE


def _written(args: Namespace, machine: Any, ceilings: Any, results: Sequence[Any], **more: Any) -> str:
    """The record as JSON, and in its file: after each result, so that whatever ends the command leaves those before."""
    import dataclasses
    import json
    from datetime import UTC, datetime

    record = {
        "kind": f"perf {args.what}",
        "command": ["s35", *_without_place(args.words)],
        "date": datetime.now(UTC).date().isoformat(),
        "machine": dataclasses.asdict(machine),
        "ceilings": dataclasses.asdict(ceilings) if ceilings else None,
        "results": [dataclasses.asdict(result) for result in results],
        **more,
    }
    text = json.dumps(record, indent=2)
    if args.out:
        part = args.out.with_name(f"{args.out.name}.part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(args.out)
    return text


def _without_place(words: Sequence[str]) -> list[str]:
    """A command without the file it wrote: where that lay says nothing of the measurement."""
    words = [word for word in words if not word.startswith("--out=")]
    return [word for at, word in enumerate(words) if word != "--out" and (at == 0 or words[at - 1] != "--out")]


def _summary(sweep, lines: str) -> str:  # type: ignore[no-untyped-def]
    if sweep.ceilings is None:
        return f"{lines}\nnot measured: no CUDA device"
    rates = [f"read {sweep.ceilings.read_gb_per_s:.0f} GB/s"]
    rates += [f"{dtype} {rate:.0f} TFLOP/s" for dtype, rate in sweep.ceilings.tflops.items()]
    return f"{lines}\nceilings of this run: {', '.join(rates)}"


def _run_compile_check(args: Namespace) -> int:
    import dataclasses
    import json

    from reports.verdict import ExitCode

    from .compile_check import check, table

    found = check(args.target, args.op)
    if args.json:
        print(json.dumps({"kind": "compile-check", "kernels": [dataclasses.asdict(one) for one in found]}, indent=2))
    else:
        print(table(found))
    if not found:
        return ExitCode.INCONCLUSIVE
    return ExitCode.PASS if all(one.ok for one in found) else ExitCode.FAIL


def _run_fit(args: Namespace) -> int:
    import json

    from hardware.profile import profile_called
    from reports.measurement import as_json
    from reports.third_party import published_measurements
    from reports.verdict import ExitCode

    from .fit import Question, answer, text
    from .roofline import COLLECTIVE_US, Parallel, format_called
    from .shapes import published

    if args.devices < 1 or min(args.batch) < 1:
        raise ValueError(f"fit: {args.devices} devices, batch {min(args.batch)}; want 1 or more of each")
    question = Question(
        profile=profile_called(args.hardware),
        form=format_called(args.format),
        context=args.context,
        batches=args.batch,
        parallel=Parallel(args.devices, args.experts_apart, args.collective_us or COLLECTIVE_US),
        kv_bits=args.kv_bits,
        with_mtp=not args.without_mtp,
        rates=args.rates,
        correlation=args.shared_experts,
        memory_gb_per_s=args.memory_gb_per_s,
        linear_tflops=args.tflops,
        attention_tflops=args.attention_tflops,
    )
    record = answer(question, published().model)
    others = [one for one in published_measurements() if one.hardware == question.profile.name]
    record["published"] = [as_json(one) for one in others]
    print(json.dumps(record, indent=2) if args.json else text(record))
    return ExitCode.PASS if all(row["fits"] for row in record["memory"]) else ExitCode.FAIL


def _run_doctor(args: Namespace) -> int:
    import json

    from reports.verdict import exit_code

    from .doctor import examine, text

    record = examine(args.device)
    print(json.dumps(record, indent=2) if args.json else text(record))
    return exit_code(record["verdict"])
