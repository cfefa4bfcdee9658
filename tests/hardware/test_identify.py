import dataclasses
import json
import platform
import sys
from types import SimpleNamespace

import pytest

from hardware import accelerators, host
from hardware.identify import identify
from hardware.machine import Fact


class NvmlError(Exception):
    pass


def fake_nvml(names, memory_bytes=None):
    """NVML with these GPUs; without a memory size it answers as it does for unified memory."""

    def memory_info(index):
        if memory_bytes is None:
            raise NvmlError("Not Supported")
        return SimpleNamespace(total=memory_bytes)

    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(names),
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda index: names[index],
        nvmlDeviceGetMemoryInfo=memory_info,
    )


@pytest.fixture
def linux(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Linux")


@pytest.fixture
def without_driver(monkeypatch, linux):
    def refuse():
        raise NvmlError("NVML Shared Library Not Found")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NvmlError, nvmlInit=refuse))


def facts(record):
    for value in vars(record).values():
        if isinstance(value, Fact):
            yield value
        elif isinstance(value, tuple):
            for item in value:
                yield from facts(item)


def test_each_value_has_a_source_and_each_unknown_a_reason(without_driver):
    found = list(facts(identify("cpu")))
    assert len(found) > 10
    for fact in found:
        assert fact.source
        assert fact.value is not None or fact.reason
        assert fact.value != ""


def test_an_unknown_value_without_a_reason_cannot_be_made():
    with pytest.raises(AssertionError, match="a value or a reason"):
        Fact(None, "nvml")


def test_without_a_driver_the_number_of_gpus_is_unknown_and_not_zero(without_driver):
    machine = identify("cpu")
    assert machine.accelerator_count == Fact(None, "nvml", "NVML Shared Library Not Found")
    assert machine.device_missing is None
    assert machine.profile.value == "generic_cpu"


@pytest.mark.parametrize(("device", "need"), [("cuda", "an NVIDIA GPU"), ("mps", "Apple silicon")])
def test_an_absent_device_says_what_it_needs(without_driver, device, need):
    machine = identify(device)
    assert machine.device_missing
    assert need in machine.device_missing
    assert machine.profile.value is None


def test_a_known_gpu_gets_its_profile(monkeypatch, linux):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(["NVIDIA H200", "NVIDIA H200"], 150_000_000_000))
    machine = identify("cuda:1")
    assert machine.device_missing is None
    assert machine.profile.value == "nvidia_h200_sxm"
    assert machine.accelerator_count.value == 2
    assert machine.accelerators[1].memory_bytes.value == 150_000_000_000
    assert machine.accelerators[1].driver.value == "580.1"
    assert identify("cuda:2").device_missing == (
        "device cuda:2 needs an NVIDIA GPU of that number and its driver; nvml nvmlDeviceGetCount counts 2"
    )


def test_memory_that_nvml_does_not_tell_is_unknown_and_not_zero(monkeypatch, linux):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(["NVIDIA GB10"]))
    machine = identify("cuda")
    assert machine.accelerators[0].memory_bytes == Fact(None, "nvml nvmlDeviceGetMemoryInfo", "Not Supported")
    assert machine.profile.value == "nvidia_dgx_spark"


def test_a_gpu_that_no_profile_names_has_none(monkeypatch, linux):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(["NVIDIA GB11"]))
    assert "'NVIDIA GB11' has no profile" in (identify("cuda").profile.reason or "")


def test_gpus_that_differ_get_no_profile(monkeypatch, linux):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(["NVIDIA H200", "NVIDIA GB10"], 1))
    assert identify("cuda").profile.reason == "the GPUs of this machine differ: NVIDIA GB10, NVIDIA H200"


def test_apple_silicon_shares_its_memory(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(accelerators, "cpu_model", lambda: Fact("Apple M4 Max", "sysctl"))
    machine = identify("mps")
    assert machine.device_missing is None
    gpu = machine.accelerators[0]
    assert (gpu.name.value, gpu.driver.value) == ("Apple M4 Max", "macOS 26.1")
    assert gpu.memory_bytes.value == machine.memory_bytes.value
    assert identify("cuda").device_missing


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", "cpu:1", ""])
def test_a_word_that_is_no_device_is_refused(device):
    with pytest.raises(ValueError, match="want cpu, cuda, cuda:N or mps"):
        identify(device)


def test_a_processor_without_a_name_says_so(monkeypatch, tmp_path, linux):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nCPU implementer : 0x41\n")
    monkeypatch.setattr(host, "CPUINFO", cpuinfo)
    assert host.cpu_model().reason == "no line 'model name'"
    cpuinfo.write_text("model name\t: Some CPU @ 2 GHz\n")
    assert host.cpu_model().value == "Some CPU @ 2 GHz"


def test_a_folder_inside_another_repository_has_no_commit_of_its_own(monkeypatch, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.setattr(host, "CHECKOUT", inside)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "not a git repository" in (host.suite_commit().reason or "")
    host.subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert host.suite_commit().reason == "the suite does not run from a checkout of its own"
    assert host.suite_dirty().value is None


def test_the_record_is_json_and_names_no_host(without_driver):
    text = json.dumps(dataclasses.asdict(identify("cpu")))
    assert len(platform.node()) < 4 or platform.node() not in text


def test_a_copy_without_its_history_names_its_commit_and_is_not_called_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S35_COMMIT", "abc123")
    assert (host.suite_commit().value, host.suite_commit().source) == ("abc123", "environment variable S35_COMMIT")
    assert host.suite_dirty().value is None
