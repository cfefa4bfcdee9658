"""What a GPU says of itself, from machines that answer differently."""

import dataclasses
import os
import sys
import time

import pytest
from fake_nvml import gb10, h200, without_driver

from hardware import telemetry
from hardware.machine import Fact
from hardware.telemetry import GpuState, Telemetry, foreign_pids, read_gpu


@pytest.fixture
def answer(monkeypatch):
    """Let NVML answer as this machine does."""

    def answer_(machine):
        monkeypatch.setitem(sys.modules, "pynvml", machine)
        return machine

    return answer_


def state(**changes):
    facts = {field.name: Fact(None, "test", "not set") for field in dataclasses.fields(GpuState)}
    return GpuState(**{**facts, **{name: Fact(value, "test") for name, value in changes.items()}})


def test_a_data_centre_gpu_answers_everything(answer):
    answer(h200())
    found = read_gpu()
    assert isinstance(found, GpuState)
    assert found.memory_total_bytes == Fact(150_754_820_096, "nvml nvmlDeviceGetMemoryInfo")
    assert found.power_w == Fact(76, "nvml NVML_FI_DEV_POWER_INSTANT")
    assert found.throttled_by.value == "idle"
    assert found.slowed_by == ()
    assert found.processes.value == "none"
    assert all(getattr(found, field.name).value is not None for field in dataclasses.fields(GpuState))


def test_memory_that_nvml_does_not_know_is_read_from_the_kernel_and_says_so(answer, monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  125519360 kB\nMemFree: 1 kB\nMemAvailable: 120000000 kB\n")
    monkeypatch.setattr(telemetry, "MEMINFO", meminfo)
    answer(gb10())
    found = read_gpu()
    assert isinstance(found, GpuState)
    assert found.memory_total_bytes.value == 125_519_360 * 1024
    assert found.memory_used_bytes.value == (125_519_360 - 120_000_000) * 1024
    assert "unified with the CPU" in found.memory_total_bytes.source
    assert "Not Supported" in found.memory_total_bytes.source
    assert found.memory_clock_mhz == Fact(None, "nvml nvmlDeviceGetClockInfo", "Not Supported")
    assert found.power_limit_w.value is None


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal:\nMemAvailable: x kB\n", None])
def test_a_kernel_that_does_not_say_leaves_the_memory_unknown(answer, monkeypatch, tmp_path, text):
    meminfo = tmp_path / "meminfo"
    if text is not None:
        meminfo.write_text(text)
    monkeypatch.setattr(telemetry, "MEMINFO", meminfo)
    answer(gb10())
    found = read_gpu()
    assert isinstance(found, GpuState)
    assert found.memory_total_bytes.value is None
    assert found.memory_used_bytes.reason


def test_without_a_driver_there_is_a_reason_and_no_zero(answer):
    answer(without_driver())
    assert read_gpu() == Fact(None, "nvml", "NVML Shared Library Not Found")


def test_a_gpu_that_is_not_there_says_so(answer):
    answer(h200())
    assert read_gpu(3) == Fact(None, "nvml nvmlDeviceGetHandleByIndex", "Invalid Argument")


def test_an_older_driver_gives_the_average_power(answer):
    answer(h200(instant_mw=0))
    found = read_gpu()
    assert isinstance(found, GpuState)
    assert found.power_w == Fact(77, "nvml nvmlDeviceGetPowerUsage")


@pytest.mark.parametrize(
    ("bits", "said", "slowed"),
    [
        (0x0, "nothing", ()),
        (0x2, "clocks set by an application", ()),
        (0x4, "power limit", ("power limit",)),
        (0x24, "power limit, temperature", ("power limit", "temperature")),
        (0x41, "temperature (hardware), idle", ("temperature (hardware)",)),
    ],
)
def test_reasons_are_words_and_idling_is_none(answer, bits, said, slowed):
    answer(h200(reasons=bits))
    found = read_gpu()
    assert isinstance(found, GpuState)
    assert found.throttled_by.value == said
    assert found.slowed_by == slowed


def test_what_runs_beside_us_is_foreign():
    mine = os.getpid()
    quiet, alone = state(processes="none"), state(processes=str(mine))
    assert foreign_pids(quiet, alone) == frozenset()
    assert foreign_pids(state(processes="17")) == {17}
    assert foreign_pids(quiet, state(processes=f"{mine}, 99")) == {99}
    assert foreign_pids(quiet, state(processes="4711")) == frozenset()  # our own number, as the host counts
    assert foreign_pids(quiet, state(processes="4711, 4712")) == {4711, 4712}
    assert foreign_pids(Fact(None, "nvml", "no driver")) == frozenset()


def test_the_sampler_sees_what_happens_while_it_watches():
    readings = [state(sm_clock_mhz=1980, throttled_by="nothing")]

    with Telemetry(every_s=0.005, read=lambda _: readings[0]) as watch:
        time.sleep(0.03)
        readings[0] = state(sm_clock_mhz=1200, throttled_by="power limit")
        time.sleep(0.03)
    assert watch.slowed_by == ("power limit",)
    assert watch.lowest_clock_mhz == 1200
    assert len(watch.samples) > 3


def test_a_sampler_without_a_gpu_sees_nothing(answer):
    answer(without_driver())
    with Telemetry(every_s=0.001) as watch:
        time.sleep(0.01)
    assert watch.samples == []
