"""A page as one HTML file, or as Markdown that fits a comment: the same content in the same order."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .charts import Bar, Series, bars, by_batch, by_depth, by_length, roofline
from .measurement import Kind, Measurement
from .page import Page, compared

TEMPLATE = Path(__file__).parent / "report.html.j2"
MOST_HTML_BYTES = 2_000_000
MOST_MARKDOWN_BYTES = 60_000  # GitHub takes 65,536 characters in a comment
MOST_RAW_BYTES = 900_000
GB = 1e9


def html(page: Page) -> str:
    """Write the whole page: nothing is loaded, nothing runs, the bytes are the same each time."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        page=page,
        title=title_of(page),
        comparison=comparison_of(page),
        charts=charts_of(page),
        operators=operators_of(page),
        baseline=baseline_of(page),
        others=others_of(page),
        raw=_raw(page),
    )


def title_of(page: Page) -> str:
    """What was looked at: the hardware if several, else the first headline."""
    if len(page.hardware) > 1:
        return f"Step 3.5 Flash on {len(page.hardware)} devices"
    where = f" on {page.hardware[0]}" if page.hardware else ""
    return f"Step 3.5 Flash{where}: {page.verdicts[0][2]}" if page.verdicts else f"Step 3.5 Flash{where}"


def charts_of(page: Page) -> list[dict[str, str]]:
    found = [
        ("Roofline", _roofline(page)),
        *_depth_charts(page),
        ("Batches", _batch_chart(page)),
        *_memory_charts(page),
        *_acceptance(page),
        ("", _stated_acceptance(page)),
    ]
    return [{"heading": heading, "svg": svg} for heading, svg in found if svg]


def _roofline(page: Page) -> str:
    if not page.ceilings:
        return ""
    ceiling = page.ceilings[0]
    series = []
    points = [
        one
        for one in page.measurements
        if one.group == "operator" and one.hardware == ceiling.hardware and one.value and one.flops and one.hbm_bytes
    ]
    for at, dtype in enumerate(sorted({str(one.params.get("dtype")) for one in points})):
        own = [one for one in points if one.params.get("dtype") == dtype]
        series.append(Series(dtype, "measured", at, [_on_roofline(one) for one in own]))
    title = f"Operators below the ceilings of {ceiling.source}: rate over arithmetic intensity"
    return roofline(title, series, ceiling.read_gb_per_s, sorted(ceiling.tflops.items(), key=lambda roof: -roof[1]))


def _on_roofline(one: Measurement) -> tuple[float, float, str]:
    assert one.value, "only what has a time is drawn"
    assert one.flops, "only what multiplies is drawn"
    assert one.hbm_bytes, "only what moves bytes is drawn"
    rate = one.flops / one.value / 1e6
    share = one.share_of_roofline
    return one.flops / one.hbm_bytes, rate, f"{one.name}: {one.value:.3g} us" + (f", {share:.0%}" if share else "")


def _depth_charts(page: Page) -> list[tuple[str, str]]:
    accepted = [one for one in _rates(page, "mtp", "depth") if one.kind is Kind.MEASURED]
    decode = [*_rates(page, "decode", "depth"), *accepted]
    prompts = _rates(page, "prefill", "n_prompt")
    chunks = [one for one in _rates(page, "prefill", "chunk") if one.params["chunk"] == LATER_CHUNK]
    later = chunks if any(one.params["depth"] for one in chunks) else []
    return [
        ("Decode", _over(decode, "Tokens a second of one sequence, by context depth", "depth")),
        ("Prefill", _over(prompts, "Tokens a second, by length of the prompt", "n_prompt", "prompt, tokens")),
        (
            "" if prompts else "Prefill",
            _over(later, f"Tokens a second of {LATER_CHUNK} more tokens of a prompt, by context depth", "depth"),
        ),
    ]


LATER_CHUNK = 8192


def _rates(page: Page, group: str, param: str) -> list[Measurement]:
    """Rates of one sequence on one device that have a parameter."""
    return [one for one in page.measurements if one.group == group and param in one.params
            and one.metric == "tokens_per_s" and one.value and one.params.get("batch", 1) == 1
            and one.params.get("devices", 1) == 1 and "by" not in one.params]  # fmt: skip


