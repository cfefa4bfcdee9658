"""NVML as three machines answer it: an H200, a GB10 that shares its memory, and one without a driver."""

from types import SimpleNamespace


class NvmlError(Exception):
    pass


REASONS = {
    "GpuIdle": 0x1,
    "ApplicationsClocksSetting": 0x2,
    "SwPowerCap": 0x4,
    "HwSlowdown": 0x8,
    "SwThermalSlowdown": 0x20,
    "HwThermalSlowdown": 0x40,
}


class FakeNvml(SimpleNamespace):
    """Answers from attributes; one that is None is not supported."""

    NVMLError = NvmlError
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def _say(self, value):
        if value is None:
            raise NvmlError("Not Supported")
        return value

    def nvmlInit(self):  # noqa: N802
        if self.broken:
            raise NvmlError(self.broken)

    def nvmlShutdown(self):  # noqa: N802
        pass

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 1

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "580.159.04"

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index > 0:
            raise NvmlError("Invalid Argument")
        return "handle"

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return self.name

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return self._say(self.memory)

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        return self._say(self.clocks[kind])

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):  # noqa: N802
        return 1980

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):  # noqa: N802
        return self._say(self.reasons)

    def nvmlDeviceGetTemperature(self, handle, sensor):  # noqa: N802
        return 45

    def nvmlDeviceGetFieldValues(self, handle, fields):  # noqa: N802
        return [SimpleNamespace(nvmlReturn=0 if self.instant_mw else 3, value=SimpleNamespace(uiVal=self.instant_mw))]

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return 77_000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):  # noqa: N802
        return self._say(self.power_limit_mw)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        return self._say(self.energy_mj)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in self.pids]


def h200(**changes):
    values = {
        **{f"nvmlClocksEventReason{name}": bit for name, bit in REASONS.items()},
        "broken": "",
        "name": "NVIDIA H200",
        "memory": SimpleNamespace(total=150_754_820_096, used=600_000_000),
        "clocks": {1: 1980, 2: 3201},
        "reasons": 0x1,
        "instant_mw": 76_500,
        "power_limit_mw": 700_000,
        "energy_mj": 5_000_000,
        "pids": [],
    }
    return FakeNvml(**{**values, **changes})


def gb10(**changes):
    values = {"name": "NVIDIA GB10", "memory": None, "clocks": {1: 2400, 2: None}, "power_limit_mw": None}
    return h200(**{**values, **changes})


def without_driver():
    return h200(broken="NVML Shared Library Not Found")
