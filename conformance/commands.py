"""The command ``s35 prove``. Nothing heavy is imported until it runs."""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="of faults.toml (default: all, and the right engines)")
    parser.add_argument("--checkpoint", type=Path, help="for checks of whole models (default: the trained miniature)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: Namespace) -> int:
    """Prove the judge; 0 if every fault is caught and no right engine rejected, 1 otherwise."""
    import json
    import sys
    from dataclasses import asdict

    from tabulate import tabulate

    from .faults.catalogue import BENIGN, FAULTS
    from .plugin import EMBEDDED_CHECKPOINT
    from .prove import Outcome, prove

    def say(outcome: Outcome) -> None:
        print(f"{outcome.verdict:9} {outcome.name}", file=sys.stderr, flush=True)

    outcomes = prove(args.names or [*FAULTS, *BENIGN], args.checkpoint or EMBEDDED_CHECKPOINT, say)
    faults, right = [o for o in outcomes if o.clause], [o for o in outcomes if not o.clause]
    score = {
        "faults": len(faults),
        "caught": sum(outcome.as_wanted for outcome in faults),
        "right_engines": len(right),
        "accepted": sum(outcome.as_wanted for outcome in right),
    }
    if args.json:
        records = [{key: value for key, value in asdict(o).items() if key != "checks"} for o in outcomes]
        print(json.dumps(score | {"outcomes": records}, indent=1))
    else:
        rows = [
            (
                o.clause or "",
                o.name,
                o.verdict,
                o.caught_by[0].partition("::")[2] if o.caught_by else "",
                o.origin or "",
            )
            for o in outcomes
        ]
        print(tabulate(rows, ("clause", "engine", "verdict", "first check that failed", "where it happened")))
        print(
            f"{score['caught']} of {score['faults']} faults caught, "
            f"{score['accepted']} of {score['right_engines']} right engines accepted"
        )
    return int(not all(outcome.as_wanted for outcome in outcomes))
