"""The page about one run, in Markdown: the verdict first, then why, then what it does not show."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from .schema import CheckRecord, GenerationSample, Result
from .verdict import Status

MAX_EXPLAINED = 20  # with MAX_DETAIL_CHARACTERS this keeps the page below the 65,536 characters of a PR comment
MAX_DETAIL_CHARACTERS = 2_000


def render(result: Result) -> str:
    """Write the page; everything on it comes from the record."""
    sections = {
        "": _summary(result),
        "What to look at": _explanations(result),
        "Conformance by clause": _clauses(result.checks),
        "Generated text": _generation(result.generation),
        "Machine": _machine(result.machine),
        "What this does not show": _limits(result),
    }
    parts = [f"# {result.verdict}: {_inline(result.reason)}"]
    for title, body in sections.items():
        if body:
            parts += [f"## {title}", body] if title else [body]
    return "\n\n".join(parts) + "\n"


def rerun_command(result: Result, check: CheckRecord) -> str:
    """The command that runs exactly this check again, as it was run."""
    options = [f"--engine={result.engine}", f"--tier={result.tier}", f"--device={result.machine['device']}"]
    if result.seed is not None:
        options.append(f"--seed={result.seed}")
    return shlex.join(["s35", "conform", *options, f"--check={check.id}"])


def _summary(result: Result) -> str:
    commit = result.suite_commit or f"not known ({result.machine['suite_commit']['reason']})"
    dirty = ", with local changes" if result.machine["suite_dirty"]["value"] else ""
    rows = [
        ("engine", result.engine),
        ("numerics profile", result.engine_profile or "not known (no conformance session named one)"),
        ("tier", result.tier),
        ("checkpoint, sha256", result.checkpoint_sha256 or "not known (the run ended before)"),
        ("suite commit", commit + dirty),
        ("seed", "not known (no conformance session ended)" if result.seed is None else result.seed),
        ("started", result.started),
        ("duration", f"{result.duration_s:.1f} s"),
        ("command", f"`{shlex.join(result.command)}`"),
    ]
    return _table(rows, ["run", ""])


def _explanations(result: Result) -> str:
    unwell = (Status.FAILED, Status.ERROR, Status.INCONCLUSIVE)
    checks = sorted((c for c in result.checks if c.status in unwell), key=lambda c: unwell.index(c.status))
    parts = [_explanation(result, check) for check in checks[:MAX_EXPLAINED]]
    if len(checks) > MAX_EXPLAINED:
        parts.append(f"{len(checks) - MAX_EXPLAINED} more are in result.json.")
    return "\n\n".join(parts)


def _explanation(result: Result, check: CheckRecord) -> str:
    clause = f", clause {check.clause}" if check.clause else ""
    parts = [f"### {check.status}: {check.id}{clause}"]
    if check.statistic is not None and check.bound is not None:
        margin = "" if check.margin is None else f", margin {check.margin:.3g}"
        parts.append(f"statistic {check.statistic:.4g}, bound {check.bound:.4g}{margin}")
    vacuous = [name for name, count in check.counters.items() if count == 0]
    if vacuous:
        parts.append(f"never happened: {', '.join(vacuous)}")
    if check.detail:
        parts.append(_block(_shortened(check.detail)))
    if "::" in check.id:  # a test; the suite's own records (a crash, a missing device) have no test to run again
        parts.append(_block(rerun_command(result, check)))
    return "\n\n".join(parts)


def _clauses(checks: Iterable[CheckRecord]) -> str:
    by_clause = attrgetter("clause")
    rows = []
    for clause, group in groupby(sorted(checks, key=by_clause), key=by_clause):
        members = list(group)
        counts = [sum(check.status is status for check in members) or "" for status in Status]
        margins = [check.margin for check in members if check.margin is not None]
        largest = f"{max(margins):.2g}" if margins else ""
        rows.append([clause or "none", *counts, largest, f"{sum(c.duration_s for c in members):.1f}"])
    return _table(rows, ["clause", *Status, "largest margin", "seconds"]) if rows else "No check ran."


def _generation(sample: GenerationSample | None) -> str:
    if sample is None:
        return "None: the run ended before."
    speed = "speed not known" if sample.tokens_per_s is None else f"{sample.tokens_per_s:.1f} tokens/s"
    shares = ", ".join("none" if share is None else f"{share:.2f}" for share in sample.acceptance_per_position)
    drafts = f"; share of drafts accepted, by position: {shares}" if shares else ""
    text = _block(sample.prompt + sample.text)
    return f"{text}\n\nThe first {len(sample.prompt)} characters are the prompt; {speed}{drafts}."


def _machine(machine: Mapping[str, Any]) -> str:
    rows = [("device", machine["device"], "the command")]
    rows += [_fact(name, value) for name, value in machine.items() if _is_fact(value)]
    for index, accelerator in enumerate(machine["accelerators"]):
        rows += [_fact(f"accelerator {index} {k}", v) for k, v in accelerator.items() if _is_fact(v)]
    return _table(rows, ["", "value", "source"])


def _limits(result: Result) -> str:
    skipped = [check for check in result.checks if check.status is Status.SKIPPED]
    limits = [
        "Speed: the tokens/s above are one unrepeated sample, without warm-up or a clock check.",
        "Other weights: model checks ran on the checkpoint named above, and on no other.",
        f"Other hardware: everything here ran on {result.machine['device']}.",
        f"Other numerics: the engine was judged by profile {result.engine_profile or 'not known'}.",
    ]
    if result.tier != "full":
        limits.append(f"The full tier: only the {result.tier} tier ran.")
    limits += [f"Skipped: {check.id}: {_inline(check.detail) or 'no reason given'}" for check in skipped]
    return "\n".join(f"- {limit}" for limit in limits)


def _is_fact(value: Any) -> bool:
    return isinstance(value, Mapping) and "source" in value


def _fact(name: str, fact: Mapping[str, Any]) -> tuple[str, str, str]:
    value = fact["value"]
    if value is None:
        text = f"not known: {fact['reason']}"
    elif name.endswith("_bytes"):
        text = f"{value / 1e9:.1f} GB"
    else:
        text = str(value)
    return name.removesuffix("_bytes").replace("_", " "), text, fact["source"]


def _table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    from tabulate import tabulate

    cells = [[_inline(str(cell)).replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(cells, headers, tablefmt="pipe", disable_numparse=True)


def _inline(text: str) -> str:
    return " ".join(text.split())


def _shortened(text: str) -> str:
    if len(text) <= MAX_DETAIL_CHARACTERS:
        return text
    return text[:MAX_DETAIL_CHARACTERS] + "\n... (the whole text is in result.json)"


def _block(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text.rstrip()}\n{fence}"
