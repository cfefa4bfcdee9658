"""Records of measurements: what they must say, and that a crash loses one of them at most."""

import json
import os
import signal
import statistics
import subprocess
import sys
from dataclasses import replace
from importlib import resources

import pytest
from json_schema import complaints

from reports.decode import ResultError
from reports.journal import Journal, read
from reports.measurement import Comparison, Kind, Measurement, Quality, as_json, percentile, statistics_of
from reports.metrics import METRICS
from reports.records import of_scenario
from reports.third_party import published_measurements
from reports.verdict import Verdict

SCHEMA = json.loads((resources.files("reports") / "measurement.schema.json").read_text())
PLAIN = Measurement(
    name="rms_norm T=1",
    group="operator",
    subject="optimized",
    metric="us",
    unit="us",
    better="lower",
    definition="device time of one call",
    value=2.0,
    kind=Kind.MEASURED,
    params={"T": 1},
    samples=(1.9, 2.0, 2.1),
)
MACHINE = {"device": "cpu", "device_missing": None}


def against_schema(record):
    return complaints(json.loads(json.dumps(record)), SCHEMA, SCHEMA)


def test_records_obey_the_schema():
    full = replace(
        PLAIN,
        quality=Quality.SUSPECT,
        quality_reasons=("noise",),
        roofline=1.5,
        roofline_bound="memory",
        roofline_source="this run",
        baseline=1.9,
        comparison=Comparison.SAME,
        smallest_detectable=0.03,
        warmup=3,
        stop="noise",
        cache="cold",
        clock="cuda_graph",
    )
    absent = replace(PLAIN, value=None, reason="no CUDA device", samples=())
    for measurement in (PLAIN, full, absent, *published_measurements()):
        assert against_schema(as_json(measurement)) == []


def test_scenarios_of_the_whole_model_obey_the_schema():
    scenario = {"batch": 1, "context": 4096, "num_drafts": 3, "chunk": 0, "generated": 128}
    result = {
        **{"name": "tg128 @ d4096, MTP-3", "scenario": scenario, "ms": 5.0, "tokens_per_s": 200.0, "floor_ms": 2.0},
        **{"bound": "memory", "flops": None, "generated_per_s": 500.0, "samples_us": (4900.0, 5000.0), "reason": ""},
        **{"acceptance": {"length": 2.5, "per_position": [0.8, 0.5, None]}, "memory": {"weights": 1e11}},
        **{"memory_predicted": {"weights": 1e11}, "read_bytes": {"experts": 1e9}, "clock": "cuda_events"},
        "energy": {"millijoules": 9000, "tokens": 100, "source": "test", "reason": None, "scope": "gpu_board"},
    }
    found = list(of_scenario(result, "x int4", "nvidia_h200_sxm", "test"))
    refused = {**result, "ms": None, "reason": "no drafts", "offered": False}
    uncounted = {**result["energy"], "millijoules": None, "reason": "no counter", "scope": ""}
    found += [
        *of_scenario(refused, "x", None, "test"),
        *of_scenario({**result, "energy": uncounted}, "x", None, "test"),
    ]
    assert {one.group for one in found} == {"mtp", "energy", "memory"}
    for one in found:
        assert against_schema(as_json(one)) == [], one.name
    energies = [one for one in found if one.group == "energy"]
    assert [one.value for one in energies] == [0.09, None]
    assert energies[1].reason == "not counted: no counter"


@pytest.mark.parametrize(
    "change",
    [
        {"value": None},
        {"reason": "both a value and a reason"},
        {"unit": ""},
        {"better": "faster"},
        {"kind": "guessed"},
        {"kind": "published"},
        {"quality": "suspect"},
        {"id": "short"},
        {"samples": ["1"]},
        {"record": "measure"},
    ],
)
def test_the_schema_refuses_what_is_wrong(change):
    assert against_schema(as_json(PLAIN) | change)


def test_a_null_without_a_reason_cannot_be_made():
    with pytest.raises(AssertionError, match="a value or a reason"):
        replace(PLAIN, value=None)
    with pytest.raises(AssertionError, match="suspect without a reason"):
        replace(PLAIN, quality=Quality.SUSPECT)


def test_the_id_is_that_of_the_workload_and_not_of_the_value():
    assert replace(PLAIN, value=3.0, samples=()).id == PLAIN.id
    for change in ({"name": "x"}, {"subject": "x"}, {"metric": "x"}, {"params": {"T": 2}}, {"cache": "warm"}):
        assert replace(PLAIN, **change).id != PLAIN.id


def test_percentiles_are_never_beyond_the_largest_sample():
    samples = [float(n) for n in range(1, 12)]
    assert percentile(samples, 0.99) <= max(samples)
    assert percentile(samples, 0.5) == statistics.median(samples)
    found = statistics_of(samples)
    assert found is not None
    assert found.p99 is None  # of eleven samples nobody knows
    assert found.low <= found.median <= found.high
    many = statistics_of([float(n) for n in range(200)])
    assert many is not None
    assert many.p99 == pytest.approx(197.01)
    assert statistics_of([]) is None


