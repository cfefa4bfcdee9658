"""Results of other tools as measurements: llama-bench, vLLM's bench, GuideLLM, AIPerf.

Names differ between them: what GuideLLM and AIPerf call inter-token latency is vLLM's TPOT and ours, and what vLLM
calls ITL is a gap between chunks, which holds several tokens where drafts are accepted. GuideLLM's TPOT counts the
first token's time and is nobody else's: it is left out.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .decode import ResultError
from .measurement import Kind, Measurement, Quality
from .metrics import METRICS

MOST_CACHE_HITS = 0.01  # of prompt tokens: above, time to first token is not that of a prompt


def read_foreign(path: Path, hardware: str, cache_hit_rate: float | None = None) -> tuple[str, list[Measurement]]:
    """Read a file of one of these tools; which one is seen from what it holds.

    Args:
        hardware: name of the profile of the device that it was made on.
        cache_hit_rate: share of prompt tokens that the server found in its prefix cache, as its own counters say.

    Raises:
        ResultError: none of these tools wrote it.
    """
    records = _records(path)
    for name, (fits, convert) in TOOLS.items():
        if records and all(fits(record) for record in records):
            found = [one for record in records for one in convert(record, path.name)]
            return name, [_doubted(replace(one, hardware=hardware), cache_hit_rate) for one in found]
    raise ResultError(f"{path.name}: is of no tool that is known; want one of {', '.join(TOOLS)}")


def _records(path: Path) -> list[Mapping[str, Any]]:
    """Objects of a JSON file, of a list in one, or of lines."""
    text = path.read_text(encoding="utf-8")
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise ResultError(f"{path.name}: neither JSON nor lines of it ({error})") from error
    records = value if isinstance(value, list) else [value]
    if not all(isinstance(record, dict) for record in records):
        raise ResultError(f"{path.name}: holds something that is no object; want the file as the tool wrote it")
    return records


def _doubted(one: Measurement, cache_hit_rate: float | None) -> Measurement:
    if cache_hit_rate is None or cache_hit_rate < MOST_CACHE_HITS or one.group != "serving":
        return one
    reason = f"cache hits: {cache_hit_rate:.0%} of prompt tokens were not computed; want below {MOST_CACHE_HITS:.0%}"
    return replace(one, quality=Quality.SUSPECT, quality_reasons=(reason,))


def _made(
    metric: str, value: Any, name: str, group: str, subject: str, params: Mapping[str, Any], source: str, date: str
) -> Measurement:
    of = METRICS[metric]
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return Measurement(
        name=name,
        group=group,
        subject=subject,
        metric=metric,
        unit=of.unit,
        better=of.better,
        definition=of.definition,
        value=float(value) if known else None,
        reason=None if known else "the tool gave none",
        kind=Kind.PUBLISHED,
        params=dict(params),
        source=source,
        retrieved=date,
    )


def _llama_bench(record: Mapping[str, Any], file: str) -> Iterator[Measurement]:
    prompt, generated, depth = (int(record.get(name, 0)) for name in ("n_prompt", "n_gen", "n_depth"))
    words = [f"pp{prompt}"] * bool(prompt) + [f"tg{generated}"] * bool(generated)
    name = "+".join(words) + (f" @ d{depth}" if depth or generated else "")
    params: dict[str, Any] = {"batch": 1, "n_prompt": prompt, "n_gen": generated, "depth": depth}
    kept = ("n_batch", "n_ubatch", "type_k", "type_v", "flash_attn", "backends", "gpu_info")
    params["conditions"] = ", ".join(f"{word} {record[word]}" for word in kept if word in record)
    group = "decode" if generated and not prompt else "prefill"
    subject = f"llama.cpp {record.get('model_type', '')}".strip()
    source = f"llama-bench, build {record.get('build_commit', 'not known')}, {file}"
    one = _made(
        "tokens_per_s", record["avg_ts"], name, group, subject, params, source, str(record.get("test_time", ""))[:10]
    )
    yield replace(one, samples=tuple(map(float, record.get("samples_ts", ()))))


def _vllm(record: Mapping[str, Any], file: str) -> Iterator[Measurement]:
    concurrency = record.get("max_concurrency")
    per_request = [record.get(name, 0) / max(record.get("completed", 0), 1) for name in
                   ("total_input_tokens", "total_output_tokens")]  # fmt: skip
    name = f"serve {per_request[0]:.0f}+{per_request[1]:.0f} @ {concurrency or 'unlimited'}"
    params = {"concurrency": concurrency, "num_prompts": record.get("num_prompts"),
              "conditions": f"request rate {record.get('request_rate')}"}  # fmt: skip
    fields = {
        "output_tokens_per_s": "output_throughput",
        "requests_per_s": "request_throughput",
        "ttft_ms": "median_ttft_ms",
        "tpot_ms": "median_tpot_ms",
        "icl_ms": "median_itl_ms",
        "e2e_ms": "median_e2el_ms",
    }
    day = str(record.get("date", ""))[:8]
    date = f"{day[:4]}-{day[4:6]}-{day[6:8]}" if len(day) == 8 and day.isdigit() else ""
    subject = f"{record.get('backend', 'vllm')} {record.get('model_id', '')}".strip()
    for metric, key in fields.items():
        if key in record:
            yield _made(metric, record[key], name, "serving", subject, params, f"vllm bench serve, {file}", date)


def _guidellm(record: Mapping[str, Any], file: str) -> Iterator[Measurement]:
    fields = {
        "ttft_ms": "time_to_first_token_ms",
        "tpot_ms": "inter_token_latency_ms",
        "output_tokens_per_s": "output_tokens_per_second",
        "requests_per_s": "requests_per_second",
    }
    for number, benchmark in enumerate(record["benchmarks"], 1):
        strategy = (benchmark.get("config") or benchmark.get("args") or {}).get("strategy") or {}
        name = f"serve {strategy.get('type_', 'benchmark')} {strategy.get('rate', strategy.get('streams', number))}"
        for metric, key in fields.items():
            ok = (benchmark["metrics"].get(key) or {}).get("successful") or {}
            value = ok.get("mean" if metric.endswith("_per_s") else "median")
            yield _made(metric, value, name, "serving", "GuideLLM", {"number": number}, f"GuideLLM, {file}", "")


def _aiperf(record: Mapping[str, Any], file: str) -> Iterator[Measurement]:
    fields = {
        "ttft_ms": ("time_to_first_token", "p50"),
        "tpot_ms": ("inter_token_latency", "p50"),
        "icl_ms": ("inter_chunk_latency", "p50"),
        "e2e_ms": ("request_latency", "p50"),
        "output_tokens_per_s": ("output_token_throughput", "avg"),
        "requests_per_s": ("request_throughput", "avg"),
    }
    for metric, (key, statistic) in fields.items():
        if key in record:
            of = record[key]
            scale = 1000.0 if of.get("unit") in ("s", "sec") and metric.endswith("_ms") else 1.0
            value = of.get(statistic)
            value = value * scale if isinstance(value, int | float) else None
            yield _made(metric, value, "serve", "serving", "AIPerf", {}, f"AIPerf, {file}", "")


Converter = Callable[[Mapping[str, Any], str], Iterator[Measurement]]
TOOLS: Mapping[str, tuple[Callable[[Mapping[str, Any]], bool], Converter]] = {
    "llama-bench": (lambda record: {"avg_ts", "n_prompt", "n_gen"} <= set(record), _llama_bench),
    "vllm bench serve": (lambda record: {"output_throughput", "request_throughput"} <= set(record), _vllm),
    "guidellm": (lambda record: isinstance(record.get("benchmarks"), list) and _has_metrics(record), _guidellm),
    "aiperf": (lambda record: isinstance(record.get("time_to_first_token"), dict), _aiperf),
}


def _has_metrics(record: Mapping[str, Any]) -> bool:
    benchmarks: Sequence[Any] = record["benchmarks"]
    return bool(benchmarks) and all(isinstance(one, dict) and "metrics" in one for one in benchmarks)
