"""Files of other tools, as those tools write them, and files for them."""

import csv
import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from test_measurement import MACHINE, PLAIN

from reports.decode import ResultError
from reports.exchange_commands import EXPORTS
from reports.exporters import FORMATS
from reports.importers import read_foreign
from reports.journal import Journal, read
from reports.measurement import Comparison, Kind, Quality
from reports.verdict import ExitCode, Verdict

LLAMA = {
    "build_commit": "b9000",
    "model_type": "step35 Q4_K_S",
    "n_prompt": 0,
    "n_gen": 128,
    "n_depth": 4096,
    "type_k": "f16",
    "test_time": "2026-11-20T10:00:00Z",
    "avg_ts": 20.27,
    "samples_ts": [20.2, 20.3, 20.31],
}
VLLM = {
    "date": "20261120-101112",
    "backend": "vllm",
    "model_id": "stepfun-ai/Step-3.5-Flash",
    "num_prompts": 64,
    "max_concurrency": 16,
    "request_rate": "inf",
    "completed": 64,
    "total_input_tokens": 64 * 8192,
    "total_output_tokens": 64 * 2048,
    "request_throughput": 0.79,
    "output_throughput": 811.9,
    "median_ttft_ms": 422.6,
    "median_tpot_ms": 11.91,
    "median_itl_ms": 30.0,
}
GUIDELLM = {
    "benchmarks": [
        {
            "config": {"strategy": {"type_": "concurrent", "streams": 4}},
            "metrics": {
                "time_to_first_token_ms": {"successful": {"median": 300.0, "mean": 310.0}},
                "inter_token_latency_ms": {"successful": {"median": 9.0, "mean": 9.5}},
                "time_per_output_token_ms": {"successful": {"median": 12.0}},
                "output_tokens_per_second": {"successful": {"median": 1.0, "mean": 400.0}},
                "requests_per_second": {"successful": {}},
            },
        }
    ]
}
AIPERF = {
    "time_to_first_token": {"unit": "ms", "avg": 320.0, "p50": 300.0},
    "inter_token_latency": {"unit": "ms", "p50": 9.0},
    "request_latency": {"unit": "s", "p50": 2.5},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 400.0},
}


def imported(tmp_path, record, **settings):
    path = tmp_path / "foreign.json"
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    tool, found = read_foreign(path, "nvidia_h200_sxm", **settings)
    return tool, {(one.name, one.metric): one for one in found}


def test_llama_bench_in_lines_or_a_list(tmp_path):
    lines = "\n".join(json.dumps({**LLAMA, **change}) for change in ({}, {"n_prompt": 512, "n_gen": 0, "n_depth": 0}))
    tool, found = imported(tmp_path, lines)
    assert tool == "llama-bench"
    decode = found["tg128 @ d4096", "tokens_per_s"]
    assert (decode.value, decode.group, decode.kind) == (20.27, "decode", Kind.PUBLISHED)
    assert decode.samples == (20.2, 20.3, 20.31)
    assert decode.params["depth"] == 4096
    assert "type_k f16" in decode.params["conditions"]
    assert (decode.retrieved, "b9000" in decode.source) == ("2026-11-20", True)
    assert found["pp512", "tokens_per_s"].group == "prefill"
    assert imported(tmp_path, [LLAMA])[1].keys() == {("tg128 @ d4096", "tokens_per_s")}


def test_what_vllm_calls_itl_is_a_gap_between_chunks(tmp_path):
    tool, found = imported(tmp_path, VLLM)
    assert tool == "vllm bench serve"
    name = "serve 8192+2048 @ 16"
    assert found[name, "tpot_ms"].value == 11.91
    assert found[name, "icl_ms"].value == 30.0
    assert found[name, "output_tokens_per_s"].value == 811.9
    assert found[name, "ttft_ms"].retrieved == "2026-11-20"


def test_what_guidellm_and_aiperf_call_itl_is_tpot(tmp_path):
    tool, found = imported(tmp_path, GUIDELLM)
    assert tool == "guidellm"
    name = "serve concurrent 4"
    assert (found[name, "tpot_ms"].value, found[name, "ttft_ms"].value) == (9.0, 300.0)
    assert found[name, "output_tokens_per_s"].value == 400.0
    assert (found[name, "requests_per_s"].value, found[name, "requests_per_s"].reason) == (None, "the tool gave none")
    tool, found = imported(tmp_path, AIPERF)
    assert tool == "aiperf"
    assert found["serve", "tpot_ms"].value == 9.0
    assert found["serve", "e2e_ms"].value == 2500.0


