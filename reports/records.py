"""Records of ``s35 perf model`` as measurements: decode and prefill by depth, MTP steps, memory by part."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from .measurement import Kind, Measurement, Quality
from .metrics import METRICS

MEMORY_PARTS = {  # what adds up to what is allocated
    "weights": "weights",
    "kv_full": "KV full",
    "kv_sliding": "KV sliding",
    "activations_and_workspace": "activations and workspace",
}


def of_model(record: Mapping[str, Any], hardware: str | None) -> Iterator[Measurement]:
    """One step a scenario: its rate or, with drafts, its time; and what its memory held."""
    command = record["command"]
    engine = command[command.index("--engine") + 1] if "--engine" in command else "optimized"
    engine = " ".join([engine, *([record["model"]["format"]] if "format" in record["model"] else [])])
    for result in record["results"]:
        scenario = result["scenario"]
        yield _step(result, scenario, engine, hardware)
        if result["ms"] is not None and result["memory"] and not scenario["chunk"]:
            yield from _memory(result, engine, hardware)


def _step(result: Mapping[str, Any], scenario: Mapping[str, Any], engine: str, hardware: str | None) -> Measurement:
    depth, batch = scenario["context"], scenario["batch"]
    params = {"depth": depth, "batch": batch}
    if scenario["num_drafts"]:
        name, group, metric = f"MTP-{scenario['num_drafts']} step @ d{depth}", "mtp", "step_ms"
        value, floor = result["ms"], result["floor_ms"]
    else:
        group = "prefill" if scenario["chunk"] else "decode"
        name = f"pp{scenario['chunk']} @ d{depth}" if scenario["chunk"] else f"tg @ d{depth}"
        metric, value = "tokens_per_s", result["tokens_per_s"]
        tokens = scenario["chunk"] or batch
        floor = tokens / result["floor_ms"] * 1000 if result["floor_ms"] else None
    if scenario["chunk"]:
        params["chunk"] = scenario["chunk"]
        if depth == 0:
            params["n_prompt"] = scenario["chunk"]
    one = _blank(name, group, metric, engine, hardware, params)
    if value is None:
        reason = result["reason"] or "not measured"
        return replace(one, reason=reason)
    return replace(one, value=value, reason=None, roofline=floor, roofline_bound=result["bound"] or None,
                   roofline_source="ceilings of this run", flops=result["flops"])  # fmt: skip


def _memory(result: Mapping[str, Any], engine: str, hardware: str | None) -> Iterator[Measurement]:
    for key, part in MEMORY_PARTS.items():
        if result["memory"].get(key):
            name, subject = f"{result['name']}: {part}", f"{engine}, {result['name']}"
            one = _blank(name, "memory", "bytes", subject, hardware, {"part": part})
            yield replace(one, value=float(result["memory"][key]), reason=None)


def _blank(
    name: str, group: str, metric: str, engine: str, hardware: str | None, params: Mapping[str, Any]
) -> Measurement:
    of = METRICS[metric]
    return Measurement(
        name=name,
        group=group,
        subject=engine,
        metric=metric,
        unit=of.unit,
        better=of.better,
        definition=of.definition,
        value=None,
        reason="not measured",
        kind=Kind.MEASURED,
        hardware=hardware,
        params=params,
        quality=Quality.OK,
        source="s35 perf model, random weights",
    )