def test_the_interval_covers_the_median_as_often_as_it_says():
    import random

    draw = random.Random(5)
    hits = 0
    for _ in range(400):
        found = statistics_of([draw.lognormvariate(0, 1) for _ in range(40)])
        assert found is not None
        hits += found.low <= 1.0 <= found.high
    assert hits / 400 >= 0.93


def start(path, settings=None):
    return Journal.start(path, ["s35", "perf", "--api-key", "sk-secret"], settings or {"seed": 0}, MACHINE)


def test_what_was_written_is_read_again_without_secrets(tmp_path):
    path = tmp_path / "run.jsonl"
    journal = start(path)
    journal.add(PLAIN)
    journal.end(Verdict.PASS, ["1 measured"])
    recorded = read(path)
    assert recorded.measurements == (PLAIN,)
    assert (recorded.verdict, recorded.reasons) == (Verdict.PASS, ("1 measured",))
    assert "sk-secret" not in path.read_text()
    for line in path.read_text().splitlines():
        assert against_schema(json.loads(line)) == []


def test_half_a_line_is_what_a_crash_costs(tmp_path):
    path = tmp_path / "run.jsonl"
    journal = start(path)
    journal.add(PLAIN)
    journal.close()
    with path.open("a") as file:
        file.write('{"record": "measurement", "na')
    recorded = read(path)
    assert recorded.measurements == (PLAIN,)
    assert recorded.verdict is None
    resumed = Journal.resume(path, {"seed": 0})
    assert set(resumed.done) == {PLAIN.id}
    resumed.add(replace(PLAIN, name="other"))
    resumed.end(Verdict.PASS, [])
    assert [found.name for found in read(path).measurements] == [PLAIN.name, "other"]


def test_a_killed_process_keeps_all_that_it_had_measured(tmp_path):
    path = tmp_path / "run.jsonl"
    program = (
        "import os, signal, sys; from pathlib import Path; from dataclasses import replace\n"
        "sys.path.insert(0, sys.argv[2]); from test_measurement import PLAIN, start\n"
        "journal = start(Path(sys.argv[1]))\n"
        "for n in range(3): journal.add(replace(PLAIN, name=f'case {n}'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    here = os.path.dirname(__file__)  # noqa: PTH120
    done = subprocess.run([sys.executable, "-c", program, str(path), here], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [found.name for found in read(path).measurements] == ["case 0", "case 1", "case 2"]


def test_a_run_is_resumed_only_as_it_was_begun(tmp_path):
    path = tmp_path / "run.jsonl"
    start(path).close()
    with pytest.raises(ValueError, match="was made with other settings"):
        Journal.resume(path, {"seed": 1})
    with pytest.raises(ValueError, match="is there already"):
        start(path)
    Journal.resume(path, {"seed": 0}).end(Verdict.PASS, [])
    with pytest.raises(ValueError, match="has ended"):
        Journal.resume(path, {"seed": 0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no record of a run"),
        ('{"record": "measurement"}\n', "no record of a run"),
        ('{"record": "run", "schema": "s35.result/2"}\n', "schema is 's35.result/2'"),
        ('{"record": "run", "schema": "s35.result/1"}\nnot json\n{}\n', "line 2: not JSON"),
        ('{"record": "run", "schema": "s35.result/1"}\n{"record": "measurement", "name": "x"}\n', "x: 'kind'"),
    ],
)
def test_a_file_that_is_damaged_is_refused(tmp_path, text, message):
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(ResultError, match=message):
        read(path)


def test_a_later_minor_version_is_read(tmp_path):
    path = tmp_path / "run.jsonl"
    record = as_json(PLAIN) | {"a_field_of_the_future": 1}
    path.write_text('{"record": "run", "schema": "s35.result/1.4"}\n' + json.dumps(record) + "\n")
    assert read(path).measurements == (PLAIN,)


def test_published_measurements_have_sources_dates_and_conditions():
    found = published_measurements()
    assert {one.hardware for one in found} >= {"apple_m4_max", "nvidia_dgx_spark", "amd_strix_halo", "nvidia_h200_sxm"}
    for one in found:
        assert one.kind is Kind.PUBLISHED
        assert one.source.startswith("https://")
        assert one.retrieved
        assert one.params["conditions"]
    spark = {one.name: one.value for one in found if one.hardware == "nvidia_dgx_spark"}
    assert (spark["tg128 @ d0"], spark["tg128 @ d262144"], spark["pp2048"]) == (19.79, 8.39, 392.17)


def test_published_measurements_lack_nothing(tmp_path):
    (tmp_path / "new.toml").write_text('hardware = "x"\n[[measurement]]\nname = "tg"\n')
    with pytest.raises(ValueError, match=r"new.toml: lacks conditions, model, source, subject"):
        published_measurements(tmp_path)


def test_each_metric_has_a_unit_and_a_meaning():
    assert len(METRICS) > 10
    for metric in METRICS.values():
        assert metric.unit
        assert metric.better in ("lower", "higher", "neither")
        assert len(metric.definition) > 10
