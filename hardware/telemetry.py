"""What a GPU says of itself while it works: clocks, throttling, power, energy, memory, and who else uses it. NVML only.

Each value is a ``Fact``: GB10 answers "not supported" for its memory, and a machine without a driver for everything.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .machine import Fact

MEMINFO = Path("/proc/meminfo")
SLOWED = {  # reasons that take clock away from a kernel that wants it
    "SwPowerCap": "power limit",
    "HwSlowdown": "hardware slowdown",
    "SwThermalSlowdown": "temperature",
    "HwThermalSlowdown": "temperature (hardware)",
    "HwPowerBrakeSlowdown": "power brake of the host",
    "SyncBoost": "another GPU of its group",
}
HARMLESS = {
    "GpuIdle": "idle",
    "ApplicationsClocksSetting": "clocks set by an application",
    "DisplayClockSetting": "display clocks",
    "UserDefinedClocks": "clocks set by a user",
}
POWER_INSTANT_MW = 186  # NVML_FI_DEV_POWER_INSTANT: the plain call is an average over a second since GA100


@dataclass(frozen=True)
class GpuState:
    """One reading of one GPU."""

    name: Fact
    driver: Fact
    sm_clock_mhz: Fact
    max_sm_clock_mhz: Fact
    memory_clock_mhz: Fact
    throttled_by: Fact  # words of SLOWED and HARMLESS, comma separated; "nothing"
    temperature_c: Fact
    power_w: Fact
    power_limit_w: Fact
    energy_j: Fact  # since the driver was loaded
    memory_total_bytes: Fact
    memory_used_bytes: Fact
    processes: Fact  # pids, comma separated; "none"

    @property
    def slowed_by(self) -> tuple[str, ...]:
        """What takes clock away, in words; empty where nothing does or nobody knows."""
        said = str(self.throttled_by.value or "").split(", ")
        return tuple(word for word in said if word in SLOWED.values())

    @property
    def pids(self) -> frozenset[int]:
        return frozenset(int(word) for word in str(self.processes.value or "").split(", ") if word.isdigit())


@contextmanager
def nvml() -> Iterator[Any]:
    """NVML while it is used; None where there is none.

    Yields:
        the module ``pynvml``, initialised, or a ``Fact`` that says why not.
    """
    try:
        import pynvml
    except ImportError as error:
        yield Fact(None, "nvml", f"{error}; install nvidia-ml-py")
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield Fact(None, "nvml", str(error))
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def read_gpu(index: int = 0) -> GpuState | Fact:
    """Read one GPU, or say why it cannot be read."""
    with nvml() as library:
        return library if isinstance(library, Fact) else _read(library, index)


def _read(library: Any, index: int) -> GpuState | Fact:
    try:
        handle = library.nvmlDeviceGetHandleByIndex(index)
    except library.NVMLError as error:
        return Fact(None, "nvml nvmlDeviceGetHandleByIndex", str(error))

    def ask(function: str, *arguments: Any, then: Callable[[Any], Any] = lambda answer: answer) -> Fact:
        if not hasattr(library, function):
            return Fact(None, f"nvml {function}", "this version of nvidia-ml-py has no such call")
        try:
            return Fact(then(getattr(library, function)(*arguments)), f"nvml {function}")
        except library.NVMLError as error:
            return Fact(None, f"nvml {function}", str(error))

    used = ask("nvmlDeviceGetMemoryInfo", handle, then=lambda info: int(info.used))
    total = ask("nvmlDeviceGetMemoryInfo", handle, then=lambda info: int(info.total))
    if total.value is None:
        total, used = _unified(total)
    return GpuState(
        name=ask("nvmlDeviceGetName", handle),
        driver=ask("nvmlSystemGetDriverVersion"),
        sm_clock_mhz=ask("nvmlDeviceGetClockInfo", handle, getattr(library, "NVML_CLOCK_SM", 1)),
        max_sm_clock_mhz=ask("nvmlDeviceGetMaxClockInfo", handle, getattr(library, "NVML_CLOCK_SM", 1)),
        memory_clock_mhz=ask("nvmlDeviceGetClockInfo", handle, getattr(library, "NVML_CLOCK_MEM", 2)),
        throttled_by=ask("nvmlDeviceGetCurrentClocksEventReasons", handle, then=lambda bits: _words(library, bits)),
        temperature_c=ask("nvmlDeviceGetTemperature", handle, 0),
        power_w=_power(library, handle, ask),
        power_limit_w=ask("nvmlDeviceGetEnforcedPowerLimit", handle, then=lambda mw: mw // 1000),
        energy_j=ask("nvmlDeviceGetTotalEnergyConsumption", handle, then=lambda mj: mj // 1000),
        memory_total_bytes=total,
        memory_used_bytes=used,
        processes=ask("nvmlDeviceGetComputeRunningProcesses", handle, then=_pids),
    )


def _words(library: Any, bits: int) -> str:
    words = [
        word
        for name, word in {**SLOWED, **HARMLESS}.items()
        if bits & getattr(library, f"nvmlClocksEventReason{name}", 0)
    ]
    return ", ".join(dict.fromkeys(words)) or "nothing"


def _pids(processes: Sequence[Any]) -> str:
    return ", ".join(str(pid) for pid in sorted({process.pid for process in processes})) or "none"


def _power(library: Any, handle: Any, ask: Callable[..., Fact]) -> Fact:
    """At this instant where the driver says so, else the average that the plain call gives."""
    try:
        field = library.nvmlDeviceGetFieldValues(handle, [POWER_INSTANT_MW])[0]
        if field.nvmlReturn == 0:
            return Fact(int(field.value.uiVal) // 1000, "nvml NVML_FI_DEV_POWER_INSTANT")
    except (AttributeError, library.NVMLError):
        pass  # an older driver or library: the plain call is left
    return ask("nvmlDeviceGetPowerUsage", handle, then=lambda mw: mw // 1000)


def _unified(nvml_said: Fact) -> tuple[Fact, Fact]:
    """Memory that is shared with the CPU, as the kernel counts it."""
    source = f"{MEMINFO}, as {nvml_said.source} says {nvml_said.reason!r}: unified with the CPU"
    try:
        lines = MEMINFO.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        unknown = Fact(None, str(MEMINFO), error.strerror or "unreadable")
        return unknown, unknown
    kilobytes = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
    try:
        total, free = (int(kilobytes[name][0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (KeyError, IndexError, ValueError):
        unknown = Fact(None, str(MEMINFO), "no MemTotal and MemAvailable")
        return unknown, unknown
    return Fact(total, source), Fact(total - free, source)


def foreign_pids(before: GpuState | Fact, after: GpuState | Fact | None = None) -> frozenset[int]:
    """Processes on the GPU that are not this one.

    Before this process has a context there, each is foreign. Afterwards one that is new may be this process under the
    number that the host knows it by, which a container does not.
    """
    if isinstance(before, Fact):
        return frozenset()
    own = {os.getpid()}
    found = before.pids - own
    if isinstance(after, GpuState):
        new = after.pids - before.pids - own
        if len(new) > (0 if os.getpid() in after.pids else 1):
            found |= new
    return frozenset(found)


@dataclass(frozen=True)
class Sample:
    """One reading of the sampler, some seconds after it began; None is not known."""

    s: float
    sm_clock_mhz: int | None
    power_w: int | None
    slowed_by: tuple[str, ...]


class Telemetry:
    """Reads a GPU in the background while a block runs.

    Attributes:
        samples: in order.
    """

    def __init__(self, index: int = 0, every_s: float = 0.1, read: Callable[[int], GpuState | Fact] = read_gpu) -> None:
        self.samples: list[Sample] = []
        self._index, self._every_s, self._read = index, every_s, read
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Telemetry":
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._note()

    @property
    def slowed_by(self) -> tuple[str, ...]:
        return tuple(sorted({word for sample in self.samples for word in sample.slowed_by}))

    @property
    def lowest_clock_mhz(self) -> int | None:
        return min((sample.sm_clock_mhz for sample in self.samples if sample.sm_clock_mhz), default=None)

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self._note()

    def _note(self) -> None:
        state = self._read(self._index)
        if isinstance(state, Fact):
            return
        clock, power = state.sm_clock_mhz.value, state.power_w.value
        at_s = time.monotonic() - self._started
        self.samples.append(
            Sample(at_s, None if clock is None else int(clock), None if power is None else int(power), state.slowed_by)
        )
