"""The commands ``s35 run`` and ``s35 conform``: here the packages meet, imported when a command runs."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

TIERS = ("quick", "full")


def add_arguments(parser: ArgumentParser) -> None:
    {"run": _add_run_arguments, "conform": _add_conform_arguments}[parser.get_default("command")](parser)


def run(args: Namespace) -> int:
    return {"run": _run, "conform": _conform}[args.command](args)


def _add_run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="the quick tier only")
    _add_engine_arguments(parser)
    parser.add_argument("--checkpoint", type=Path, help="folder to run and judge on (default: the trained miniature)")
    parser.add_argument("--out", type=Path, help="folder for this run (default: results/<UTC time>)")


def _add_conform_arguments(parser: ArgumentParser) -> None:
    parser.epilog = "Every other option goes to pytest as it is: -k, -x, --junitxml=FILE, ..."
    parser.set_defaults(pytest_args=[])
    _add_engine_arguments(parser)
    parser.add_argument("--tier", choices=TIERS, default="quick", help="default: quick")
    parser.add_argument(
        "--check", action="append", default=[], metavar="ID", help="run exactly this check; may be repeated"
    )


def _add_engine_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--engine", default="reference", help="registered name or module:attribute (default: reference)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the engine's own)")


def _run(args: Namespace) -> int:
    import dataclasses
    from datetime import UTC, datetime

    from hardware.identify import identify
    from reference.commands import generate_text

    from .conformance_session import check_engine_name, conformance_folder, pytest_arguments
    from .redaction import redact
    from .run import Request, new_results_folder, run_suite

    check_engine_name(args.engine)
    tier = "quick" if args.quick else "full"
    targets = [str(conformance_folder())]
    request = Request(
        engine=args.engine,
        tier=tier,
        device=args.device or "cpu",
        checkpoint=args.checkpoint or _miniature(),
        out=args.out or new_results_folder(Path("results"), datetime.now(UTC)),
        pytest_arguments=tuple(pytest_arguments(targets, args.engine, tier, args.device, args.checkpoint)),
        command=redact(["s35", *args.words]),
    )
    return run_suite(request, lambda device: dataclasses.asdict(identify(device)), generate_text)


def _conform(args: Namespace) -> int:
    import os

    from .conformance_session import PYTEST, check_engine_name, conformance_folder, pytest_arguments

    check_engine_name(args.engine)
    folder = conformance_folder()
    targets = [str(folder.parent / check) for check in args.check] or [str(folder)]
    arguments = [*pytest_arguments(targets, args.engine, args.tier, args.device), *args.pytest_args]
    os.execv(PYTEST[0], [*PYTEST, *arguments])  # from here on the process is pytest, and the exit code is its own


def _miniature() -> Path:
    """The checkpoint that comes with the suite."""
    from importlib.util import find_spec

    spec = find_spec("reference")
    assert spec is not None, "the reference package is part of the distribution"
    assert spec.origin is not None, "reference is a package with an __init__"
    return Path(spec.origin).parent / "nano"
