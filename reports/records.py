"""Scenarios of the whole model as measurements: decode and prefill by depth, MTP steps, energy, memory by part.

`pytest perf/` records them one by one, and a report reads those of `s35 perf model` from its record.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from .measurement import Kind, Measurement, Quality
from .metrics import METRICS

MEMORY_PARTS = {  # what adds up to what is allocated
    "weights": "weights",
    "weights_and_caches": "weights and caches",
    "kv_full": "KV full",
    "kv_sliding": "KV sliding",
    "kv": "KV",
    "activations_and_workspace": "activations and workspace",
    "fragmentation": "fragmentation",
    "runtime": "runtime",
}
ACCEPTANCE_LENGTHS = (1.0, 2.0, 2.5, 3.0, 3.5, 4.0)
THIS_RUN = "ceilings of this run"
STATED = "of the step as measured here, at an acceptance that is stated"


def of_model(record: Mapping[str, Any], hardware: str | None) -> Iterator[Measurement]:
    """Everything of a record of `s35 perf model`."""
    command = record["command"]
    engine = command[command.index("--engine") + 1] if "--engine" in command else "optimized"
    engine = " ".join([engine, *([record["model"]["format"]] if "format" in record["model"] else [])])
    for result in record["results"]:
        yield from of_scenario(result, engine, hardware, "s35 perf model")


def of_scenario(result: Mapping[str, Any], subject: str, hardware: str | None, by: str) -> Iterator[Measurement]:
    """Measurements of one scenario: its rate or with drafts its step first, then what else was seen.

    Args:
        result: fields of ``perf.model.ModelResult``; records of older versions lack some.
        by: command that made it.
    """
    text = result.get("text") or "random tokens"
    source = f"{by}, {'random weights' if text == 'random tokens' else f'text: {text}'}"
    step = replace(_step(result, subject, hardware), source=source)
    yield step
    if result["ms"] is None:
        return
    for one in (
        *_energy(result, step),
        *_drafts(result, step),
        *(() if result["scenario"]["chunk"] else _memory(result, subject, hardware)),
    ):
        yield one if one.source else replace(one, source=source)


def blank(
    name: str, group: str, metric: str, subject: str, hardware: str | None, params: Mapping[str, Any]
) -> Measurement:
    """A measurement without a value."""
    of = METRICS[metric]
    return Measurement(
        name=name,
        group=group,
        subject=subject,
        metric=metric,
        unit=of.unit,
        better=of.better,
        definition=of.definition,
        value=None,
        reason="not measured",
        kind=Kind.MEASURED,
        hardware=hardware,
        params=params,
    )


def main_of(scenario: Mapping[str, Any], subject: str, hardware: str | None) -> Measurement:
    """What a scenario is about, before it is measured."""
    depth, batch, drafts, chunk = (scenario[name] for name in ("context", "batch", "num_drafts", "chunk"))
    params = {"depth": depth, "batch": batch}
    at = f" @ d{depth}"
    if chunk:
        params |= {"chunk": chunk} | ({"n_prompt": chunk} if depth == 0 else {})
        return blank(f"pp{chunk}{at if depth else ''}", "prefill", "tokens_per_s", subject, hardware, params)
    if "generated" in scenario and (batch > 1 or scenario.get("extends")):
        at += f", batch {batch}"
    if scenario.get("extends"):
        at, params = f"{at} by extend_batch", params | {"by": "extend_batch"}
    if drafts:
        return blank(
            f"MTP-{drafts} step{at}", "mtp", "step_ms", subject, hardware, params | {"num_drafts": drafts}
        )  # fmt: skip
    return blank(f"tg{scenario.get('generated', '')}{at}", "decode", "tokens_per_s", subject, hardware, params)


def _step(result: Mapping[str, Any], subject: str, hardware: str | None) -> Measurement:
    scenario = result["scenario"]
    one = main_of(scenario, subject, hardware)
    one = replace(one, clock=result.get("clock"), cache="cold")
    if result["ms"] is None:
        reason = result["reason"] or "not measured"
        quality = Quality.INVALID if result.get("offered", True) else Quality.UNSUPPORTED
        return replace(one, reason=reason, quality=quality, quality_reasons=(reason,))
    tokens = scenario["chunk"] or scenario["batch"]
    samples_us, floor_ms = result.get("samples_us") or (), result["floor_ms"]
    if one.metric == "step_ms":
        value, floor, samples = result["ms"], floor_ms, [us / 1000 for us in samples_us]
    else:
        value, floor = result["tokens_per_s"], tokens / floor_ms * 1000 if floor_ms else None
        samples = [tokens / us * 1e6 for us in samples_us if us > 0]
    doubts = tuple(result.get("suspicions") or ())
    return replace(
        one,
        value=value,
        reason=None,
        samples=tuple(samples),
        warmup=result.get("warmup"),
        stop=result.get("stop"),
        quality=Quality.SUSPECT if doubts else Quality.OK,
        quality_reasons=doubts,
        roofline=floor,
        roofline_bound=result["bound"] or None,
        roofline_source=THIS_RUN if floor else None,
        flops=result["flops"],
        hbm_bytes=sum((result.get("read_bytes") or {}).values()) or None,
    )


def _energy(result: Mapping[str, Any], step: Measurement) -> Iterator[Measurement]:
    """Energy over the tokens of the timed interval; where nothing counted, why not."""
    counted = result.get("energy")
    if not counted:
        return
    drafts, tokens = result["scenario"]["num_drafts"], counted["tokens"]
    metric = "j_per_prompt_token" if result["scenario"]["chunk"] else "j_per_output_token"
    if drafts and not result.get("acceptance"):  # of random weights, nobody knows how many tokens a step yields
        metric, tokens = "j_per_step", tokens / result["scenario"]["batch"]
    params = {**step.params, "scope": counted["scope"] or "none"}
    one = blank(f"{step.name}: energy", "energy", metric, step.subject, step.hardware, params)
    if counted["millijoules"] is None:
        reason = f"not counted: {counted['reason']}"
        yield replace(one, reason=reason, quality=Quality.UNSUPPORTED, quality_reasons=(reason,))
    else:
        yield replace(one, value=counted["millijoules"] / 1000 / tokens, reason=None, source=counted["source"])


def _drafts(result: Mapping[str, Any], step: Measurement) -> Iterator[Measurement]:
    """What was accepted, and the rate with it; else the rates that stated acceptances would give."""
    scenario, found = result["scenario"], result.get("acceptance")
    drafts = scenario["num_drafts"]
    if not drafts:
        return
    at = step.name.partition(" step")[2]

    def one(name: str, metric: str, value: float, **params: Any) -> Measurement:
        empty = blank(f"MTP-{drafts}{name}{at}", "mtp", metric, step.subject, step.hardware, {**step.params, **params})
        return replace(empty, value=value, reason=None)

    if found:
        yield one(" tokens a step", "acceptance_length", found["length"])
        yield one(f" tg{scenario.get('generated', '')}", "tokens_per_s", result["generated_per_s"])
        for position, share in enumerate(found["per_position"], 1):
            if share is not None:
                yield one(f" draft {position} accepted", "draft_acceptance_rate", share, position=position)
    for length in ACCEPTANCE_LENGTHS:
        if length <= drafts + 1:
            value = length * scenario["batch"] / result["ms"] * 1000
            rate = one(f" at {length:g} tokens a step,", "tokens_per_s", value, acceptance_length=length)
            yield replace(rate, kind=Kind.PROJECTION, source=STATED)


def break_even(step: Measurement, plain: Measurement) -> Measurement:
    """Tokens a step from which on drafts pay: the time of a step with them over one without, at the same depth."""
    assert step.value, "a step has a time"
    assert plain.value, "decoding has a rate"
    drafts, batch = step.params["num_drafts"], step.params["batch"]
    at = step.name.partition(" step")[2]
    one = blank(
        f"MTP-{drafts} pays from{at}", "mtp", "break_even_length", step.subject, step.hardware, step.params
    )  # fmt: skip
    return replace(one, value=step.value / 1000 * plain.value / batch, reason=None, source="the two steps, as measured")


def _memory(result: Mapping[str, Any], subject: str, hardware: str | None) -> Iterator[Measurement]:
    """Bytes by part as they were found, and as a formula has them."""
    for key, kind in (("memory", Kind.MEASURED), ("memory_predicted", Kind.PROJECTION)):
        for name, part in MEMORY_PARTS.items():
            size = (result.get(key) or {}).get(name)
            if size:
                what = f"{result['name']}: {part}"
                one = blank(what, "memory", "bytes", f"{subject}, {result['name']}", hardware, {"part": part})
                source = "counted from the config's shapes" if kind is Kind.PROJECTION else ""
                yield replace(one, value=float(size), reason=None, kind=kind, source=source)