def _over(own: Sequence[Measurement], title: str, param: str, x_label: str = "context depth, tokens") -> str:
    """A line for each device, subject and kind, and below measured ones what the ceilings of their run allow."""
    hardware = list(dict.fromkeys(one.hardware or one.subject for one in own))
    lines: dict[tuple[str, str, str, int], list[Measurement]] = {}
    for one in own:
        drafts = one.params.get("num_drafts", 0)
        lines.setdefault((one.hardware or one.subject, one.subject, str(one.kind), drafts), []).append(one)
    seen, series = dict.fromkeys(hardware, 0), []
    for (device, subject, kind, drafts), of in lines.items():
        colour = hardware.index(device) + (len(hardware) * seen[device] if kind == Kind.MEASURED else 0)
        seen[device] += kind == Kind.MEASURED
        name = ", ".join(dict.fromkeys((device, subject))) + (f", MTP-{drafts} as accepted" if drafts else "")
        points = [(float(one.params[param]), one.value or 0.0, f"{name}: {one.name}, {one.value:.4g} tokens/s")
                  for one in of]  # fmt: skip
        series.append(Series(name, kind, colour, points))
        limits = [(float(one.params[param]), one.roofline, f"{one.name} at the ceilings: {one.roofline:.4g} tokens/s")
                  for one in of if one.roofline and kind == Kind.MEASURED]  # fmt: skip
        if limits:
            series.append(Series(f"{name}: bytes and operations at the run's ceilings", "projection", colour, limits))
    rates = [rate for one in series for _, rate, _ in one.points]
    return by_depth(title, series, "tokens/s", bool(rates) and max(rates) > 30 * min(rates), x_label)


def _batch_chart(page: Page) -> str:
    """Where a depth was measured at several batches."""
    own = [one for one in page.measurements if one.group == "decode" and one.kind is Kind.MEASURED and one.value
           and one.metric == "tokens_per_s" and {"batch", "depth"} <= set(one.params)]  # fmt: skip
    lines: dict[tuple[str, str, int, str], list[Measurement]] = {}
    for one in own:
        key = (one.hardware or one.subject, one.subject, one.params["depth"], one.params.get("by", ""))
        lines.setdefault(key, []).append(one)
    series: list[Series] = []
    for (device, subject, depth, by), of in lines.items():
        if len(of) < 2:
            continue
        name = ", ".join(dict.fromkeys((device, subject, f"d{depth}"))) + (f" by {by}" if by else "")
        colour = len(series)
        points = [(float(one.params["batch"]), one.value or 0.0, f"{one.name}: {one.value:.4g} tokens/s") for one in of]
        series.append(Series(name, "measured", colour, points))
    return by_batch("Tokens a second of all sequences together, by their number", series, "tokens/s")


def _stated_acceptance(page: Page) -> str:
    """What a step with drafts yields at an acceptance, and decoding without drafts at the same depth."""
    steps: dict[tuple[str, int, int], list[Measurement]] = {}
    for one in page.measurements:
        if one.group == "mtp" and "acceptance_length" in one.params and one.value:
            key = (one.subject, one.params["num_drafts"], one.params["depth"])
            steps.setdefault(key, []).append(one)
    plain = {(one.subject, one.params.get("depth")): one for one in _rates(page, "decode", "depth")
             if one.kind is Kind.MEASURED}  # fmt: skip
    series: list[Series] = []
    for (subject, drafts, depth), of in steps.items():
        if drafts < max(key[1] for key in steps if (key[0], key[2]) == (subject, depth)):
            continue  # the most drafts of a depth stand for the others
        colour, name = len(series) // 2, f"MTP-{drafts} @ d{depth}"
        points = [(float(one.params["acceptance_length"]), one.value or 0.0, f"{one.name}: {one.value:.4g} tokens/s")
                  for one in of]  # fmt: skip
        series.append(Series(f"{subject}, {name}", "projection", colour, points))
        base = plain.get((subject, depth))
        if base and base.value:
            flat = [(at, base.value, f"{base.name}: {base.value:.4g} tokens/s") for at in (1.0, 4.0)]
            series.append(Series(f"{subject}, {base.name}", "measured", colour, flat))
    return by_length("Tokens a second at a stated acceptance, of the steps as measured", series, "tokens/s")


def _memory_charts(page: Page) -> list[tuple[str, str]]:
    names = (("weights", "weights_bytes"), ("KV full", "kv_full_bytes"), ("KV sliding", "kv_sliding_bytes"),
             ("runtime", "runtime_bytes"))  # fmt: skip
    rows = []
    for row in page.memory:
        device = row["hardware"].partition("_")[2] or row["hardware"]
        name = f"{device}, {row['format']}, {row['batch']} x {row['context'] // 1024}K"
        parts = [(part, row[key] / GB) for part, key in names]
        rows.append(Bar(name, parts, row["available_bytes"] / GB, "fits" if row["fits"] else "too much"))
    charts = [("Memory", bars("Memory of each device against what it has (projection)", rows, "GB"))]
    measured, unit = _measured_memory(page)
    title = "Memory by part, as counted and as the formulas have it"
    return [*charts, ("" if rows else "Memory", bars(title, measured, unit, lambda x: f"{x:.3g}"))]


