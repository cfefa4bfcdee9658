"""The page about one run, in Markdown: the verdict first, then why, then what it does not show."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from .levels import capability_of, grants_sentence
from .schema import Capabilities, CheckRecord, EngineIdentity, GenerationSample, Result
from .verdict import WRONG, Status, stayed_zero

MAX_EXPLAINED = 20  # with MAX_DETAIL_CHARACTERS this keeps the page below the 65,536 characters of a PR comment
MAX_DETAIL_CHARACTERS = 2_000
MAX_BLOCKERS = 5
UNWELL = (*WRONG, Status.INCONCLUSIVE)


def render(result: Result) -> str:
    """Write the page; everything on it comes from the record."""
    sections = {
        "": _summary(result),
        "Levels": _levels(result),
        "Not supported": _not_supported(result.capabilities, result.checks),
        "Waivers": _waivers(result),
        "Known failures": _known_failures(result),
        "What to look at": _explanations(result),
        "Conformance by clause": _clauses(result.checks),
        "Generated text": _generation(result.generation),
        "Machine": _machine(result.machine),
        "What this does not show": _limits(result),
    }
    verdict = f"{result.verdict_after_waivers}: {result.reason}; {grants_sentence(result.levels)}"
    parts = [f"# {_inline(verdict)}"]
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
    commit = result.suite.commit or f"not known ({result.machine['suite_commit']['reason']})"
    dirty = ", with local changes" if result.machine["suite_dirty"]["value"] else ""
    rows = [
        ("verdict before waivers", result.verdict_before_waivers),
        ("verdict after waivers", result.verdict_after_waivers + ("" if result.waivers else " (there are none)")),
        ("levels", grants_sentence(result.levels)),
        ("engine", _engine(result.engine, result.engine_identity)),
        ("numerics profile", result.engine_profile or "not known (no conformance session ended)"),
        ("tier", result.tier),
        ("checkpoint, sha256", result.checkpoint_sha256 or "not known (the run ended before)"),
        ("suite commit", commit + dirty),
        ("seed", "not known (no conformance session ended)" if result.seed is None else result.seed),
        ("started", result.started),
        ("duration", f"{result.duration_s:.1f} s"),
        ("command", f"`{shlex.join(result.command)}`"),
    ]
    return _table(rows, ["run", ""])


def _engine(option: str, identity: EngineIdentity | None) -> str:
    if identity is None:
        return option
    named = identity.name if identity.name == option else f"{identity.name} ({option})"
    return f"{named} on {identity.device}"


def _levels(result: Result) -> str:
    rows = []
    for level in result.levels:
        reasons = list(level.blocked_by[:MAX_BLOCKERS])
        if len(level.blocked_by) > MAX_BLOCKERS:
            reasons.append(f"{len(level.blocked_by) - MAX_BLOCKERS} more")
        reasons = reasons or [f"waiver {', '.join(level.waived)}" for _ in level.waived[:1]]
        rows.append((level.label, level.title, level.grant, f"{level.passed} of {level.checks}", "; ".join(reasons)))
    return _table(rows, ["level", "of", "state", "passed", "why"])


def _not_supported(capabilities: Capabilities | None, checks: Iterable[CheckRecord]) -> str:
    """What the engine does not offer, and what was not judged for it; records that name no capability stay visible."""
    absent = [check for check in checks if check.status is Status.NOT_SUPPORTED]
    reasons = dict(capabilities.not_offered) if capabilities else {}
    for check in absent:
        reasons.setdefault(capability_of(check), "not named among the engine's capabilities")
    rows = []
    for name, reason in reasons.items():
        clauses = sorted({check.clause for check in absent if capability_of(check) == name})
        rows.append((name, reason, ", ".join(clauses) or "none"))
    return _table(rows, ["the engine offers no", "because", "clauses not judged for it"]) if rows else ""


def _waivers(result: Result) -> str:
    used = {check.waiver for check in result.checks}
    rows = [
        (w.id, w.check, w.clause, w.reason, w.issue, w.owner, w.expires, "yes" if w.id in used else "no: remove it")
        for w in result.waivers
    ]
    headers = ["waiver", "check", "clause", "reason", "issue", "owner", "expires", "needed"]
    return _table(rows, headers) if rows else ""


def _known_failures(result: Result) -> str:
    if result.known_failures is None:
        return ""
    status_by_id = {check.id: check.status for check in result.checks}
    rows = []
    for id, reason in result.known_failures.reasons.items():
        status = str(status_by_id.get(id, "has no record"))
        rows.append((id, f"{status}: remove it" if status == Status.PASSED else status, reason))
    note = f"Listed in {result.known_failures.file}; they change the exit code, and neither verdict nor level."
    return f"{note}\n\n{_table(rows, ['check', 'now', 'known because'])}"


def _explanations(result: Result) -> str:
    checks = sorted((c for c in result.checks if c.status in UNWELL), key=lambda c: UNWELL.index(c.status))
    parts = [_explanation(result, check) for check in checks[:MAX_EXPLAINED]]
    if len(checks) > MAX_EXPLAINED:
        parts.append(f"{len(checks) - MAX_EXPLAINED} more are in result.json.")
    return "\n\n".join(parts)


def _explanation(result: Result, check: CheckRecord) -> str:
    clause = f", clause {check.clause}" if check.clause else ""
    waived = f", waived by {check.waiver}" if check.waiver else ""
    parts = [f"### {check.status}: {check.id}{clause}{waived}"]
    if check.worst is not None and check.status is Status.FAILED:
        worst = check.worst
        where = f" at {_inline(worst.where)}" if worst.where else ""
        parts.append(
            f"{_inline(worst.rule)}: statistic {worst.statistic:.4g}, bound {worst.bound:.4g}, "
            f"margin {worst.margin:.3g}{where}"
        )
    if check.status is Status.INCONCLUSIVE and (never := stayed_zero(check)):
        parts.append(f"never happened: {', '.join(never)}")
    if check.detail:
        parts.append(_block(_shortened(check.detail)))
    if "::" in check.id:  # a test; the suite's own records (a crash, a missing device) have no test to run again
        parts.append(_block(rerun_command(result, check)))
    return "\n\n".join(parts)


def _clauses(checks: Sequence[CheckRecord]) -> str:
    """One row a clause; a column for each status that occurs."""
    statuses = [s for s in Status if s is Status.PASSED or any(check.status is s for check in checks)]
    rows = []

    def by(check: CheckRecord) -> tuple[str, str]:
        return check.level or "", check.clause

    for (level, clause), group in groupby(sorted(checks, key=by), key=by):
        members = list(group)
        counts = [sum(check.status is status for check in members) or "" for status in statuses]
        margin, catches = _sharpness(members)
        seconds = f"{sum(check.duration_s for check in members):.1f}"
        rows.append([level, clause or "none", *counts, margin, catches, seconds])
    if not rows:
        return "No check ran."
    table = _table(rows, ["level", "clause", *statuses, "margin used", "catches from", "seconds"])
    return f"{table}\n\n{_LEGEND}"


_LEGEND = (
    "Margin used: the largest error, as a share of its bound; above 1 fails. Exact: any difference at all fails. "
    "Catches from: the relative fault that each rule with a bound above 0 is certain to catch in at least "
    "one comparison; smaller ones may be caught as well."
)


def _sharpness(checks: Iterable[CheckRecord]) -> tuple[str, str]:
    """How near to their bounds checks came, and from which size on they catch a fault."""
    evidence = [entry for check in checks for entry in check.evidence]
    if not evidence:
        return "", ""
    margin = max(entry.margin for entry in evidence)
    exact = all(entry.bound == 0 for entry in evidence) and margin == 0
    detects = [entry.detects for entry in evidence if entry.detects is not None]
    return "exact" if exact else f"{margin:.2g}", f"{max(detects):.1e}" if detects else ""


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
        "Who wrote it: `s35 verify` finds edits of this folder by their hashes; hashes are no signature.",
    ]
    if result.tier != "full":
        limits.append(f"The full tier: only the {result.tier} tier ran.")
    limits += [
        f"Skipped: {check.id}: {_inline(check.detail) or 'no reason given'}" for check in skipped[:MAX_EXPLAINED]
    ]
    if len(skipped) > MAX_EXPLAINED:
        limits.append(f"Skipped: {len(skipped) - MAX_EXPLAINED} more, listed in result.json.")
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
