"""The commands ``s35 baseline`` and ``s35 compare``: what is normal on a machine, and what changed."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from .verdict import ExitCode

RUNS, CANDIDATE_RUNS = 5, 3
MAX_REGRESSION = 0.05
SPLITS = 2000


def add_arguments(parser: ArgumentParser) -> None:
    {"baseline": _add_baseline_arguments, "compare": _add_compare_arguments}[parser.get_default("command")](parser)


def run(args: Namespace) -> int:
    if args.command == "compare":
        return _compare(args)
    return {"record": _record, "check": _check, "show": _show, "power": _power}[args.what](args)


def _add_baseline_arguments(parser: ArgumentParser) -> None:
    parser.set_defaults(pytest_args=[])
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    record = what.add_parser("record", help="run `pytest perf/` several times and keep the medians", allow_abbrev=False)
    record.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"default: {RUNS}")
    record.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="the baseline; runs lie beside it")
    record.add_argument("--resume", action="store_true", help="go on with the runs that lie there, complete ones only")
    record.add_argument("--budget", type=float, metavar="S", help="begin no run that would end after so many seconds")
    record.add_argument("--power", action="store_true", help="then say what `power` says of these runs")
    record.epilog = "Every other option goes to pytest as it is: --engine=NAME, --device=cuda, --op=ROW, ..."

    check = what.add_parser("check", help="run the candidate, compare, run suspects again", allow_abbrev=False)
    check.add_argument("baseline", type=Path, metavar="FILE.json")
    check.add_argument("--runs", type=int, default=CANDIDATE_RUNS, metavar="N", help=f"default: {CANDIDATE_RUNS}")
    check.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the runs")
    check.add_argument("--max-regression", type=float, default=MAX_REGRESSION, metavar="X", help="default: 0.05")
    check.add_argument("--format", choices=("md", "json"), default="md", help="default: md")
    check.epilog = "Every other option goes to pytest as it is. Exit codes as those of `s35 compare`."

    show = what.add_parser("show", help="what a baseline holds", allow_abbrev=False)
    show.add_argument("baseline", type=Path, metavar="FILE.json")

    power = what.add_parser("power", help="false alarms and power of the gate on repeated runs", allow_abbrev=False)
    power.add_argument("runs", type=Path, nargs="+", metavar="RUN.jsonl", help="eight or more runs of one thing")
    power.add_argument("--baseline-runs", type=int, default=RUNS, metavar="N", help=f"default: {RUNS}")
    power.add_argument("--candidate-runs", type=int, default=CANDIDATE_RUNS, metavar="N", help=f"{CANDIDATE_RUNS}")
    power.add_argument("--max-regression", type=float, default=MAX_REGRESSION, metavar="X", help="default: 0.05")


def _add_compare_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "A and B: a baseline, a file of measurements, or a folder of them. Exit code 0: nothing is slower than "
        "allowed, 1: something is, 4: they cannot be compared, 5: something is missing or nobody can tell; neither "
        "counts as same."
    )
    parser.add_argument("a", type=Path, metavar="A", help="then")
    parser.add_argument("b", type=Path, metavar="B", help="now")
    parser.add_argument(
        "--max-regression", type=float, default=MAX_REGRESSION, metavar="X", help="that is allowed (0.05)"
    )
    parser.add_argument("--format", choices=("md", "json"), default="md", help="default: md")


def _record(args: Namespace) -> int:
    from .baseline import combine, dumps
    from .journal import read

    if args.power and args.runs < RUNS + CANDIDATE_RUNS:
        raise ValueError(f"power: is asked of {args.runs} runs; want {RUNS + CANDIDATE_RUNS} or more")
    folder = args.out.with_suffix("")
    files = _run_all(folder, args.runs, args.pytest_args, args.resume, args.budget)
    if len(files) < args.runs:
        print(f"{len(files)} of {args.runs} runs lie in {folder}: the budget was spent; go on with --resume")
        return ExitCode.INCONCLUSIVE
    baseline = combine([read(file) for file in files])
    args.out.write_text(dumps(baseline), encoding="utf-8")
    print(f"{args.out}: {len(baseline.entries)} workloads, {baseline.runs} runs; the runs lie in {folder}")
    if args.power:
        _say_power(baseline, RUNS, CANDIDATE_RUNS, MAX_REGRESSION)
    return ExitCode.PASS if baseline.entries else ExitCode.INCONCLUSIVE


def _check(args: Namespace) -> int:
    from .baseline import combine, load
    from .gate import compare
    from .journal import read
    from .measurement import Comparison

    baseline = load(args.baseline)
    files = _run_all(args.out, args.runs, args.pytest_args)
    found = compare(baseline, combine([read(file) for file in files]), args.max_regression)
    suspects = [one.id for one in found if one.word in (Comparison.SLOWER, Comparison.AMBIGUOUS)]
    if suspects:
        only = [f"--only={id}" for id in suspects]
        again = [read(file) for file in _run_all(args.out / "suspects", args.runs, [*args.pytest_args, *only])]
        confirmed = {one.id: one for one in compare(baseline, combine(again), args.max_regression)}
        found = [confirmed.get(one.id, one) if one.id in suspects else one for one in found]
    return _say(found, baseline.staleness(), args.format, args.max_regression)


def _run_all(
    folder: Path, runs: int, pytest_args: Sequence[str], resumes: bool = False, budget_s: float | None = None
) -> list[Path]:
    """Each run in a process of its own, so that what varies from start to start is in it.

    Args:
        resumes: keep the runs of the folder that ended; one that did not is made anew.
        budget_s: a run is not begun that would end later, if it took as long as those before; fewer come back.

    Raises:
        ValueError: a run that wrote no measurements, or a folder that holds some.
    """
    import subprocess
    import sys
    import time

    from s35_progress import progress

    from .journal import read

    if folder.exists() and any(folder.glob("*.jsonl")) and not resumes:
        raise ValueError(f"{folder}: holds runs already; want a new name")
    folder.mkdir(parents=True, exist_ok=True)
    perf = Path(__file__).resolve().parent.parent / "perf"
    files, started, made = [], time.monotonic(), 0
    with progress("runs", runs) as bar:
        for number in range(1, runs + 1):
            file = folder / f"run-{number}.jsonl"
            if file.exists() and (recorded := read(file)).verdict is not None:
                _require_same(file, recorded.run["command"], pytest_args)
                files.append(file)
                bar.advance()
                continue
            file.unlink(missing_ok=True)
            used_s = time.monotonic() - started
            if budget_s is not None and made and used_s / made * (made + 1) > budget_s:
                break
            command = [sys.executable, "-m", "pytest", str(perf), "-q", "--no-header", f"--results={file}"]
            done = subprocess.run([*command, *pytest_args], capture_output=True, text=True, check=False)
            last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
            made += 1
            left_s = (time.monotonic() - started) / made * (runs - number)
            said = last[0] if last else f"exit code {done.returncode}"
            bar.say(f"run {number} of {runs}: {said}; {left_s:.0f} s left")
            bar.advance()
            if done.returncode not in (ExitCode.PASS, ExitCode.FAIL, ExitCode.INCONCLUSIVE) or not file.exists():
                raise ValueError(f"run {number} ended with {done.returncode}: {' '.join(last)}")
            files.append(file)
    return files


def _require_same(file: Path, command: Sequence[str], pytest_args: Sequence[str]) -> None:
    """Refuse a run of another command.

    Raises:
        ValueError: it is one.
    """
    from .redaction import redact

    kept = [word for word in command if word.startswith("--") and not word.startswith("--results=")]
    wanted = [word for word in redact(["--no-header", *pytest_args]) if word.startswith("--")]
    if kept != wanted:
        raise ValueError(f"{file}: is a run with {' '.join(kept)}; want {' '.join(wanted)}, or another --out")


def _show(args: Namespace) -> int:
    from .baseline import load

    baseline = load(args.baseline)
    print(f"{baseline.recorded}, {baseline.runs} runs, commit {baseline.commit}")
    print("\n".join(f"{name}: {value}" for name, value in baseline.key.items()))
    for entry in baseline.entries.values():
        spread = (max(entry.medians) - min(entry.medians)) / entry.median
        print(f"{entry.id}  {entry.name}: {entry.median:.4g} {entry.unit}, runs spread over {spread:.1%}")
    return ExitCode.PASS


def _compare(args: Namespace) -> int:
    from .gate import compare

    then, now = _side(args.a), _side(args.b)
    differences = then.differences(now.key)
    if differences:
        raise ValueError(f"compare: cannot be compared: {'; '.join(differences)}; want one machine and one engine")
    return _say(compare(then, now, args.max_regression), then.staleness(), args.format, args.max_regression)


def _side(path: Path):  # type: ignore[no-untyped-def]
    """A baseline, or one made of a file or a folder of measurements."""
    from .baseline import combine, load
    from .journal import read

    if path.is_dir():
        return combine([read(file) for file in sorted(path.glob("*.jsonl"))])
    if path.suffix == ".jsonl":
        return combine([read(path)])
    return load(path)


def _say(found, stale, form, max_regression) -> int:  # type: ignore[no-untyped-def]
    import dataclasses
    import json

    from .gate import judge, table

    verdict, reason = judge(found, max_regression, stale)
    if form == "json":
        rows = [dataclasses.asdict(one) for one in found]
        print(json.dumps({"kind": "comparison", "verdict": verdict, "reason": reason, "compared": rows}, indent=1,
                         default=str).replace("Infinity", "null"))  # fmt: skip
    else:
        print(f"{table(found)}\n\n{verdict}: {reason} (allowed: {max_regression:.0%})")
    return ExitCode[verdict.name]


def _power(args: Namespace) -> int:
    from .baseline import combine
    from .journal import read

    baseline = combine([read(file) for file in args.runs])
    need = args.baseline_runs + args.candidate_runs
    if baseline.runs < need:
        raise ValueError(f"power: has {baseline.runs} runs; want {need} or more")
    _say_power(baseline, args.baseline_runs, args.candidate_runs, args.max_regression)
    return ExitCode.PASS


def _say_power(baseline, then: int, now: int, max_regression: float) -> None:  # type: ignore[no-untyped-def]
    """How often each word is said of these runs, by what was planted; of what was timed: bytes do not vary."""
    from .gate import rates

    entries = [entry for entry in baseline.entries.values() if entry.metric != "bytes"]
    for entry in entries:
        spread = (max(entry.medians) - min(entry.medians)) / entry.median
        print(f"{entry.name}: {entry.median:.4g} {entry.unit}, runs spread over {spread:.2%}")
    print(f"{len(entries)} workloads, {baseline.runs} runs of the same thing, {SPLITS} random splits of each into "
          f"{then} and {now}")  # fmt: skip
    for planted in (0.0, 0.03, 0.05, 0.08, 0.15):
        found = rates(entries, then, now, planted, max_regression, SPLITS)
        words = ", ".join(f"{word} {share:.1%}" for word, share in found.items())
        print(f"{'unchanged' if planted == 0 else f'{planted:.0%} slower':<10} {words}")
