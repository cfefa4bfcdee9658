"""The ``s35`` command: one word per question. A command's package is imported when that command runs."""

import argparse
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from reports.verdict import ExitCode

COMMANDS = {  # name: (module with add_arguments(parser) and run(args), what it does)
    "run": ("reports.commands", "identify the machine, generate text, judge the engine, write a report"),
    "conform": ("reports.commands", "judge an engine: pytest on conformance/, with pytest's options"),
    "verify": ("reports.commands", "check a results folder against itself: evidence, verdict, levels, hashes"),
    "report": ("reports.commands", "show results: one HTML file that needs no network, or Markdown"),
    "inspect": ("reference.commands", "describe a checkpoint and account for each of its tensors"),
    "generate": ("reference.commands", "continue a prompt with the reference engine"),
    "logits": ("reference.commands", "print the reference engine's logits for a prompt"),
    "quantize": ("reference.commands", "write a checkpoint with its routed experts in int4 or FP8"),
    "prove": (
        "conformance.commands",
        "prove the judge: run it on wrong engines, which it must fail, and on right ones",
    ),
    "repro": ("conformance.commands", "write a failed check as a short script that runs without the judge"),
    "perf": ("perf.commands", "time operators at the published shapes, beside what the device can do"),
    "baseline": ("reports.baseline_commands", "record what is normal on this machine, and check against it"),
    "compare": ("reports.baseline_commands", "compare measurements: what is slower, and what nobody can tell"),
    "import": ("reports.exchange_commands", "read results of llama-bench, vllm bench serve, GuideLLM or AIPerf"),
    "export": ("reports.exchange_commands", "write measurements as llama-bench, JUnit, CSV or pytest-benchmark do"),
    "explain": ("reports.exchange_commands", "say what a metric means, and which other tools call it so"),
    "tune": ("perf.commands", "search launch configurations of the kernels on this device"),
    "compile-check": ("perf.commands", "compile every kernel for devices that are not here, and see whether it fits"),
    "doctor": ("perf.commands", "examine this machine: readings, abilities, rates, and what must not be trusted"),
    "fit": ("perf.commands", "project what fits on a device and how fast it could be: nothing is measured"),
    "hardware": ("hardware.commands", "identify the machine: each value with its source"),
}

EPILOG = """exit codes: 0 PASS, 1 FAIL, 2 interrupted, 3 internal error, 4 usage, 5 INCONCLUSIVE

start with `s35 run --quick`; it needs no GPU and downloads nothing"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see '{self.prog} --help'", file=sys.stderr)
        sys.exit(ExitCode.USAGE)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Leaves room for the longest command; argparse forgets that commands are indented twice."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = max(map(len, COMMANDS)) + 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (``reports.verdict.ExitCode``)."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(
        prog="s35",
        description="Benchmarking and conformance suite for Step 3.5 Flash.",
        epilog=EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    parsers = {}
    for name, (_, summary) in COMMANDS.items():
        parsers[name] = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        parsers[name].set_defaults(command=name)
    if not words or words[0] not in COMMANDS:
        parser.parse_args(words)  # help, or an error: both end the process
    module = importlib.import_module(COMMANDS[words[0]][0])
    module.add_arguments(parsers[words[0]])
    args, unknown = parser.parse_known_args(words)
    if unknown and "pytest_args" not in args:
        parsers[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    args.words, args.pytest_args = words, [word for word in unknown if word != "--"]
    return _run(args.command, lambda: module.run(args))


def _run(command: str, run: Callable[[], int]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cancelled CI job keeps its results, too
    try:
        code = run()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        return ExitCode.INTERRUPTED
    except KeyboardInterrupt:
        print(f"s35 {command}: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except ValueError as error:  # the caller's mistake; everything else is ours
        if os.environ.get("S35_TRACEBACK"):
            traceback.print_exc()
        print(f"s35 {command}: {' '.join(str(error).split())}", file=sys.stderr)
        return ExitCode.USAGE
    except Exception:
        traceback.print_exc()
        print(
            f"s35 {command}: internal error; report the lines above with the output of `s35 hardware --json`",
            file=sys.stderr,
        )
        return ExitCode.INTERNAL_ERROR


if __name__ == "__main__":
    sys.exit(main())