def _measured_memory(page: Page) -> tuple[list[Bar], str]:
    """Bars of what was counted, and below each what formulas say; those of equal parts stand once."""
    own = [one for one in page.measurements if one.group == "memory" and one.value and one.metric == "bytes"]
    most = max((one.value or 0.0 for one in own), default=0.0)
    size, unit = (GB, "GB") if most >= GB else (1e6, "MB")
    rows: dict[tuple[str, Kind, str], Bar] = {}
    engines = {one.subject.partition(", ")[0] for one in own}
    for subject in dict.fromkeys(one.subject for one in own):
        for kind, suffix in ((Kind.MEASURED, ""), (Kind.PROJECTION, ", by formula")):
            parts = [(str(one.params.get("part", one.name)), (one.value or 0.0) / size)
                     for one in own if one.subject == subject and one.kind is kind]  # fmt: skip
            if parts:
                equal = ", ".join(f"{part} {value:.4g}" for part, value in parts)
                engine, _, scenario = subject.partition(", ")
                name = scenario if scenario and len(engines) == 1 else subject
                rows.setdefault((engine, kind, equal), Bar(name + suffix, parts))
    return list(rows.values()), unit


def _acceptance(page: Page) -> list[tuple[str, str]]:
    rows = [
        Bar(f"{source}, draft {at + 1}", [("accepted", rate)], 1.0, f"{rate:.0%}")
        for source, rates in page.acceptance
        for at, rate in enumerate(rates)
        if rate is not None
    ]
    found = [one for one in page.measurements if one.group == "mtp" and one.metric == "draft_acceptance_rate"
             and one.value and "position" in one.params]  # fmt: skip
    several = len({one.subject for one in found}) > 1 or bool(rows)
    for one in found:
        name = one.name.removesuffix(" accepted").replace(" accepted @", " @")
        rows.append(Bar(f"{one.subject}, {name}" if several else name, [("accepted", one.value or 0.0)], 1.0,
                        f"{one.value:.0%}"))  # fmt: skip
    return [
        ("MTP", bars("Share of drafts that were accepted, by draft position", rows, "of those that were looked at"))
    ]


def _is_compared(one: Measurement) -> bool:
    """Rates of workloads; what a stated acceptance would make of a step has a chart of its own."""
    is_rate = one.metric == "tokens_per_s" and one.value is not None
    return bool(one.hardware) and is_rate and "acceptance_length" not in one.params


def comparison_of(page: Page) -> dict[str, Any] | None:
    """Workloads as rows, devices as columns; None where there is only one device, or one kind of number."""
    own = [one for one in page.measurements if _is_compared(one)]
    hardware = list(dict.fromkeys(one.hardware for one in own))
    if len(hardware) < 2:
        return None
    names = list(dict.fromkeys(_workload(one) for one in own))
    rows = []
    for name in sorted(names, key=_rank):
        cells = []
        for device in hardware:
            found = [one for one in own if one.hardware == device and _workload(one) == name]
            found.sort(key=lambda one: list(Kind).index(one.kind))
            cells.append([{"value": number(one.value), "kind": str(one.kind), "subject": one.subject} for one in found])
        rows.append({"name": f"{name}, tokens/s", "cells": cells})
    return {"hardware": hardware, "rows": rows}


