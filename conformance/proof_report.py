"""The proof as a page: what was caught by which clause's checks, what was not, on which machine, when and how long."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tabulate import tabulate

from hardware.identify import identify

from .prove import Outcome, score


def provenance(command: str, seconds: float, cpu_seconds: float) -> dict[str, Any]:
    """Where outcomes come from.

    Args:
        command: that made them.
        seconds: from the first engine to the last.
        cpu_seconds: of all processes together: what the machine did beside them does not count.
    """
    machine = identify("cpu")
    return {
        "command": command,
        "commit": str(machine.suite_commit.value),
        "changed": bool(machine.suite_dirty.value),
        "date": str(datetime.now(UTC).date()),
        "cpu": machine.cpu.value,
        "threads": machine.cpu_threads.value,
        "torch": machine.torch.value,
        "minutes": round(seconds / 60, 1),
        "cpu_minutes": round(cpu_seconds / 60, 1),
    }


def proof_report(outcomes: Sequence[Outcome], made: Mapping[str, Any]) -> str:
    """Render outcomes, and how they were made, as Markdown."""
    totals = score(outcomes)
    changed = ", with changes" if made["changed"] else ""
    lines = [
        "# The judge, judged",
        "",
        f"Made by `{made['command']}` at commit {made['commit'][:12]}{changed}, {made['date']}, on {made['cpu']}, "
        f"{made['threads']} threads, torch {made['torch']}: {len(outcomes)} engines in {made['minutes']} minutes, "
        f"{made['cpu_minutes']} minutes of processor time.",
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
