"""What a machine is: values, each with where it came from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One value and its source. Not known is ``None`` with a reason, never 0 and never an empty string."""

    value: str | int | bool | None
    source: str
    reason: str | None = None

    def __post_init__(self) -> None:
        assert (self.value is None) == bool(self.reason), f"a value or a reason: {self}"

    def __str__(self) -> str:
        return f"not known ({self.reason})" if self.value is None else str(self.value)


@dataclass(frozen=True)
class Accelerator:
    """A GPU of the machine."""

    kind: str  # cuda or mps: what torch calls devices of this make
    name: Fact
    memory_bytes: Fact
    driver: Fact


@dataclass(frozen=True)
class Machine:
    """The machine that a run used; no host name, no user name, no device serial."""

    device: str  # cpu, cuda, cuda:N or mps: what the run was asked to use
    device_missing: str | None  # why that device is not here; None: it is
    profile: Fact  # name of the file in hardware/profiles
    os: Fact
    cpu: Fact
    cpu_cores: Fact
    cpu_threads: Fact
    memory_bytes: Fact
    python: Fact
    torch: Fact
    triton: Fact
    suite_commit: Fact
    suite_dirty: Fact
    accelerator_count: Fact
    accelerators: tuple[Accelerator, ...]
