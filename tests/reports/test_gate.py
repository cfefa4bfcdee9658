"""The gate: what each word means, how often it is wrong, and what makes a comparison impossible."""

import random
import re
import subprocess
import sys
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from test_measurement import PLAIN

from reports.baseline import STALE_DAYS, Baseline, Entry, combine, dumps, load
from reports.decode import ResultError
from reports.gate import compare, compare_entry, judge, rates, student_quantile, table
from reports.journal import Journal, Recorded, read
from reports.measurement import Comparison, Measurement
from reports.verdict import ExitCode, Verdict
from s35 import main

KEY = {
    "device_name": "NVIDIA H200",
    "driver": "580",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "subject": "x",
    "threads": 1,
}


def entry(*medians, better="lower", id="a"):
    return Entry(id, f"case {id}", "us", "us", better, "cold", medians)


def baseline(*entries, **changes):
    values = {"key": KEY, "commit": "abc", "recorded": "2026-11-24", "runs": 5, "entries": {e.id: e for e in entries}}
    return Baseline(**{**values, **changes})


QUIET = entry(100.0, 100.2, 99.8, 100.1, 99.9)
NOISY = entry(100.0, 130.0, 80.0, 115.0, 90.0)


@pytest.mark.parametrize(
    ("then", "now", "word"),
    [
        (QUIET, (100.1, 99.9, 100.0), Comparison.SAME),
        (QUIET, (106.0, 105.9, 106.1), Comparison.SLOWER),
        (QUIET, (94.0, 93.9, 94.1), Comparison.FASTER),
        (QUIET, (101.5, 101.4, 101.6), Comparison.SAME),  # certain, and too small to be news
        (NOISY, (101.0, 99.0, 100.0), Comparison.AMBIGUOUS),
        (NOISY, (108.0, 104.0, 112.0), Comparison.AMBIGUOUS),
        (entry(100.0), (150.0,), Comparison.AMBIGUOUS),  # of one run and one, nobody knows the noise
        (entry(50.0, 50.1, 49.9, better="higher"), (47.0, 47.1, 46.9), Comparison.SLOWER),
        (entry(50.0, 50.1, 49.9, better="higher"), (53.0, 53.1, 52.9), Comparison.FASTER),
    ],
)
def test_words(then, now, word):
    assert compare_entry(then, now, 0.05).word is word


def test_runs_that_agree_by_chance_do_not_make_a_difference():
    found = compare_entry(entry(100.0, 100.0, 100.0), (101.0, 101.0, 101.0), 0.05)
    assert found.word is Comparison.SAME
    assert found.low is not None
    assert found.low < 0.01  # the floor under the noise keeps the interval open


def test_the_smallest_detectable_slowdown_is_found_four_times_in_five():
    draw = random.Random(3)
    found = hits = 0
    for _ in range(300):
        then = entry(*(100 * draw.lognormvariate(0, 0.015) for _ in range(5)))
        base = compare_entry(then, [100 * draw.lognormvariate(0, 0.015) for _ in range(3)], 0.05)
        assert base.smallest_detectable is not None
        now = [100 * (1 + base.smallest_detectable) * draw.lognormvariate(0, 0.015) for _ in range(3)]
        hits += compare_entry(then, now, 0.05).word is Comparison.SLOWER
        found += 1
    assert 0.65 <= hits / found <= 0.95


def test_false_alarms_are_rare_and_five_percent_is_mostly_found():
    draw = random.Random(1)
    entries = [entry(*(draw.lognormvariate(0, 0.01) for _ in range(40)), id=str(n)) for n in range(10)]
    unchanged = rates(entries, 5, 3, 0.0, 0.05, 200)
    assert unchanged.get("SLOWER", 0.0) <= 0.01
    planted = rates(entries, 5, 3, 0.05, 0.05, 200)
    assert planted["SLOWER"] >= 0.85
    assert planted.get("SAME", 0.0) <= 0.02  # what is not found is in doubt, and does not pass
    assert rates([replace(e, better="higher") for e in entries], 5, 3, 0.05, 0.05, 50)["SLOWER"] >= 0.8


def test_quantiles_of_student():
    for freedom, wanted in ((1, 63.657), (2, 9.925), (3, 5.841), (6, 3.707), (7, 3.499), (30, 2.750)):
        assert student_quantile(0.995, freedom) == pytest.approx(wanted, abs=0.001)