@pytest.mark.parametrize(("rate", "quality"), [(None, Quality.OK), (0.005, Quality.OK), (0.4, Quality.SUSPECT)])
def test_cache_hits_make_serving_numbers_suspect(tmp_path, rate, quality):
    _, found = imported(tmp_path, VLLM, cache_hit_rate=rate)
    assert {one.quality for one in found.values()} == {quality}
    if quality is Quality.SUSPECT:
        assert "cache hits: 40% of prompt tokens" in next(iter(found.values())).quality_reasons[0]


@pytest.mark.parametrize("text", ["{}", "[]", "no", "[1]", '{"benchmarks": [{"name": "pytest"}]}'])
def test_a_file_of_no_known_tool_is_refused(tmp_path, text):
    with pytest.raises(ResultError, match=r"foreign.json: "):
        imported(tmp_path, text)


def test_import_writes_measurements_and_says_what_must_not_be_trusted(tmp_path):
    (tmp_path / "vllm.json").write_text(json.dumps(VLLM))

    def run(out, *more):
        words = ["import", "vllm.json", "--hardware", "h200", "-o", out, *more]
        return subprocess.run([sys.executable, "-m", "s35", *words], cwd=tmp_path, check=False).returncode

    assert run("a.jsonl") == ExitCode.PASS
    assert read(tmp_path / "a.jsonl").verdict is Verdict.PASS
    assert run("b.jsonl", "--cache-hit-rate", "0.4") == ExitCode.INCONCLUSIVE
    assert "cache hits" in read(tmp_path / "b.jsonl").reasons[0]


@pytest.fixture
def recorded(tmp_path):
    path = tmp_path / "run.jsonl"
    journal = Journal.start(path, ["pytest", "perf"], {"seed": 0}, MACHINE | {"torch": {"value": "2.13.0"}})
    journal.add(PLAIN)
    journal.add(replace(PLAIN, name="slow", baseline=1.0, comparison=Comparison.SLOWER))
    journal.add(replace(PLAIN, name="wrong", value=None, reason="zeros", samples=(), quality=Quality.INVALID,
                        quality_reasons=("zeros",)))  # fmt: skip
    journal.add(replace(PLAIN, name="noisy", quality=Quality.SUSPECT, quality_reasons=("noise: 9%",)))
    rate = replace(PLAIN, name="tg128 @ d0", group="decode", metric="tokens_per_s", unit="tokens/s", better="higher")
    journal.add(replace(rate, value=20.0, samples=(19.0, 21.0)))
    journal.end(Verdict.FAIL, ["1 failed"])
    return read(path)


def test_the_command_offers_every_format():
    assert set(EXPORTS) == set(FORMATS)


def test_llama_bench_shows_rates_with_their_deviation(recorded):
    lines = FORMATS["llama-bench"](recorded).splitlines()
    assert lines[2:] == ["| optimized |  | tg128 @ d0 | 20.00 ± 1.41 |"]


def test_junit_fails_what_is_slower_and_passes_nothing_in_doubt(recorded):
    suite = next(ElementTree.fromstring(FORMATS["junit"](recorded)).iter("testsuite"))
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }


def test_csv_leaves_empty_what_is_not_known(recorded):
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](recorded))))
    assert [row["value"] for row in rows] == ["2.0", "2.0", "", "2.0", "20.0"]
    assert rows[2]["reason"] == "zeros"


def test_pytest_benchmark_reads_what_is_written_for_it(recorded, tmp_path):
    record = json.loads(FORMATS["pytest-benchmark"](recorded))
    assert [one["name"] for one in record["benchmarks"]] == ["rms_norm T=1", "slow", "noisy"]
    assert record["benchmarks"][0]["stats"]["median"] == pytest.approx(2e-6)
    for name in ("0001_a.json", "0002_b.json"):
        (tmp_path / name).write_text(json.dumps(record))
    words = ["-m", "pytest_benchmark", "compare", "0001_a.json", "0002_b.json", "--columns=median"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "slow" in done.stdout


def test_a_metric_is_explained(tmp_path):
    words = [sys.executable, "-m", "s35", "explain"]
    done = subprocess.run([*words, "tpot_ms"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("tpot_ms [ms, lower is better]: (end to end - ttft) / (tokens - 1)")
    done = subprocess.run([*words, "speed"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "want one of us, " in done.stderr) == (ExitCode.USAGE, True)
