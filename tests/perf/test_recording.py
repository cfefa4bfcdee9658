"""What makes a session inconclusive, each with the fault injected; and what does not."""

from dataclasses import replace

import pytest
from test_measure import case_of

from hardware.machine import Fact
from hardware.telemetry import GpuState
from perf.cost import Ceilings, Cost
from perf.measure import Outcome
from perf.recording import Recording, doubts_about
from perf.sampling import Samples
from reports.baseline import Baseline, Entry
from reports.measurement import Comparison, Quality
from reports.verdict import Verdict

CEILINGS = Ceilings(read_gb_per_s=1000, tflops={"bf16": 100.0}, notes={})
CASE = replace(case_of(), cost=Cost(hbm_bytes=10e6, flops=1e6))  # 10 us at 1 TB/s


def session(**changes):
    values = {
        "subject": "x",
        "hardware": "nvidia_h200_sxm",
        "ceilings": CEILINGS,
        "journal": None,
        "baseline": None,
        "max_regression": 0.05,
        "expected": 1,
    }
    return Recording(**{**values, **changes})


def timed(us, **changes):
    values = {"samples": Samples((us,) * 10, 5, "precise"), "wrong": None, "clock": "cuda_graph", "cache": "cold"}
    return Outcome(**{**values, **changes})


def verdict_of(recording, *outcomes, failed=0):
    for outcome in outcomes:
        recording.add(recording.measurement_of(CASE, outcome))
    return recording.verdict(failed, recording.expected - len(outcomes))


def test_a_right_and_quiet_session_passes():
    assert verdict_of(session(), timed(12.0)) == (Verdict.PASS, ["1 timed"])


def test_a_session_in_which_all_was_skipped_is_inconclusive():
    verdict, reasons = verdict_of(session(expected=7))
    assert (verdict, reasons) == (Verdict.INCONCLUSIVE, ["nothing was timed: 7 skipped of 7"])


@pytest.mark.parametrize(
    "suspicion",
    [
        "throttling: temperature",
        "noise: samples spread over 9.0% of their median; want 5% or less",
        "L2 carve-out: 16777216 bytes of the cache are kept for somebody; want none",
        "clocks: two clocks of the host differ by 50%; want 5% or less",
    ],
)
def test_a_time_that_is_suspect_makes_the_session_inconclusive(suspicion):
    verdict, reasons = verdict_of(session(), timed(12.0, suspicions=(suspicion,)))
    assert verdict is Verdict.INCONCLUSIVE
    assert reasons == [f"{CASE.name}: {suspicion}"]


def test_more_than_the_ceilings_allow_is_a_wrong_time():
    recording = session()
    verdict, reasons = verdict_of(recording, timed(8.0))
    assert verdict is Verdict.INCONCLUSIVE
    assert "roofline: 125% of what the ceilings allow; the time is wrong" in reasons[0]
    assert recording.measurements[0].quality is Quality.SUSPECT
    assert recording.measurements[0].share_of_roofline == pytest.approx(1.25)


def test_a_warm_cache_has_no_roofline_of_memory():
    recording = session()
    assert verdict_of(recording, timed(1.0, cache="warm"))[0] is Verdict.PASS
    assert recording.measurements[0].roofline is None


def test_a_wrong_output_has_no_value_and_fails_as_its_test_does():
    recording = session()
    wrong = Outcome(None, "after timing: whole output: 3 times the tolerance", "cuda_graph", "cold")
    verdict, reasons = verdict_of(recording, wrong, failed=1)
    assert (verdict, reasons[0]) == (Verdict.FAIL, "1 failed")
    assert recording.measurements[0].value is None
    assert recording.measurements[0].reason == wrong.wrong
    assert recording.measurements[0].quality is Quality.INVALID


def test_what_the_baseline_has_and_the_session_has_not_is_missing():
    gone = Entry("ffffffffffff", "gone", "us", "us", "lower", "cold", (1.0,))
    baseline = Baseline({}, None, "2026-11-24", 5, {gone.id: gone})
    verdict, reasons = verdict_of(session(baseline=baseline), timed(12.0))
    assert (verdict, reasons) == (Verdict.INCONCLUSIVE, ["gone: MISSING"])
    assert verdict_of(session(baseline=baseline, chosen=True), timed(12.0))[0] is Verdict.PASS


def test_what_nobody_can_tell_does_not_pass():
    recording = session()
    recording.add(replace(recording.measurement_of(CASE, timed(12.0)), comparison=Comparison.AMBIGUOUS))
    assert recording.verdict(0, 0) == (Verdict.INCONCLUSIVE, [f"{CASE.name}: AMBIGUOUS"])


def test_energy_is_a_number_of_its_own_with_its_scope():
    recording = session()
    outcome = timed(12.0, energy_mj=Fact(350_500, "test"), energy_scope="gpu_board")
    measurement = recording.measurement_of(CASE, outcome)
    energy = recording.energy_of(measurement, outcome)
    assert energy is not None
    assert (energy.value, energy.unit, energy.group, energy.params["scope"]) == (350.5, "J", "energy", "gpu_board")
    assert energy.id != measurement.id
    assert recording.energy_of(measurement, timed(12.0)) is None


def test_a_stale_baseline_is_a_doubt_about_all_of_it():
    recording = session(doubts=["stale baseline: 400 days old; want 90 or less: record it anew"])
    assert verdict_of(recording, timed(12.0))[0] is Verdict.INCONCLUSIVE


def state(pids):
    import dataclasses

    facts = {field.name: Fact(None, "test", "not set") for field in dataclasses.fields(GpuState)}
    return GpuState(**{**facts, "processes": Fact(pids, "test")})


def test_somebody_else_on_the_gpu_is_a_doubt_about_all_of_it():
    assert doubts_about(state("none"), state("none")) == []
    assert doubts_about(state("17"), state("17")) == ["foreign processes on the GPU: 17"]
    nobody = Fact(None, "nvml", "no driver")
    assert doubts_about(nobody, nobody) == []
