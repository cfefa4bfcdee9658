"""Measurements in other tools' formats: llama-bench's Markdown, JUnit, CSV, pytest-benchmark's JSON."""

import csv
import io
import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from .journal import Recorded
from .measurement import Comparison, Measurement, Quality, percentile

SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
COLUMNS = ("id", "name", "group", "subject", "hardware", "kind", "metric", "value", "unit", "better", "reason", "cache",
           "clock", "quality", "roofline", "baseline", "comparison", "source")  # fmt: skip


def llama_bench(recorded: Recorded) -> str:
    """The table that llama-bench prints: rates alone, mean and deviation of the samples where there are some."""
    rows = [one for one in recorded.measurements if one.metric == "tokens_per_s" and one.value is not None]
    lines = ["| model | backend | test | t/s |", "| --- | --- | ---: | ---: |"]
    for one in rows:
        spread = f" ± {statistics.stdev(one.samples):.2f}" if len(one.samples) > 1 else ""
        mean = statistics.fmean(one.samples) if one.samples else one.value or 0.0
        lines.append(f"| {one.subject} | {one.hardware or ''} | {one.name} | {mean:.2f}{spread} |")
    return "\n".join(lines) + "\n"


def junit(recorded: Recorded) -> str:
    """A test a measurement: wrong outputs are errors, regressions failures, what is in doubt is skipped with why."""
    found = recorded.measurements
    suite = Element("testsuite", name="s35 perf", tests=str(len(found)))
    counts = {"error": 0, "failure": 0, "skipped": 0}
    for one in found:
        case = SubElement(
            suite, "testcase", classname=f"{one.group}.{one.subject}", name=f"{one.name} {one.cache or ''}".strip()
        )
        properties = SubElement(case, "properties")
        for field in ("value", "unit", "roofline", "baseline", "comparison", "smallest_detectable"):
            value = getattr(one, field)
            if value is not None:
                SubElement(properties, "property", name=field, value=str(value))
        outcome, message = _outcome(one)
        if outcome:
            counts[outcome] += 1
            SubElement(case, outcome, message=message)
    suite.set("errors", str(counts["error"]))
    suite.set("failures", str(counts["failure"]))
    suite.set("skipped", str(counts["skipped"]))
    root = Element("testsuites")
    root.append(suite)
    indent(root)
    return tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _outcome(one: Measurement) -> tuple[str | None, str]:
    if one.quality is Quality.INVALID:
        return "error", one.reason or "; ".join(one.quality_reasons)
    if one.comparison is Comparison.SLOWER:
        return "failure", f"{one.value} {one.unit}, in the baseline {one.baseline}"
    if one.value is None:
        return "skipped", str(one.reason)
    if one.quality is not Quality.OK or one.comparison in (Comparison.AMBIGUOUS, Comparison.MISSING):
        return "skipped", "; ".join(one.quality_reasons) or str(one.comparison)
    return None, ""


def as_csv(recorded: Recorded) -> str:
    """One line a measurement; what is not known is empty, never 0."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in recorded.measurements:
        writer.writerow(["" if getattr(one, name) is None else getattr(one, name) for name in COLUMNS])
    return text.getvalue()


def pytest_benchmark(recorded: Recorded) -> str:
    """What pytest-benchmark saves: times in seconds, with their samples."""
    machine = recorded.run.get("machine", {})
    record = {
        "machine_info": {name: fact.get("value") for name, fact in machine.items() if isinstance(fact, Mapping)},
        "commit_info": {"id": (machine.get("suite_commit") or {}).get("value"), "dirty": None},
        "benchmarks": [
            _benchmark(one) for one in recorded.measurements if one.unit in SECONDS and one.value is not None
        ],
        "datetime": recorded.run.get("started"),
        "version": "5.1.0",
    }
    return json.dumps(record, indent=1) + "\n"


def _benchmark(one: Measurement) -> dict[str, Any]:
    scale = SECONDS[one.unit]
    data = [sample * scale for sample in one.samples or (one.value or 0.0,)]
    ordered = sorted(data)
    q1, q3 = percentile(ordered, 0.25), percentile(ordered, 0.75)
    return {
        "group": one.group,
        "name": one.name,
        "fullname": f"{one.subject}::{one.name}",
        "params": dict(one.params),
        "param": None,
        "extra_info": {"id": one.id, "clock": one.clock, "cache": one.cache, "stop": one.stop},
        "options": {"timer": one.clock},
        "stats": {
            "min": ordered[0],
            "max": ordered[-1],
            "mean": statistics.fmean(data),
            "stddev": statistics.stdev(data) if len(data) > 1 else 0.0,
            "rounds": len(data),
            "median": statistics.median(data),
            "q1": q1,
            "q3": q3,
            "iqr": q3 - q1,
            "ld15iqr": ordered[0],
            "hd15iqr": ordered[-1],
            "outliers": "0;0",  # not counted: every sample is in data
            "iqr_outliers": 0,
            "stddev_outliers": 0,
            "ops": 1 / statistics.fmean(data),
            "total": sum(data),
            "iterations": 1,
            "data": data,
        },
    }


FORMATS: Mapping[str, Callable[[Recorded], str]] = {
    "llama-bench": llama_bench,
    "junit": junit,
    "csv": as_csv,
    "pytest-benchmark": pytest_benchmark,
}
