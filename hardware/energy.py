"""Energy of a block of work: the difference of two readings of a counter; where nothing counts, a reason and never 0.

NVML counts what a board takes, RAPL what a CPU's package takes. The two are never compared: each has its scope.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from .machine import Fact
from .telemetry import nvml

RAPL = Path("/sys/class/powercap")
LEAST_S = 1.0  # NVML's counter moves every 10 to 100 ms
BOARD, PACKAGE = "gpu_board", "cpu_package"


@dataclass(frozen=True)
class Counter:
    """Something that counts energy.

    Attributes:
        scope: what takes the energy: gpu_board or cpu_package.
        read: millijoules since some time, or why not.
        wraps_at: millijoules at which it begins again; None: never.
    """

    scope: str
    read: Callable[[], Fact]
    wraps_at: int | None = None


def counters_of(device: str) -> tuple[Counter, ...] | Fact:
    """What counts the energy of a device; a fact without a value says why nothing does."""
    kind, _, index = device.partition(":")
    if kind == "cuda":
        return (Counter(BOARD, lambda: _board_mj(int(index or 0))),)
    if kind == "cpu":
        return _packages()
    return Fact(None, "none", f"nothing counts energy on {device} without the rights of an administrator")


def _board_mj(index: int) -> Fact:
    source = "nvml nvmlDeviceGetTotalEnergyConsumption"
    with nvml() as library:
        if isinstance(library, Fact):
            return library
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
            return Fact(int(library.nvmlDeviceGetTotalEnergyConsumption(handle)), source)
        except library.NVMLError as error:
            return Fact(None, source, str(error))


def _packages() -> tuple[Counter, ...] | Fact:
    """RAPL's domains of whole packages; since 2020 many systems let only an administrator read them."""
    domains = [path for path in sorted(RAPL.glob("intel-rapl:*")) if path.name.count(":") == 1]
    if not domains:
        return Fact(None, str(RAPL), "no domain intel-rapl: this kernel or this virtual machine counts no energy")
    counters = []
    for domain in domains:
        most = _number(domain / "max_energy_range_uj")
        counters.append(Counter(PACKAGE, lambda of=domain / "energy_uj": _number(of), _whole(most)))  # type: ignore[misc]
    return tuple(counters)


def _number(file: Path) -> Fact:
    """Millijoules of a file that holds microjoules."""
    try:
        return Fact(int(file.read_text(encoding="ascii")) // 1000, str(file))
    except (OSError, ValueError) as error:
        return Fact(None, str(file), getattr(error, "strerror", None) or str(error))


def _whole(fact: Fact) -> int | None:
    return None if fact.value is None else int(fact.value)


class EnergyWindow:
    """Reads counters around a block.

    Attributes:
        spent_mj: over the block; a reason where it is not counted.
        scope: whose energy that is; "" where nothing counts.
    """

    def __init__(
        self,
        counters: Sequence[Counter] | Fact,
        least_s: float = LEAST_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spent_mj = counters if isinstance(counters, Fact) else Fact(None, "none", "the block has not ended")
        self._counters = () if isinstance(counters, Fact) else tuple(counters)
        self.scope = self._counters[0].scope if self._counters else ""
        self._least_s, self._clock = least_s, clock

    def __enter__(self) -> "EnergyWindow":
        self._before = [counter.read() for counter in self._counters]
        self._started = self._clock()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._counters:
            return
        seconds = self._clock() - self._started
        after = [counter.read() for counter in self._counters]
        unread = next((fact for fact in (*self._before, *after) if fact.value is None), None)
        source = after[0].source
        if unread:
            self.spent_mj = unread
        elif seconds < self._least_s:
            reason = f"the block took {seconds:.2f} s; want {self._least_s:g} s or more, as the counter is slow"
            self.spent_mj = Fact(None, source, reason)
        else:
            pairs = zip(self._counters, self._before, after, strict=True)
            spent = sum(_difference(counter, int(a.value or 0), int(b.value or 0)) for counter, a, b in pairs)
            self.spent_mj = Fact(spent, f"{source}, {self.scope}") if spent else Fact(
                None, source, "the counter stood still")  # fmt: skip


def _difference(counter: Counter, before: int, after: int) -> int:
    wrapped = after < before and counter.wraps_at is not None
    return after - before + (counter.wraps_at or 0 if wrapped else 0)
