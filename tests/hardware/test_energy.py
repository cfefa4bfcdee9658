"""Energy: a difference of two readings, by NVML or by RAPL; what is not counted has a reason, and is not 0."""

import sys

import pytest
from fake_nvml import h200, without_driver

from hardware import energy
from hardware.energy import Counter, EnergyWindow, counters_of
from hardware.machine import Fact


def clock(*seconds):
    found = iter(seconds)
    return lambda: next(found)


def counting(*values, wraps_at=None):
    found = iter(values)
    return Counter("gpu_board", lambda: Fact(next(found), "test"), wraps_at)


def over(*counters, seconds=2.0):
    with EnergyWindow(counters, clock=clock(0.0, seconds)) as window:
        pass
    return window


def test_the_board_is_read_before_and_after(monkeypatch):
    nvml = h200(energy_mj=5_000_000)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with EnergyWindow(counters_of("cuda:0"), clock=clock(0.0, 2.0)) as window:
        nvml.energy_mj = 5_000_777
    assert (window.spent_mj.value, window.scope) == (777, "gpu_board")
    assert window.spent_mj.source == "nvml nvmlDeviceGetTotalEnergyConsumption, gpu_board"


@pytest.mark.parametrize(
    ("nvml", "device", "said"),
    [
        (h200(energy_mj=None), "cuda", "Not Supported"),
        (without_driver(), "cuda", "NVML Shared Library Not Found"),
        (h200(), "cuda:3", "Invalid Argument"),
        (h200(), "mps", "nothing counts energy on mps"),
    ],
)
def test_what_is_not_counted_has_a_reason_and_no_value(monkeypatch, nvml, device, said):
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with EnergyWindow(counters_of(device), clock=clock(0.0, 2.0)) as window:
        pass
    assert window.spent_mj.value is None
    assert said in (window.spent_mj.reason or "")


def test_a_short_block_and_a_counter_that_stands_still_are_not_counted():
    assert "want 1 s or more" in (over(counting(1, 500), seconds=0.4).spent_mj.reason or "")
    assert over(counting(7, 7)).spent_mj.reason == "the counter stood still"


def test_a_counter_that_began_again_is_understood():
    assert over(counting(90, 30, wraps_at=100)).spent_mj.value == 40


def test_packages_of_a_cpu_are_added_and_their_parts_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    assert "counts no energy" in (counters_of("cpu").reason or "")
    for name, used_uj in (("intel-rapl:0", 5_000_000), ("intel-rapl:1", 1_000_000), ("intel-rapl:0:0", 77)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{used_uj}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("262143328850\n")
    with EnergyWindow(counters_of("cpu"), clock=clock(0.0, 2.0)) as window:
        (tmp_path / "intel-rapl:0/energy_uj").write_text("25000000\n")
        (tmp_path / "intel-rapl:1/energy_uj").write_text("4000000\n")
    assert (window.spent_mj.value, window.scope) == (23_000, "cpu_package")


def test_a_counter_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    (tmp_path / "intel-rapl:0").mkdir()
    with EnergyWindow(counters_of("cpu"), clock=clock(0.0, 2.0)) as window:
        pass
    assert window.spent_mj.value is None
    assert window.spent_mj.reason == "No such file or directory"
