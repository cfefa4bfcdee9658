"""Find the GPUs: NVIDIA's through NVML, Apple's through the operating system. Neither needs torch."""

import platform
from collections.abc import Callable
from typing import Any

from .host import cpu_model, memory_bytes
from .machine import Accelerator, Fact


def find_accelerators() -> tuple[Fact, tuple[Accelerator, ...]]:
    """Count and describe the GPUs; a count of ``None`` says why nobody could count."""
    if platform.system() == "Darwin":
        return _apple()
    return _nvidia()


def _apple() -> tuple[Fact, tuple[Accelerator, ...]]:
    if platform.machine() != "arm64":
        return Fact(0, "platform.machine: MPS needs Apple silicon"), ()
    memory = memory_bytes()
    gpu = Accelerator(
        kind="mps",
        name=cpu_model(),  # CPU and GPU are one chip: "Apple M4 Max"
        memory_bytes=Fact(memory.value, f"{memory.source}, unified with the CPU", memory.reason),
        driver=Fact(f"macOS {platform.mac_ver()[0]}", "platform.mac_ver"),
    )
    return Fact(1, "platform: Apple silicon"), (gpu,)


def _nvidia() -> tuple[Fact, tuple[Accelerator, ...]]:
    try:
        import pynvml
    except ImportError as error:
        return Fact(None, "nvml", f"{error}; install nvidia-ml-py"), ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Fact(None, "nvml", str(error)), ()
    try:
        return _read_nvml(pynvml)
    finally:
        pynvml.nvmlShutdown()


def _read_nvml(nvml: Any) -> tuple[Fact, tuple[Accelerator, ...]]:
    def ask(function: str, *arguments: Any, then: Callable[[Any], Any] = lambda answer: answer) -> Fact:
        try:
            return Fact(then(getattr(nvml, function)(*arguments)), f"nvml {function}")
        except nvml.NVMLError as error:  # GB10 answers "Not Supported" for its unified memory
            return Fact(None, f"nvml {function}", str(error))

    count = ask("nvmlDeviceGetCount")
    driver = ask("nvmlSystemGetDriverVersion")
    accelerators = []
    for index in range(int(count.value or 0)):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            lost = Fact(None, "nvml nvmlDeviceGetHandleByIndex", str(error))
            accelerators.append(Accelerator("cuda", lost, lost, driver))
            continue
        name = ask("nvmlDeviceGetName", handle)
        memory = ask("nvmlDeviceGetMemoryInfo", handle, then=lambda info: int(info.total))
        accelerators.append(Accelerator("cuda", name, memory, driver))
    return count, tuple(accelerators)
