"""The commands ``s35 import``, ``export`` and ``explain``: other tools' files, and what a metric means."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from .verdict import ExitCode

EXPORTS = ("llama-bench", "junit", "csv", "pytest-benchmark")


def add_arguments(parser: ArgumentParser) -> None:
    add = {"import": _add_import_arguments, "export": _add_export_arguments, "explain": _add_explain_arguments}
    add[parser.get_default("command")](parser)


def run(args: Namespace) -> int:
    return {"import": _import, "export": _export, "explain": _explain}[args.command](args)


def _add_import_arguments(parser: ArgumentParser) -> None:
    parser.epilog = "Exit code 0: imported, 5: imported, and something in it must not be trusted."
    parser.add_argument("file", type=Path, metavar="FILE", help="of llama-bench, vllm bench serve, GuideLLM or AIPerf")
    parser.add_argument("--hardware", required=True, metavar="NAME", help="a profile: what it was made on")
    parser.add_argument(
        "--cache-hit-rate", type=float, metavar="X", help="of the server's prefix cache, by its counters"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.jsonl")


def _add_export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.jsonl", help="what `pytest perf/ --results` wrote")
    parser.add_argument("--to", choices=EXPORTS, required=True)
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: the terminal")


def _add_explain_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("metric", nargs="?", metavar="NAME", help="default: all")


def _import(args: Namespace) -> int:
    from hardware.profile import profile_called

    from .importers import read_foreign
    from .journal import Journal
    from .measurement import Quality
    from .verdict import Verdict, exit_code

    profile = profile_called(args.hardware).name
    tool, found = read_foreign(args.file, profile, args.cache_hit_rate)
    journal = Journal.start(args.out, ["s35", *args.words], {"subject": tool, "hardware": profile}, {"device": profile})
    for one in found:
        journal.add(one)
    doubts = sorted({reason for one in found if one.quality is not Quality.OK for reason in one.quality_reasons})
    verdict = Verdict.INCONCLUSIVE if doubts or not found else Verdict.PASS
    journal.end(verdict, doubts or [f"{len(found)} numbers of {tool}, imported as they are"])
    print(f"{args.out}: {len(found)} numbers of {tool}; {verdict}")
    return exit_code(verdict)


def _export(args: Namespace) -> int:
    from .exporters import FORMATS
    from .journal import read

    text = FORMATS[args.to](read(args.file))
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return ExitCode.PASS


def _explain(args: Namespace) -> int:
    from .metrics import METRICS

    if args.metric and args.metric not in METRICS:
        raise ValueError(f"metric: {args.metric!r} is not known; want one of {', '.join(METRICS)}")
    for metric in METRICS.values():
        if args.metric in (None, metric.name):
            print(f"{metric.name} [{metric.unit}, {metric.better} is better]: {metric.definition}")
    return ExitCode.PASS