def test_what_only_one_side_has_is_said_and_missing_does_not_pass():
    then, now = baseline(QUIET, entry(1.0, 1.0, id="gone")), baseline(QUIET, entry(2.0, 2.0, id="new"))
    found = compare(then, now, 0.05)
    assert {one.id: one.word for one in found} == {"a": "SAME", "gone": "MISSING", "new": "NEW"}
    assert judge(found, 0.05)[0] is Verdict.INCONCLUSIVE
    assert "case gone is MISSING" in judge(found, 0.05)[1]
    assert judge([one for one in found if one.id != "gone"], 0.05)[0] is Verdict.PASS


def test_ambiguous_old_and_empty_comparisons_do_not_pass():
    doubtful = compare_entry(NOISY, (100.0, 101.0, 99.0), 0.05)
    same = compare_entry(QUIET, (100.0, 100.1, 99.9), 0.05)
    assert judge([same], 0.05)[0] is Verdict.PASS
    assert judge([same, doubtful], 0.05)[0] is Verdict.INCONCLUSIVE
    assert judge([], 0.05)[0] is Verdict.INCONCLUSIVE
    verdict, reason = judge([same], 0.05, stale="stale baseline: 400 days old")
    assert (verdict, "stale baseline" in reason) == (Verdict.INCONCLUSIVE, True)
    slower = compare_entry(QUIET, (110.0, 110.1, 109.9), 0.05)
    assert judge([same, slower, doubtful], 0.05)[0] is Verdict.FAIL


def test_a_slowdown_within_what_is_allowed_is_said_and_fails_nothing():
    certain = compare_entry(QUIET, (103.5, 103.4, 103.6), 0.05)
    assert certain.word is Comparison.SLOWER
    assert judge([certain], 0.05) == (Verdict.PASS, "1 SLOWER")
    assert judge([certain], 0.03)[0] is Verdict.FAIL
    close = compare_entry(QUIET, (104.9, 104.5, 105.2), 0.05)
    assert judge([close], 0.05) == (Verdict.INCONCLUSIVE, "1 SLOWER; case a is SLOWER, perhaps by more than is allowed")


def test_an_old_baseline_says_so():
    recorded = date.fromisoformat("2026-11-24")
    assert baseline(QUIET).staleness(recorded + timedelta(days=STALE_DAYS)) is None
    assert "stale baseline: 91 days old" in (baseline(QUIET).staleness(recorded + timedelta(days=91)) or "")


def test_another_machine_is_not_compared():
    other = KEY | {"device_name": "NVIDIA GB10", "driver": "590"}
    assert baseline(QUIET).differences(KEY) == []
    assert baseline(QUIET).differences(other) == [
        "device_name is 'NVIDIA GB10', in the baseline 'NVIDIA H200'",
        "driver is '590', in the baseline '580'",
    ]


def recorded(subject, *measurements):
    fact = {"value": "2.11.0"}
    machine = {"device": "cpu", "cpu": {"value": "EPYC"}, "torch": fact, "triton": fact, "suite_commit": {"value": "a"}}
    run = {"started": "2026-11-24T00:00:00", "machine": machine, "settings": {"subject": subject, "threads": 1}}
    return Recorded(run, measurements, Verdict.PASS, ())


def test_a_workload_is_normal_if_every_run_timed_it():
    once = replace(PLAIN, name="once")
    wrong = replace(PLAIN, name="wrong", value=None, reason="wrong", samples=())
    made = combine([recorded("x", PLAIN, once, wrong), recorded("x", replace(PLAIN, value=2.2), wrong)])
    assert list(made.entries) == [PLAIN.id]
    assert made.entries[PLAIN.id].medians == (2.0, 2.2)
    assert (made.runs, made.key["device_name"], made.commit) == (2, "EPYC", "a")


def test_runs_that_differ_make_no_baseline():
    with pytest.raises(ValueError, match="runs differ"):
        combine([recorded("x", PLAIN), recorded("y", PLAIN)])
    with pytest.raises(ValueError, match="no runs"):
        combine([])


def test_a_baseline_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "base.json"
    path.write_text(dumps(baseline(QUIET)))
    assert load(path) == baseline(QUIET)
    for text in ("{}", "[]", '{"schema": "s35.baseline/2"}', "no"):
        path.write_text(text)
        with pytest.raises(ResultError, match=r"base.json: "):
            load(path)


def test_the_table_begins_with_what_changed():
    found = [compare_entry(QUIET, (100.0, 100.1, 99.9), 0.05), compare_entry(QUIET, (110.0, 110.1, 109.9), 0.05)]
    lines = table(found).splitlines()
    assert lines[2].startswith("| SLOWER | case a | 100 | 110 | us | +10.0% |")
    assert lines[3].startswith("| SAME |")