def number(value: float | None) -> str:
    """Three or four digits that count, thousands apart, no powers of ten."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _workload(one: Measurement) -> str:
    """What is compared with what: decode at a depth, whoever generated how many tokens there; devices are named."""
    many = one.params.get("devices", 1)
    suffix = f", {many} devices" if many != 1 else ""
    suffix += f", batch {one.params['batch']}" if one.params.get("batch", 1) != 1 else ""
    if one.group == "decode" and "depth" in one.params:
        return f"tg @ d{one.params['depth']}{suffix}"
    return f"{one.name}{suffix}"


def _rank(name: str) -> tuple[int, int, str]:
    digits = "".join(filter(str.isdigit, name.partition(",")[0]))
    kind = 0 if name.startswith("tg @") else 1 if name.startswith("pp") else 2
    return kind, int(digits or 0), name


def operators_of(page: Page) -> list[dict[str, Any]]:
    rows = []
    for one in page.measurements:
        if one.group != "operator":
            continue
        share = one.share_of_roofline
        rows.append(
            {
                "name": one.name,
                "subject": one.subject,
                "value": "-" if one.value is None else number(one.value),
                "share": f"{share:.0%}" if share else "",
                "width": round(min(share or 0.0, 1.0) * 100),
                "bound": one.roofline_bound or "",
                "cache": one.cache or "",
                "reason": one.reason or "; ".join(one.quality_reasons) or "not known",
                "bad": one.value is None,
            }
        )
    return rows


def baseline_of(page: Page) -> list[dict[str, Any]]:
    rows = []
    for one in compared(page):
        change = one.value / one.baseline - 1 if one.value and one.baseline else None
        rows.append(
            {
                "word": str(one.comparison),
                "name": one.name,
                "then": "-" if one.baseline is None else number(one.baseline),
                "now": "-" if one.value is None else number(one.value),
                "unit": one.unit,
                "change": "-" if change is None else f"{change:+.1%}",
                "smallest": "-" if one.smallest_detectable is None else f"{one.smallest_detectable:.1%}",
            }
        )
    return rows


def others_of(page: Page) -> list[dict[str, str]]:
    """What neither the table of operators nor the comparison holds: nothing is left out of a page."""
    in_comparison = comparison_of(page) is not None
    own = [
        one
        for one in page.measurements
        if one.group != "operator" and not (in_comparison and one.kind is Kind.PROJECTION and _is_compared(one))
    ]
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    equal: dict[tuple[str, str, str], int] = {}
    for one in own:
        reason = "" if one.value is not None else one.reason or "not known"
        key = (reason, one.subject, one.metric) if reason else (one.id, str(one.kind), "")
        equal[key] = equal.get(key, 0) + 1  # a counter that is not there is missing for every workload
        source = "; ".join(filter(None, [str(one.params.get("conditions", "")), one.source, one.retrieved]))
        row = {
            "name": one.name,
            "hardware": one.hardware or "",
            "subject": one.subject,
            "metric": one.metric,
            "value": "" if one.value is None else number(one.value),
            "unit": one.unit,
            "kind": str(one.kind),
            "source": source,
            "reason": reason,
        }
        rows.setdefault(key, row)
    for key, count in equal.items():
        if count > 1 and rows[key]["reason"]:
            rows[key]["name"] += f", and {count - 1} more"
    return list(rows.values())


def _raw(page: Page) -> str:
    text = json.dumps(page.raw, indent=1, ensure_ascii=False, sort_keys=True)
    if len(text.encode()) > MOST_RAW_BYTES:
        return f"{len(text)} characters are too many for a page; they are in {', '.join(page.sources)}"
    return text


def markdown(page: Page) -> str:
    """The twin for a comment: verdict, why, tables; cut where a comment would be."""
    parts = [f"# {page.verdict}: {title_of(page)}"]
    parts += [f"- **{verdict}** {headline} ({source})" for source, verdict, headline in page.verdicts]
    if page.reasons:
        parts.append("\n## Why\n")
        parts += [f"1. {one.text}" + (f"\n   `{one.command}`" if one.command else "") for one in page.reasons]
    if page.grants:
        parts += ["\n## Conformance\n", _table(("level", "grant", "checks"), page.grants)]
        rows = [(c.level, c.clause, c.passed, c.failed, c.unsure, c.not_supported) for c in page.clauses]
        parts += ["", _table(("level", "clause", "passed", "failed", "could not judge", "not supported"), rows)]
    comparison = comparison_of(page)
    if comparison:
        cells = [[row["name"], *("<br>".join(f"{one['value']} ({one['kind']}, {one['subject']})" for one in cell)
                                 for cell in row["cells"])] for row in comparison["rows"]]  # fmt: skip
        parts += ["\n## Hardware side by side\n", _table(("workload", *comparison["hardware"]), cells)]
    operators = [
        (r["name"], r["subject"], r["value"], r["share"] or r["reason"], r["bound"]) for r in operators_of(page)
    ]
    if operators:
        parts += ["\n## Operators\n", _table(("workload", "by", "us", "of roofline", "bound"), operators)]
    baseline = [tuple(row.values()) for row in baseline_of(page)]
    if baseline:
        heads = ("", "workload", "then", "now", "unit", "change", "smallest detectable slowdown")
        parts += ["\n## Versus baseline\n", _table(heads, baseline)]
    others = [
        (r["name"], r["hardware"], r["subject"], r["metric"], r["value"] or r["reason"], r["kind"], r["source"])
        for r in others_of(page)
    ]
    if others:
        heads = ("workload", "hardware", "by", "metric", "value", "", "conditions and source")
        parts += ["\n## Every other number\n", _table(heads, others)]
    parts += ["\n## Environment\n", _table(("", "value", "from"), page.facts)] if page.facts else []
    text = "\n".join(parts) + "\n"
    if len(text.encode()) <= MOST_MARKDOWN_BYTES:
        return text
    cut = text.encode()[: MOST_MARKDOWN_BYTES - 200].decode(errors="ignore")
    return cut[: cut.rfind("\n")] + "\n\nCut here, as a comment would be: the HTML report holds all of it.\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any] | Mapping[str, Any]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in row)} |" for row in rows
    ]
    return "\n".join(lines)
