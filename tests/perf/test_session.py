"""``pytest perf/`` as its users meet it, on engines whose times are set."""

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from reports.baseline import combine, dumps, load
from reports.journal import read
from reports.measurement import Quality
from reports.verdict import ExitCode

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
QUICK = ("--op=rms_norm", "--min-time=0.1", "--max-time=0.4", "--max-noise=1000", "-p", "no:cacheprovider")
TOLERANT = "--max-regression=10"  # the machine that runs these tests may be busy with others


def environment():
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}


def perf(*words, engine="steady_engines:engine", quick=QUICK):
    command = [sys.executable, "-m", "pytest", "perf", "-q", f"--engine={engine}", *quick, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def normal(tmp_path_factory):
    """A run of the steady engine, and a baseline of three such runs as a quiet machine makes them."""
    folder = tmp_path_factory.mktemp("normal")
    code, said = perf(f"--results={folder / '0.jsonl'}")
    assert code == ExitCode.PASS, said
    baseline = combine([read(folder / "0.jsonl")])
    entries = {id: replace(entry, medians=(10_010.0, 10_014.0, 10_012.0)) for id, entry in baseline.entries.items()}
    made = folder / "base.json"
    made.write_text(dumps(replace(baseline, runs=3, entries=entries)))
    return made


def test_each_time_is_recorded_with_its_samples_clock_and_stop_rule(normal):
    recorded = read(normal.parent / "0.jsonl")
    assert recorded.verdict == "PASS"
    assert recorded.run["machine"]["cpu"]["source"] == "/proc/cpuinfo"
    assert recorded.run["settings"]["shapes"] == "nano"
    assert len(recorded.measurements) == 4
    for one in recorded.measurements:
        assert one.value is not None
        assert 9_990 < one.value < 1e6  # a busy machine only makes it longer
        assert (one.clock, one.cache, one.unit, one.subject) == ("perf_counter", "cold", "us", "steady_engines:engine")
        assert len(one.samples) >= 3
        assert one.stop in ("precise", "most time")
        assert one.quality is Quality.OK


def test_pytest_benchmark_reports_device_times_and_keeps_its_groups(tmp_path):
    out = tmp_path / "benchmark.json"
    code, said = perf(f"--benchmark-json={out}")
    assert code == ExitCode.PASS, said
    record = json.loads(out.read_text())
    assert record["machine_info"]["s35"]["profile"] == "generic_cpu"
    for one in record["benchmarks"]:
        assert 0.00999 < one["stats"]["median"] < 1  # of the work, not of what replays it
        assert one["options"]["timer"] == "replay_clock"
        assert one["group"] == "operators"
        assert one["extra_info"]["clock"] == "perf_counter"


def test_an_unchanged_engine_is_the_same(normal):
    code, said = perf(f"--baseline={normal}", TOLERANT)
    assert code == ExitCode.PASS, said


def test_a_planted_slowdown_is_a_failed_test_in_junit(normal, tmp_path):
    path = tmp_path / "base.json"
    path.write_text(dumps(of_the_slower(load(normal), read(normal.parent / "0.jsonl").measurements)))
    junit = tmp_path / "junit.xml"
    words = (f"--baseline={path}", "--max-regression=0.05", f"--junitxml={junit}")
    code, said = perf(*words, engine="steady_engines:slower")
    assert code == ExitCode.FAIL, said
    suite = next(ElementTree.parse(junit).getroot().iter("testsuite"))
    assert int(suite.get("failures") or 0) == 4
    failure = next(suite.iter("failure"))
    assert "in the baseline" in (failure.get("message") or "")
    assert "is detectable" in (failure.get("message") or "")
    properties = {found.get("name"): found.get("value") for found in suite.iter("property")}
    assert properties["comparison"] == "SLOWER"


def of_the_slower(baseline, measurements):
    """The same baseline under the name of the slower engine: as if the engine had become slower."""
    name = "steady_engines:slower"
    new_ids = {one.id: replace(one, subject=name).id for one in measurements}
    entries = {new_ids[id]: replace(entry, id=new_ids[id]) for id, entry in baseline.entries.items()}
    return replace(baseline, key={**baseline.key, "subject": name}, entries=entries)


def test_a_wrong_output_has_no_time(tmp_path):
    results = tmp_path / "run.jsonl"
    code, said = perf(f"--results={results}", engine="steady_engines:wrong")
    assert code == ExitCode.FAIL
    assert "times the tolerance" in said
    recorded = read(results)
    assert recorded.verdict == "FAIL"
    assert {one.value for one in recorded.measurements} == {None}
    assert {one.quality for one in recorded.measurements} == {Quality.INVALID}


def test_a_session_that_times_nothing_is_inconclusive(tmp_path):
    results = tmp_path / "run.jsonl"
    code, said = perf(f"--results={results}", "--op=swiglu", quick=QUICK[1:])
    assert code == ExitCode.INCONCLUSIVE
    assert "nothing was timed" in said
    assert read(results).verdict == "INCONCLUSIVE"


def test_noise_is_inconclusive():
    code, said = perf("--max-noise=0")
    assert code == ExitCode.INCONCLUSIVE
    assert "noise: samples spread over" in said


def test_a_baseline_of_another_machine_or_an_old_one_does_not_pass(normal, tmp_path):
    path = tmp_path / "base.json"
    path.write_text(normal.read_text().replace('"torch": "2.', '"torch": "1.'))
    code, said = perf(f"--baseline={path}")
    assert code == ExitCode.USAGE
    assert "baseline: is of another machine or engine: torch is" in said
    record = json.loads(normal.read_text())
    path.write_text(json.dumps({**record, "recorded": "2020-01-01"}))
    code, said = perf(f"--baseline={path}", TOLERANT)
    assert code == ExitCode.INCONCLUSIVE
    assert "stale baseline" in said


def test_a_workload_that_vanished_does_not_pass(normal, tmp_path):
    record = json.loads(normal.read_text())
    record["entries"].append({**record["entries"][0], "id": "ffffffffffff", "name": "vanished"})
    path = tmp_path / "base.json"
    path.write_text(json.dumps(record))
    code, said = perf(f"--baseline={path}", TOLERANT, "--op=rms_norm")
    assert code == ExitCode.PASS, said  # only some were asked for
    code, said = perf(f"--baseline={path}", TOLERANT, quick=QUICK[1:])
    assert code == ExitCode.INCONCLUSIVE
    assert "vanished: MISSING" in said


def test_a_killed_session_is_gone_on_with(tmp_path):
    results = tmp_path / "run.jsonl"
    command = [sys.executable, "-m", "pytest", "perf", "-q", "--engine=steady_engines:engine", f"--results={results}"]
    process = subprocess.Popen([*command, *QUICK], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    while not (results.exists() and len(results.read_text().splitlines()) >= 3):
        time.sleep(0.02)
        assert process.poll() is None, "the session ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {one.id: one for one in read(results).measurements}
    assert read(results).verdict is None
    assert perf(f"--results={results}")[0] == ExitCode.USAGE
    code, said = perf(f"--results={results}", "--resume")
    assert code == ExitCode.PASS, said
    after = read(results)
    assert after.verdict == "PASS"
    assert len(after.measurements) == 4
    for id, one in before.items():
        assert one in after.measurements, id


def test_a_device_that_is_absent_is_inconclusive():
    code, said = perf("--device=cuda:7")
    assert code == ExitCode.INCONCLUSIVE
    assert "INCONCLUSIVE: device cuda:7 is not here; nothing was timed" in said


def gate(folder, *words, call_s):
    command = [sys.executable, "-m", "s35", "baseline", *words, "--engine=steady_engines:planted", *QUICK]
    env = {**environment(), "STEADY_CALL_S": str(call_s)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_slower_engine_is_found_by_whole_runs_and_its_suspects_run_again(tmp_path):
    code, said = gate(tmp_path, "record", "--runs=3", "--out=base.json", call_s=0.010)
    assert code == ExitCode.PASS, said
    code, said = gate(tmp_path, "check", "base.json", "--runs=3", "--out=slow", call_s=0.030)
    assert code == ExitCode.FAIL, said
    assert said.count("SLOWER") >= 4
    assert len(list((tmp_path / "slow/suspects").glob("*.jsonl"))) == 3
    code, said = gate(tmp_path, "check", "base.json", "--runs=3", "--out=slow", call_s=0.010)
    assert (code, "holds runs already" in said) == (ExitCode.USAGE, True)