def journal_of(path, value, machine=None):
    settings = {"subject": "x", "threads": 1}
    journal = Journal.start(path, ["s35"], settings, machine or {"device": "cpu", "cpu": {"value": "EPYC"}})
    journal.add(replace(PLAIN, value=value, samples=(value,)))
    journal.end(Verdict.PASS, [])
    assert read(path).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("then", "now", "code", "said"),
    [
        ((2.0, 2.01, 1.99), (2.0, 2.01, 1.99), 0, "PASS: 1 SAME"),
        ((2.0, 2.01, 1.99), (2.2, 2.21, 2.19), 1, "FAIL: 1 SLOWER; worst: rms_norm T=1 +10.0%"),
        ((2.0, 3.0, 1.0), (2.0, 3.0, 1.0), 5, "INCONCLUSIVE: 1 AMBIGUOUS"),
    ],
)
def test_two_folders_of_runs_are_compared(tmp_path, then, now, code, said):
    for folder, values in (("a", then), ("b", now)):
        (tmp_path / folder).mkdir()
        for at, value in enumerate(values):
            journal_of(tmp_path / folder / f"{at}.jsonl", value)
    done = subprocess.run(
        [sys.executable, "-m", "s35", "compare", "a", "b"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert said in done.stdout.splitlines()[-1]


def test_runs_of_two_machines_are_a_mistake_of_the_caller(tmp_path):
    journal_of(tmp_path / "a.jsonl", 2.0)
    journal_of(tmp_path / "b.jsonl", 2.0, {"device": "cpu", "cpu": {"value": "Xeon"}})
    words = [sys.executable, "-m", "s35", "compare", "a.jsonl", "b.jsonl"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "cannot be compared: device_name is 'Xeon', in the baseline 'EPYC'" in done.stderr


def test_the_kinds_of_comparison_are_those_of_a_measurement():
    assert replace(PLAIN, comparison=Comparison.SAME).comparison is Comparison.SAME
    assert isinstance(PLAIN, Measurement)


@pytest.fixture
def runs(monkeypatch):
    """Runs of `pytest perf/` whose times are 1 % apart, without running it; what was started."""
    started = []
    draw = random.Random(0)

    def run(command, **options):
        path = Path(next(word for word in command if word.startswith("--results=")).partition("=")[2])
        started.append(path.name)
        machine = {"device": "cpu", "cpu": {"value": "test"}}
        journal = Journal.start(path, ["pytest", *command[3:]], {"subject": "x"}, machine)
        journal.add(replace(PLAIN, value=2.0 * (1 + draw.gauss(0, 0.002))))
        journal.add(replace(PLAIN, name="size", metric="bytes", unit="bytes", value=7.0, samples=()))
        journal.end(Verdict.PASS, ["done"])
        return subprocess.CompletedProcess(command, 0, "1 passed", "")

    monkeypatch.setattr(subprocess, "run", run)
    return started


def test_runs_are_recorded_in_portions_and_say_what_the_gate_can_find(runs, tmp_path, capsys):
    words = ["baseline", "record", "--runs=12", "--out", str(tmp_path / "base.json"), "--resume", "--power"]
    assert main([*words, "--budget=0"]) == ExitCode.INCONCLUSIVE
    assert (runs, "1 of 12 runs lie in" in capsys.readouterr().out) == (["run-1.jsonl"], True)
    cut = tmp_path / "base/run-2.jsonl"
    cut.write_text((tmp_path / "base/run-1.jsonl").read_text().partition("\n")[0] + "\n")
    assert main(words) == ExitCode.PASS
    assert runs == [f"run-{number}.jsonl" for number in range(1, 13)]  # the first is kept, the second is made anew
    said = capsys.readouterr().out
    assert "1 workloads, 12 runs of the same thing, 2000 random splits of each into 5 and 3" in said
    assert re.search(r"unchanged .*SAME (9\d|100)\.\d%", said)
    assert re.search(r"5% slower .*SLOWER (9\d|100)\.\d%", said)
    assert load(tmp_path / "base.json").runs == 12
    assert main([*words, "--op=router"]) == ExitCode.USAGE
    assert "is a run with --no-header; want --no-header --op=router, or another --out" in capsys.readouterr().err


def test_power_of_few_runs_is_refused_before_they_are_made(runs, tmp_path, capsys):
    code = main(["baseline", "record", "--runs=7", "--out", str(tmp_path / "base.json"), "--power"])
    assert (code, runs) == (ExitCode.USAGE, [])
    assert "want 8 or more" in capsys.readouterr().err
