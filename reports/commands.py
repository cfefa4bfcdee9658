"""The commands ``s35 run``, ``conform`` and ``verify``: here the packages meet, imported when a command runs."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

TIERS = ("quick", "full")


def add_arguments(parser: ArgumentParser) -> None:
    add = {"run": _add_run_arguments, "conform": _add_conform_arguments, "verify": _add_verify_arguments}
    add[parser.get_default("command")](parser)


def run(args: Namespace) -> int:
    return {"run": _run, "conform": _conform, "verify": _verify}[args.command](args)


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
    parser.add_argument(
        "--waivers",
        type=Path,
        metavar="FILE.toml",
        help="justified exceptions: check, clause, versions, reason, issue, owner, expires; at most 90 days ahead and "
        "3 %% of a level's checks, rounded up; the exit code is that of the verdict after waivers",
    )
    parser.add_argument(
        "--known-failures",
        type=Path,
        metavar="FILE.toml",
        help='lines \'"CHECK ID" = "reason"\': exit code 0 if nothing else is wrong, though the verdict stays FAIL '
        "and no level is granted for it; 1 if one of them passes",
    )


def _add_verify_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "Exit code 0: accepted, 1: refused, with each thing that does not hold. Hashes detect edits of a bundle; they "
        "are no signature: whoever writes a whole bundle anew is not found out."
    )
    parser.add_argument("result", type=Path, metavar="RESULT", help="results folder of a run, or its result.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--other-suite", action="store_true", help="accept what another version of the suite judged, and say so"
    )


def _run(args: Namespace) -> int:
    import dataclasses
    from datetime import UTC, datetime

    from hardware.identify import identify
    from reference.commands import generate_text

    from .conformance_session import check_engine_name, pytest_arguments
    from .redaction import redact
    from .run import Request, new_results_folder, run_suite
    from .suite import conformance_folder

    check_engine_name(args.engine)
    tier = "quick" if args.quick else "full"
    targets = [str(conformance_folder())]
    request = Request(
        engine=args.engine,
        tier=tier,
        device=args.device or "cpu",
        checkpoint=args.checkpoint or _miniature(),
        out=args.out or new_results_folder(Path("results"), datetime.now(UTC)),
        pytest_arguments=tuple(
            pytest_arguments(
                targets, args.engine, tier, args.device, args.checkpoint, args.waivers, args.known_failures
            )
        ),
        command=redact(["s35", *args.words]),
        waivers=args.waivers,
        known_failures=args.known_failures,
    )
    return run_suite(request, lambda device: dataclasses.asdict(identify(device)), generate_text)


def _conform(args: Namespace) -> int:
    import os

    from .conformance_session import PYTEST, check_engine_name, pytest_arguments
    from .suite import conformance_folder

    check_engine_name(args.engine)
    folder = conformance_folder()
    targets = [str(folder.parent / check) for check in args.check] or [str(folder)]
    files = {"waivers": args.waivers, "known_failures": args.known_failures}
    arguments = [*pytest_arguments(targets, args.engine, args.tier, args.device, **files), *args.pytest_args]
    os.execv(PYTEST[0], [*PYTEST, *arguments])  # from here on the process is pytest, and the exit code is its own


def _verify(args: Namespace) -> int:
    import json

    from hardware.host import suite_commit

    from .levels import grants_sentence, read_levels
    from .suite import levels_file, this_suite
    from .verdict import ExitCode
    from .verify import verify

    commit = suite_commit().value
    suite = this_suite(None if commit is None else str(commit))
    found = verify(args.result, suite, read_levels(levels_file()), args.other_suite)
    result = found.result
    summary = {
        "verdict": f"{result.verdict_after_waivers}: {result.reason}" if result else None,
        "levels": grants_sentence(result.levels) if result else None,
        "head": result.head if result else None,
    }
    if args.json:
        complaints = [vars(complaint) for complaint in found.complaints]
        record = {"accepted": found.accepted, **summary, "complaints": complaints, "notes": found.notes}
        print(json.dumps(record, indent=2))
    else:
        lines = [*(f"note: {note}" for note in found.notes), *(f"refused: {line}" for line in found.complaints)]
        if found.accepted:
            lines.append(f"accepted: {summary['verdict']}; {summary['levels']}; head {summary['head']}")
        else:
            count = len(found.complaints)
            lines.append(f"refused: {count} {'thing does' if count == 1 else 'things do'} not hold in {args.result}")
        print("\n".join(" ".join(line.split()) for line in lines))
    return ExitCode.PASS if found.accepted else ExitCode.FAIL


def _miniature() -> Path:
    """The checkpoint that comes with the suite."""
    from importlib.util import find_spec

    spec = find_spec("reference")
    assert spec is not None, "the reference package is part of the distribution"
    assert spec.origin is not None, "reference is a package with an __init__"
    return Path(spec.origin).parent / "nano"
