"""``s35 fit``: what a device has room for, and what its rates would allow at best. Every line of it is a projection."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hardware.profile import Figure, Kind, Profile
from reference.config import ModelConfig

from .roofline import (
    Format,
    Parallel,
    Rates,
    break_even,
    decode,
    longest_context,
    memory,
    prefill,
    speculative,
)

PROJECTION = "projection"
RUNTIME_BYTES = 7_000_000_000  # of an engine beside weights and caches; source: StepFun's README, llama.cpp
ACCEPTANCE_LENGTHS = (2.0, 2.5, 3.0, 3.5)
DEPTHS = (0, 4096, 32_768, 131_072, 262_144)
PROMPTS = (4096, 32_768, 131_072, 262_144)
GB = 1e9


@dataclass(frozen=True)
class Question:
    """What to project.

    Attributes:
        rates: which figures of the profile count.
        memory_gb_per_s, linear_tflops, attention_tflops: instead of the profile's.
    """

    profile: Profile
    form: Format
    context: int
    batches: tuple[int, ...]
    parallel: Parallel
    kv_bits: int = 16
    with_mtp: bool = True
    rates: Kind = "published"
    runtime_bytes: float = RUNTIME_BYTES
    correlation: float = 0.0
    memory_gb_per_s: float | None = None
    linear_tflops: float | None = None
    attention_tflops: float | None = None
    depths: tuple[int, ...] = DEPTHS


def answer(question: Question, config: ModelConfig) -> dict[str, Any]:
    """Project; the record says so in its ``kind`` and at each part.

    Raises:
        ValueError: the profile lacks what is needed and the question does not give it, or a context is out of range.
    """
    rates, sources = rates_of(question)
    available, where = _available(question)
    sources["memory_bytes"] = where
    depths = [depth for depth in question.depths if depth < question.context] + [question.context]
    prompts = [length for length in PROMPTS if length < question.context] + [question.context]
    return {
        "kind": PROJECTION,
        "hardware": question.profile.name,
        "unified_memory": question.profile.unified,
        "notes": list(question.profile.notes),
        "format": asdict(question.form),
        "kv_bits": question.kv_bits,
        "parallel": asdict(question.parallel),
        "rates": {**asdict(rates), "sources": sources},
        "memory": [_memory(question, config, available, batch) for batch in question.batches],
        "longest_context": longest_context(
            *(config, question.form, available, question.runtime_bytes),
            *(question.parallel, question.kv_bits, question.with_mtp),
        ),
        "decode": [_decode(question, config, rates, depth, batch) for batch in question.batches for depth in depths],
        "prefill": [_prefill(question, config, rates, length) for length in prompts],
        "mtp": [_mtp(question, config, rates, depth) for depth in depths] if question.with_mtp else [],
    }


def rates_of(question: Question) -> tuple[Rates, dict[str, str]]:
    """The rates, and where each is from."""
    sources = {}

    def rate(given: float | None, name: str, needed: bool) -> float | None:
        if given is not None:
            sources[name] = "given on the command line"
            return given
        figures = question.profile.measured if question.rates == "measured" else question.profile.published
        if name not in figures and not needed:
            sources[name] = f"{question.profile.name} has no {question.rates} {name}"
            return None
        figure: Figure = question.profile.figure(name, question.rates)
        sources[name] = str(figure)
        return figure.value

    reading = rate(question.memory_gb_per_s, "memory_gb_per_s", needed=True)
    assert reading is not None, "a figure that is needed is there, or an error was raised"
    linear = rate(question.linear_tflops, f"{question.form.multiplies_in}_tflops", needed=False)
    return Rates(reading, linear, rate(question.attention_tflops, "bf16_tflops", needed=False)), sources


def _available(question: Question) -> tuple[float, str]:
    """Bytes of one device: as somebody read them there, or else as the data sheet has them."""
    measured = question.profile.measured.get("memory_bytes")
    figure = measured or question.profile.figure("memory_bytes", "published")
    return figure.value, str(figure)


def _memory(question: Question, config: ModelConfig, available: float, batch: int) -> dict[str, Any]:
    parts = memory(
        *(config, question.form, question.context, batch, available, question.runtime_bytes),
        *(question.parallel, question.kv_bits, question.with_mtp),
    )
    return {
        "kind": PROJECTION,
        "batch": batch,
        "context": question.context,
        **{f"{name}_bytes": value for name, value in asdict(parts).items()},
        "left_bytes": parts.left,
        "fits": parts.left >= 0,
    }


def _decode(question: Question, config: ModelConfig, rates: Rates, depth: int, batch: int) -> dict[str, Any]:
    step = decode(config, question.form, rates, depth, batch, question.parallel, question.kv_bits)
    return {
        "kind": PROJECTION,
        "name": f"tg @ d{depth}",
        "depth": depth,
        "batch": batch,
        "ms": step.ms,
        "tokens_per_s": step.tokens_per_s,
        "bound": step.bound,
    }


def _prefill(question: Question, config: ModelConfig, rates: Rates, tokens: int) -> dict[str, Any]:
    step = prefill(config, question.form, rates, tokens, question.parallel)
    if step is None:
        reason = "the rate of matrix products is not known; give --tflops and --attention-tflops"
        return {"kind": PROJECTION, "name": f"pp{tokens}", "tokens": tokens, "ms": None, "reason": reason}
    return {
        "kind": PROJECTION,
        "name": f"pp{tokens}",
        "tokens": tokens,
        "ms": step.ms,
        "tokens_per_s": step.tokens_per_s,
        "bound": step.bound,
    }


def _mtp(question: Question, config: ModelConfig, rates: Rates, depth: int) -> dict[str, Any]:
    plain = decode(config, question.form, rates, depth, 1, question.parallel, question.kv_bits)
    step = speculative(config, question.form, rates, depth, question.parallel, question.kv_bits, question.correlation)
    return {
        "kind": PROJECTION,
        "depth": depth,
        "plain_tokens_per_s": plain.tokens_per_s,
        "step_ms": step.ms,
        "break_even_acceptance_length": break_even(plain, step),
        "tokens_per_s_at_acceptance_length": {str(length): length * step.tokens_per_s for length in ACCEPTANCE_LENGTHS},
    }


def text(record: Mapping[str, Any]) -> str:
    """The record as tables for a terminal."""
    form, parallel = record["format"], record["parallel"]
    layout = "experts apart" if parallel["experts_apart"] else "tensor parallel"
    many = f", {parallel['devices']} devices, {layout}, " if parallel["devices"] > 1 else ""
    many += f"{parallel['collective_us']:g} us a collective whatever its size" if many else ""
    head = [
        f"PROJECTION for {record['hardware']}{many}: bytes and operations over rates, nothing measured",
        f"format {form['name']}: {form['says']}; caches in {record['kv_bits']} bit",
        *(f"rate {name}: {source}" for name, source in record["rates"]["sources"].items()),
        *(f"note: {note}" for note in record["notes"]),
    ]
    longest = record["longest_context"]
    room = "not even the weights fit" if longest is None else f"longest context of one sequence: {longest}"
    return "\n".join(
        [
            *head,
            "",
            f"memory of each device, GB (projection); {room}",
            *_table(
                ("batch", "weights", "KV full", "KV sliding", "runtime", "needed", "has", ""), _memory_rows(record)
            ),
            "",
            "decode (projection)",
            *_table(("test", "batch", "ms/step", "tok/s", "bound"), _decode_rows(record)),
            "",
            "prefill (projection)",
            *_table(("test", "s", "tok/s", "bound"), _prefill_rows(record)),
            *_mtp_lines(record),
            *_published_lines(record),
        ]
    )


def _memory_rows(record: Mapping[str, Any]) -> list[list[str]]:
    names = ("weights", "kv_full", "kv_sliding", "runtime", "needed", "available")
    return [
        [
            str(row["batch"]),
            *(f"{_part(row, name) / GB:.1f}" for name in names),
            "fits" if row["fits"] else f"short by {-row['left_bytes'] / GB:.1f}",
        ]
        for row in record["memory"]
    ]


def _part(row: Mapping[str, Any], name: str) -> float:
    return row["available_bytes"] - row["left_bytes"] if name == "needed" else row[f"{name}_bytes"]


def _decode_rows(record: Mapping[str, Any]) -> list[list[str]]:
    return [
        [row["name"], str(row["batch"]), f"{row['ms']:.2f}", f"{row['tokens_per_s']:.0f}", row["bound"]]
        for row in record["decode"]
    ]


def _prefill_rows(record: Mapping[str, Any]) -> list[list[str]]:
    return [
        [row["name"], "-", "-", row["reason"]]
        if row["ms"] is None
        else [row["name"], f"{row['ms'] / 1e3:.2f}", f"{row['tokens_per_s']:.0f}", row["bound"]]
        for row in record["prefill"]
    ]


def _mtp_lines(record: Mapping[str, Any]) -> list[str]:
    if not record["mtp"]:
        return []
    rows = [
        [
            f"d{row['depth']}",
            f"{row['plain_tokens_per_s']:.0f}",
            f"{row['step_ms']:.2f}",
            f"{row['break_even_acceptance_length']:.2f}",
            *(f"{rate:.0f}" for rate in row["tokens_per_s_at_acceptance_length"].values()),
        ]
        for row in record["mtp"]
    ]
    heads = ("depth", "plain tok/s", "ms/step", "break-even", *(f"tok/s at {n:g}" for n in ACCEPTANCE_LENGTHS))
    title = "MTP on one sequence, by tokens emitted a verification (projection; acceptance is stated, not measured)"
    return ["", title, *_table(heads, rows)]


def _published_lines(record: Mapping[str, Any]) -> list[str]:
    """What others measured on such a device, each with its conditions: those decide whether it can be compared."""
    found = record.get("published", [])
    if not found:
        return []
    rows = [[row["name"], f"{row['value']:g}", row["unit"], row["subject"]] for row in found]
    said = {f"- {row['subject']}: {row['params']['conditions']}; {row['source']}, {row['retrieved']}" for row in found}
    return ["", "published by others (measured by them, not here)", *_table(("test", "", "unit", "by"), rows),
            *sorted(said)]  # fmt: skip


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [list(heads), *map(list, rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
