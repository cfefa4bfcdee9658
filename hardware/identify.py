"""Identify the machine that a run uses. Imports no torch: versions come from package metadata."""

import re
from collections.abc import Sequence

from . import host
from .accelerators import find_accelerators
from .machine import Accelerator, Fact, Machine
from .profile import UnknownDeviceError, profile_for


def identify(device: str) -> Machine:
    """Collect what is known about this machine; nothing is guessed, and what is not known says why.

    Args:
        device: cpu, cuda, cuda:N or mps.

    Raises:
        ValueError: ``device`` is none of these. A device that is named well but absent is no error: then
            ``device_missing`` says so.
    """
    kind, index = _parse(device)
    count, accelerators = find_accelerators()
    missing = None if kind == "cpu" else _missing(device, kind, index, count, accelerators)
    return Machine(
        device=device,
        device_missing=missing,
        profile=Fact(None, "hardware/profiles", missing) if missing else _profile(kind, accelerators),
        os=host.os_name(),
        cpu=host.cpu_model(),
        cpu_cores=host.cpu_cores(),
        cpu_threads=host.cpu_threads(),
        memory_bytes=host.memory_bytes(),
        python=host.python_version(),
        torch=host.package_version("torch"),
        triton=host.package_version("triton"),
        suite_commit=host.suite_commit(),
        suite_dirty=host.suite_dirty(),
        accelerator_count=count,
        accelerators=accelerators,
    )


def _parse(device: str) -> tuple[str, int]:
    match = re.fullmatch(r"(cpu|mps|cuda)|cuda:(\d+)", device)
    if not match:
        raise ValueError(f"device: {device!r} is not a device; want cpu, cuda, cuda:N or mps")
    return match[1] or "cuda", int(match[2] or 0)


def _missing(device: str, kind: str, index: int, count: Fact, accelerators: Sequence[Accelerator]) -> str | None:
    found = [accelerator for accelerator in accelerators if accelerator.kind == kind]
    if index < len(found):
        return None
    return f"device {device} needs {_NEEDS[kind]}; {count.source} counts {len(found) if found else count}"


_NEEDS = {"cuda": "an NVIDIA GPU of that number and its driver", "mps": "macOS on Apple silicon"}


def _profile(kind: str, accelerators: Sequence[Accelerator]) -> Fact:
    source = "hardware/profiles"
    names = sorted({str(accelerator.name) for accelerator in accelerators}) if kind != "cpu" else ["cpu"]
    if len(names) > 1:  # CUDA's order is not NVML's, so a number does not say which one is used
        return Fact(None, source, f"the GPUs of this machine differ: {', '.join(names)}")
    try:
        return Fact(profile_for(names[0]).name, source)
    except UnknownDeviceError as error:
        return Fact(None, source, str(error))
