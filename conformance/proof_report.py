"""The proof as a page: what was caught by which clause's checks, what was not, on which machine, when and how long."""

from collections.abc import Sequence
from datetime import UTC, datetime

from tabulate import tabulate

from hardware.identify import identify

from .prove import Outcome, score


def proof_report(outcomes: Sequence[Outcome], command: str, seconds: float) -> str:
    """Render outcomes as Markdown.

    Args:
        command: that made them.
        seconds: from the first engine to the last.
    """
    machine, totals = identify("cpu"), score(outcomes)
    changed = ", with changes" if machine.suite_dirty.value else ""
    lines = [
        "# The judge, judged",
        "",
        f"Made by `{command}` at commit {str(machine.suite_commit.value)[:12]}{changed}, "
        f"{datetime.now(UTC).date()}, on {machine.cpu.value}, {machine.cpu_threads.value} threads, torch "
        f"{machine.torch.value}: {len(outcomes)} engines in {seconds / 60:.1f} minutes.",
        "",
        f"- {totals['caught']} of {totals['faults']} faults caught by a check of their own clause; "
        f"{totals['localised']} put down to the right part, with the fault itself among the suspects.",
        f"- {totals['benign'] + totals['equivalent'] - totals['false_alarms']} of "
        f"{totals['benign'] + totals['equivalent']} right engines accepted ({totals['equivalent']} of them proven "
        "equivalents of a fault).",
        f"- {totals['attacks_caught']} of {totals['attacks']} attacks caught.",
        "",
        *_not_as_wanted(outcomes),
        tabulate(_by_clause(outcomes), ("clause", "faults", "caught", "localised"), tablefmt="github"),
        "",
    ]
    return "\n".join(lines)


def _not_as_wanted(outcomes: Sequence[Outcome]) -> list[str]:
    wrong = [outcome for outcome in outcomes if not outcome.as_wanted]
    listed = [f"- `{outcome.name}` ({outcome.kind} {outcome.clause or ''}): {outcome.verdict}" for outcome in wrong]
    return ["Not as they should be:", "", *listed, ""] if listed else []


def _by_clause(outcomes: Sequence[Outcome]) -> list[tuple[str, int, int, int]]:
    faults = [outcome for outcome in outcomes if outcome.kind == "fault"]
    table = []
    for clause in dict.fromkeys(str(outcome.clause) for outcome in faults):
        own = [outcome for outcome in faults if outcome.clause == clause]
        table.append((clause, len(own), sum(o.as_wanted for o in own), sum(o.localised is True for o in own)))
    return sorted(table)
