"""The commands ``s35 prove`` and ``s35 repro``. Nothing heavy is imported until one runs."""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    {"prove": _add_prove_arguments, "repro": _add_repro_arguments}[parser.get_default("command")](parser)


def run(args: Namespace) -> int:
    return {"prove": _prove, "repro": _repro}[args.command](args)


def _add_prove_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="engines of the catalogue (default: all)")
    parser.add_argument("--gate", action="store_true", help="what every merge is judged by: quick checks only")
    parser.add_argument("--list", action="store_true", help="list the catalogue and judge nothing")
    parser.add_argument("--checkpoint", type=Path, help="for checks of whole models (default: the trained miniature)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="write a summary by clause, with its provenance")


def _add_repro_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("check", metavar="ID", help="of a failed check, as the report gives it")
    parser.add_argument("--engine", required=True, help="registered name or module:attribute")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the engine's own)")
    parser.add_argument("--seed", type=int, default=0, help="of the run that failed (default: 0)")
    parser.add_argument("--tier", choices=("quick", "full"), default="quick", help="of the run that failed")
    parser.add_argument("--out", type=Path, default=Path("repro"), help="folder for the script (default: repro)")


def _prove(args: Namespace) -> int:
    """Prove the judge: 0 if all wrong engines and attacks are caught and no right engine is rejected, 1 otherwise."""
    import json
    import resource
    import shlex
    import time
    from dataclasses import asdict

    from tabulate import tabulate

    from s35_progress import progress

    from .plugin import EMBEDDED_CHECKPOINT
    from .proof_report import proof_report, provenance
    from .prove import KINDS, Outcome, gate_names, known_names, prove, score

    if args.list:
        for kind, table in KINDS.items():
            print("\n".join(f"{kind:10} {name}" for name in table))
        return 0

    names = args.names or (gate_names() if args.gate else known_names())
    began = time.monotonic()
    with progress("prove", len(names)) as bar:

        def say(outcome: Outcome) -> None:
            bar.say(f"{outcome.verdict:9} {outcome.kind:10} {outcome.name}")
            bar.advance()

        outcomes = prove(names, args.checkpoint or EMBEDDED_CHECKPOINT, say)
    totals, used = score(outcomes), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = shlex.join(["s35", "prove", *(["--gate"] if args.gate else []), *args.names])
    made = provenance(command, time.monotonic() - began, used.ru_utime + used.ru_stime)
    if args.report:
        args.report.write_text(proof_report(outcomes, made), encoding="utf-8")
    if args.json:
        records = [{key: value for key, value in asdict(o).items() if key != "checks"} for o in outcomes]
        print(json.dumps(totals | {"made": made, "outcomes": records}, indent=1))
    else:
        rows = [
            (o.kind, o.clause or "", o.name, o.verdict, *(c.partition("::")[2] for c in o.caught_by[:1]))
            for o in outcomes
        ]
        print(tabulate(rows, ("kind", "clause", "engine", "verdict", "first check that failed")))
        print(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in totals.items()))
    return int(not all(outcome.as_wanted for outcome in outcomes))


def _repro(args: Namespace) -> int:
    """Run one check again, and write its failure as a script; 0 if there is one, 1 if the check passes now."""
    import subprocess
    import sys

    folder, root = args.out.resolve(), Path(__file__).parents[1]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.py")}
    options = [f"--engine={args.engine}", f"--seed={args.seed}", f"--tier={args.tier}", f"--repro={folder}"]
    options += [f"--device={args.device}"] if args.device else []
    place = ["-c", str(root / "pyproject.toml"), "--rootdir", str(root), "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-P", "-m", "pytest", *place, *options, str(root / args.check)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, file=sys.stderr)
    if done.returncode == 0:
        print(f"{args.check} passes: nothing to reproduce")
        return 1
    written = [path for path in folder.glob("*.py") if path.stat().st_mtime_ns != before.get(path)]
    if not written:
        return done.returncode
    print(f"python {written[0]}")
    return 0
