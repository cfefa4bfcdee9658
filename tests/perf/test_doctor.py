"""``s35 doctor``: readings with their sources, and warnings that make a machine inconclusive."""

import dataclasses
import json
import subprocess
import sys

import pytest

from hardware.machine import Fact
from hardware.telemetry import GpuState
from perf import doctor
from perf.doctor import complaints, examine, text
from perf.probes import Probe
from reports.verdict import ExitCode


def state(**changes):
    facts = {field.name: Fact(None, "test", "not set") for field in dataclasses.fields(GpuState)}
    return GpuState(**{**facts, **{name: Fact(value, "test") for name, value in changes.items()}})


QUIET = state(processes="none", throttled_by="idle")


def read_at(rate):
    return [Probe("memory is read", rate, "GB/s", "test")]


def test_a_quiet_device_at_its_rate_has_no_warnings():
    assert complaints(None, "nvidia_h200_sxm", QUIET, QUIET, read_at(4600.0)) == []


@pytest.mark.parametrize(
    ("said", "before", "after", "rate"),
    [
        ("foreign processes on the GPU: 17", state(processes="17"), QUIET, 4600.0),
        ("the clock was taken down after load by: temperature", QUIET, state(throttled_by="temperature"), 4600.0),
        ("memory is read at 110% of what is published: the measurement is wrong", QUIET, QUIET, 5280.0),
        ("memory is read at 25% of what is published: the device is held down or shared", QUIET, QUIET, 1200.0),
    ],
)
def test_what_makes_timings_untrustworthy_is_said(said, before, after, rate):
    found = complaints(None, "nvidia_h200_sxm", before, after, read_at(rate))
    assert len(found) == 1
    assert found[0].startswith(said)


def test_a_device_without_a_profile_is_not_compared():
    assert complaints(None, "", QUIET, QUIET, read_at(9e9)) == []


def test_a_machine_without_a_gpu_is_examined_with_sources(monkeypatch):
    monkeypatch.setattr(doctor, "probes", lambda device: read_at(20.0))
    record = json.loads(json.dumps(examine("cpu")))
    assert record["verdict"] == "PASS"
    assert record["before"]["unread"]["reason"] == "cpu is no NVIDIA GPU"
    assert record["memory"][0]["source"] == "psutil.virtual_memory"
    said = text(record)
    assert said.endswith("PASS: timings on this machine can be trusted now")
    assert "20.0 GB/s" in said


def test_a_device_that_is_not_there_is_inconclusive(tmp_path):
    words = [sys.executable, "-m", "s35", "doctor", "--device", "mps", "--json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.INCONCLUSIVE
    record = json.loads(done.stdout)
    assert "needs macOS on Apple silicon" in record["warnings"][0]
    assert record["probes"] == []


def test_abilities_are_found_by_trying():
    from perf.probes import _abilities

    found = {probe.question: probe for probe in _abilities("cpu")}
    assert found["bfloat16 matrices are multiplied"].answer is True
    assert found["a Triton kernel runs"].answer is False
    assert "compiles for GPUs" in (found["a Triton kernel runs"].reason or "")
    assert found["MPS is available"].answer is False


def test_rates_behind_a_queue_wait_for_the_work(monkeypatch):
    from perf import probes

    monkeypatch.setattr(probes, "CPU_ROUNDS", 2)
    waits = []
    found = {p.question: p for p in probes._queue_rates("cpu", lambda: waits.append(1), size_bytes=1 << 20, side=32)}
    assert len(waits) == len(found) * (1 + 3)  # once before, and after each round of calls
    for question in ("memory is copied", "memory is read", "bf16 matrices are multiplied"):
        assert isinstance(found[question].answer, float)
        assert "8 calls between two waits" in found[question].source


def test_a_dtype_that_a_device_has_not_is_no_end_of_the_rates(monkeypatch):
    import torch

    from perf import probes

    monkeypatch.setattr(probes, "CPU_ROUNDS", 1)
    monkeypatch.setattr(torch, "bfloat16", "no dtype")
    found = {p.question: p for p in probes._queue_rates("cpu", lambda: None, size_bytes=1 << 16, side=8)}
    assert found["bf16 matrices are multiplied"].answer is None
    assert found["bf16 matrices are multiplied"].reason
    assert found["float32 matrices are multiplied"].answer


def test_an_apple_device_is_timed_by_its_own_queue(monkeypatch):
    from perf import probes

    asked = []
    monkeypatch.setattr(probes, "_queue_rates", lambda device, wait: asked.append((device, wait.__name__)) or iter(()))
    assert list(probes._rates("mps")) == []
    assert asked == [("mps", "synchronize")]
