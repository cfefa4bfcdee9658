"""Launch configurations: for a kernel, sizes and a device, which tile sizes, warps and stages; and where they are from.

They are data, ``launch_configs/*.toml``, one file for each hardware profile and ``default.toml`` for any other device.
A file holds, for each kernel, entries in order; the first whose conditions hold is taken:

    [[linear]]
    max_T = 16                 # holds up to this size; any name that the kernel passes; none: holds always
    dtype = "bf16"             # holds if equal
    BLOCK_O = 32               # constants of the kernel, in capitals
    num_warps = 4
    num_stages = 4

``[made]`` says by which command, on what and when the file was made.
"""

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hardware.profile import UnknownDeviceError, profile_for

FIXED = {"T": 16, "R": 1_000_000, "rows_per_expert": 16}  # what kernels are told of a batch in a fixed order
FOLDER = Path(__file__).parent / "launch_configs"
CPU, DEFAULT = "generic_cpu", "default"
OPTIONS = ("num_warps", "num_stages", "launch_pdl")


@dataclass(frozen=True)
class Launch:
    """How to launch a kernel.

    Attributes:
        options: constants of the kernel, and of its launch (``OPTIONS``); given to the kernel as they are.
        origin: the file, and how it was made.
    """

    options: Mapping[str, Any]
    origin: str


@dataclass(frozen=True)
class _Rules:
    """What holds for look-ups of now."""

    is_fixed: bool = False
    tried: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    file: str | None = None
    notes: dict[str, Launch] | None = None


_rules: ContextVar[_Rules] = ContextVar("rules", default=_Rules())  # noqa: B039 frozen


@contextmanager
def _under(**changes: Any) -> Iterator[None]:
    token = _rules.set(replace(_rules.get(), **changes))
    try:
        yield
    finally:
        _rules.reset(token)


def fixed_order() -> AbstractContextManager[None]:
    """Deterministic mode: configurations no longer depend on the number of tokens.

    A kernel then adds each row up in the same order and tiles, whatever comes with it.
    """
    return _under(is_fixed=True)


def is_fixed_order() -> bool:
    """Whether ``fixed_order`` holds: for kernels that share a device among sequences."""
    return _rules.get().is_fixed


def trying(kernel: str, options: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Launch a kernel with these options instead of the files'; for ``s35 tune``."""
    return _under(tried={**_rules.get().tried, kernel: options})


def as_configured_by(file: str) -> AbstractContextManager[None]:
    """Look up in this file, whatever the device; for ``s35 compile-check``."""
    return _under(file=file)


def noting(notes: dict[str, Launch]) -> AbstractContextManager[None]:
    """Note each configuration that is looked up, by kernel; for ``s35 perf``."""
    return _under(notes=notes)


def launch_for(kernel: str, device: torch.device, **sizes: int | str) -> Launch:
    """Look a configuration up.

    Args:
        kernel: as in the files.
        sizes: what entries may depend on.

    Raises:
        LookupError: the file has no entry for the kernel and these sizes.
    """
    rules = _rules.get()
    if rules.is_fixed:
        sizes |= {name: size for name, size in FIXED.items() if name in sizes}
    if kernel in rules.tried:
        found = Launch(rules.tried[kernel], "on trial")
    else:
        found = _launch(kernel, rules.file or _file_for(device.type, device.index), tuple(sizes.items()))
    if rules.notes is not None:
        rules.notes[kernel] = found
    return found


@cache
def _launch(kernel: str, file: str, sizes: tuple[tuple[str, int | str], ...]) -> Launch:
    entries, origin = read(file)
    for entry in entries.get(kernel, ()):
        if _holds(entry, dict(sizes)):
            return Launch({key: value for key, value in entry.items() if _is_option(key)}, origin)
    if file != DEFAULT:
        return _launch(kernel, DEFAULT, sizes)
    raise LookupError(f"launch: {kernel} with {dict(sizes)} has no entry in launch_configs/{file}.toml; add one")


@cache
def read(file: str) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """The entries of a file by kernel, and where they came from."""
    table = tomllib.loads((FOLDER / f"{file}.toml").read_text(encoding="utf-8"))
    made = table.pop("made")
    return table, f"{file}.toml: {made['by']}, {made['on']}, {made['date']}"


def files() -> list[str]:
    """Names of the files, for tests and for ``s35 compile-check``."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@cache
def _file_for(kind: str, index: int | None) -> str:
    if kind == "cpu":
        return CPU
    if kind != "cuda":
        return DEFAULT
    try:
        name = profile_for(torch.cuda.get_device_name(index)).name
    except UnknownDeviceError:
        return DEFAULT
    return name if (FOLDER / f"{name}.toml").exists() else DEFAULT


def _is_option(key: str) -> bool:
    return key in OPTIONS or key.isupper()


def _holds(entry: Mapping[str, Any], sizes: Mapping[str, int | str]) -> bool:
    for key, value in entry.items():
        if _is_option(key):
            continue
        name = key.removeprefix("max_")
        if name not in sizes:
            return False
        if not (sizes[name] <= value if key.startswith("max_") else sizes[name] == value):
            return False
    return True


@cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run beside each other, at least: for kernels that share out their work."""
    if device.type == "meta":
        return 128  # a device that is only compiled for has enough for splits
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
