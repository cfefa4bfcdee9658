"""The commands ``s35 run``, ``conform``, ``verify`` and ``report``: here the packages meet."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

TIERS = ("quick", "full")


def add_arguments(parser: ArgumentParser) -> None:
    add = {
        "run": _add_run_arguments,
        "conform": _add_conform_arguments,
        "verify": _add_verify_arguments,
        "report": _add_report_arguments,
    }
    add[parser.get_default("command")](parser)


def run(args: Namespace) -> int:
    return {"run": _run, "conform": _conform, "verify": _verify, "report": _report}[args.command](args)


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


def _add_report_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "RESULT: a results folder of `s35 run`, a file of measurements of `pytest perf/ --results`, a record of "
        "`s35 perf ops --out`, a projection of `s35 fit --json`. Several make one report, devices side by side."
    )
    parser.add_argument("results", type=Path, nargs="*", metavar="RESULT")
    parser.add_argument("--format", choices=("html", "md", "both"), default="html", help="default: html")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html"
    )
    parser.add_argument(
        "--beside", default="", metavar="NAME,...", help="profiles to show beside: published numbers and projections"
    )
    parser.add_argument("--weights", default="q4", metavar="FORMAT", help="of the projections (default: q4)")
    parser.add_argument(
        "--context", type=int, default=262_144, metavar="N", help="of the projections (default: 262144)"
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


def _report(args: Namespace) -> int:
    import os

    from .page import gather, projected
    from .render import MOST_HTML_BYTES, html, markdown
    from .third_party import published_measurements
    from .verdict import ExitCode

    beside = [name for name in args.beside.split(",") if name]
    if not args.results and not beside:
        raise ValueError("report: has neither RESULT nor --beside; want something to show")
    projections = [_projection(name, args.weights, args.context) for name in beside]
    profiles = {record["hardware"] for record in projections}
    extra = [one for one in published_measurements() if one.hardware in profiles]
    extra += [one for record in projections for one in projected(record)]
    page = gather(args.results, extra)
    for record in projections:
        page.memory += [{"hardware": record["hardware"], "format": args.weights, **row} for row in record["memory"]]
        page.notes += [f"{record['hardware']}: {note}" for note in record["notes"]]
    if not page.verdicts:
        page.sources.append("hardware/profiles and reports/measurements")
    written = []
    if args.format in ("html", "both"):
        text = html(page)
        if len(text.encode()) > MOST_HTML_BYTES:
            raise ValueError(f"report: would be {len(text.encode())} bytes; want fewer results in one page")
        args.out.write_text(text, encoding="utf-8")
        written.append(args.out)
    if args.format in ("md", "both"):
        twin = args.out.with_suffix(".md")
        twin.write_text(markdown(page), encoding="utf-8")
        written.append(twin)
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(markdown(page))
    print("\n".join(map(str, written)))
    return ExitCode.PASS


def _projection(name: str, weights: str, context: int):  # type: ignore[no-untyped-def]
    from hardware.profile import profile_called
    from perf.fit import Question, answer
    from perf.roofline import Parallel, format_called
    from perf.shapes import published

    depths = (0, *(1024 << power for power in range(1, 9)))  # those at which others publish
    question = Question(
        profile_called(name), format_called(weights), context, (1,), Parallel(), with_mtp=False, depths=depths
    )
    return answer(question, published().model)


def _miniature() -> Path:
    """The checkpoint that comes with the suite."""
    from importlib.util import find_spec

    spec = find_spec("reference")
    assert spec is not None, "the reference package is part of the distribution"
    assert spec.origin is not None, "reference is a package with an __init__"
    return Path(spec.origin).parent / "nano"
