"""Does every kernel compile and fit, as the engine launches it, on devices that are not here?

The cases of ``perf ops`` run on the ``meta`` device under a driver that only names a target: the engine's own code
chooses launch configurations and specialises on shapes and strides; Triton compiles, nothing is launched. It lives in
``perf`` because inputs at published shapes do, and the kernels may not depend on what measures them.
"""

import os
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from optimized.launch import as_configured_by

from .case import Case
from .catalogue import select
from .maker import Maker
from .ops import bench_experts, fused

TARGETS = Path(__file__).parent / "compile_targets.toml"
MATRIX_INSTRUCTIONS = ("wgmma", "tcgen05.mma", "mma.sync", "v_mfma")


@dataclass(frozen=True)
class Target:
    """An architecture and what a kernel may use on it; see ``compile_targets.toml``."""

    name: str
    backend: str
    arch: int | str
    warp_size: int
    files: tuple[str, ...]
    shared_memory_per_block_bytes: int
    max_spill_bytes: int
    must_compile: bool


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel.

    Attributes:
        case: the first case that launches it.
        file: of launch configurations.
        shared_bytes: of a block; spill_bytes: of a thread's stack.
        matrix: the instruction that matrix products became, or "".
        problem: why it does not fit or does not compile; "": it does.
        ok: no problem, or one that does not count on this target.
    """

    op: str
    case: str
    kernel: str
    target: str
    file: str
    shared_bytes: int | None
    registers: int | None
    spill_bytes: int | None
    matrix: str
    problem: str
    ok: bool


def read_targets(path: Path = TARGETS) -> dict[str, Target]:
    """Every architecture of the file, by name."""
    targets = {}
    for name, values in tomllib.loads(path.read_text(encoding="utf-8")).items():
        known = {key: value for key, value in values.items() if key in Target.__dataclass_fields__}
        targets[name] = Target(name=name, **(known | {"files": tuple(values["files"])}))
    return targets


def check(target_names: Sequence[str], ops: Sequence[str]) -> list[Kernel]:
    """Compile the cases of these operators for these targets; none named: all.

    Raises:
        ValueError: an unknown target or operator, or a process whose Triton interprets.
    """
    targets = read_targets()
    unknown = [name for name in target_names if name not in targets]
    if unknown:
        raise ValueError(f"target: {unknown[0]!r} has no limits; known: {', '.join(targets)}")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("compile-check: TRITON_INTERPRET is 1; want a process that compiles")
    cases = select(ops)
    found: list[Kernel] = []
    for name in target_names or targets:
        for file in targets[name].files:
            found += check_target(targets[name], file, cases)
    return found


def check_target(target: Target, file: str, cases: Sequence[Case]) -> list[Kernel]:
    """Compile the cases with one file of launch configurations; each distinct kernel once."""
    found: list[Kernel] = []
    seen: set[str] = set()
    with compiling_for(target, file) as compiled:
        for case in (case for case in cases if case.made_of is None):  # else its kernels are those of rows
            compiled.clear()
            problem = _launch(case)
            for name, binary in compiled:
                if binary.hash not in seen:
                    seen.add(binary.hash)
                    found.append(_judge(case, name, binary, target, file))
            if problem:
                what = (case.op, case.name, "", target.name, file)
                found.append(Kernel(*what, None, None, None, "", problem, not target.must_compile))
    bench_experts.forget_weights()
    return found


def _launch(case: Case) -> str:
    """Run the wrapper on shapes alone; what went wrong, or ""."""
    try:
        operator = fused.find(case.fused) if case.fused else _row(case.op)
        operator(*case.build(Maker("meta"))())
    except Exception as error:  # of the compiler, of the wrapper: each is this case's result
        if case.waits and isinstance(error, (NotImplementedError, RuntimeError)) and "meta" in str(error).lower():
            return ""  # it compiled, and then asked the device for its answer
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[-1][:160] if lines else ''}"
    return ""


def _row(op: str) -> Callable[..., Any]:
    return getattr(import_module(f"optimized.ops.{op}"), op)


def _judge(case: Case, name: str, binary: Any, target: Target, file: str) -> Kernel:
    registers, spill = (_amd if target.backend == "hip" else _nvidia)(binary)
    shared = int(binary.metadata.shared)
    problems = []
    if shared > target.shared_memory_per_block_bytes:
        problems.append(f"{shared} bytes of shared memory, limit {target.shared_memory_per_block_bytes}")
    if spill > target.max_spill_bytes:
        problems.append(f"{spill} bytes spilled, bound {target.max_spill_bytes}")
    text = binary.asm.get("ptx") or binary.asm.get("amdgcn") or ""
    matrix = next((word for word in MATRIX_INSTRUCTIONS if word in text), "")
    what = (case.op, case.name, name, target.name, file, shared, registers, spill, matrix)
    return Kernel(*what, "; ".join(problems), not problems)


def _nvidia(binary: Any) -> tuple[int, int]:
    """Registers and stack bytes of a thread, as cuobjdump counts them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(binary.asm["cubin"])
        cubin.flush()
        done = subprocess.run([_cuobjdump(), "-res-usage", cubin.name], capture_output=True, text=True, check=True)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout + done.stderr)
    if usage is None:
        raise RuntimeError(f"cuobjdump: no REG and STACK in {done.stdout!r}")
    return int(usage[1]), int(usage[2])


def _amd(binary: Any) -> tuple[int, int]:
    """Vector registers, and bytes of spilled ones, as the assembly declares them."""
    text = binary.asm["amdgcn"]
    registers = re.search(r"\.vgpr_count:\s*(\d+)", text)
    spilled = re.search(r"\.vgpr_spill_count:\s*(\d+)", text)
    return int(registers[1]) if registers else 0, 4 * int(spilled[1]) if spilled else 0


@cache
def _cuobjdump() -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")


class _NamedTarget:
    """Stands in for Triton's driver: knows a target and has no device."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_empty_cache_for_benchmark(self) -> None:
        return None

    def get_benchmarker(self) -> Callable[..., list[float]]:
        return lambda function, quantiles=None, **_: (function(), [0.0, 0.0, 0.0])[1]


@contextmanager
def compiling_for(target: Target, file: str) -> Iterator[list[tuple[str, Any]]]:
    """While it lasts, launches of Triton kernels only compile: name and binary of each are appended to the list."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compiled: list[tuple[str, Any]] = []
    used: set[Any] = set()
    plain_run = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if self not in used:
            used.add(self)
            self.device_caches.clear()  # of another target
        binary = plain_run(self, *args, grid=grid, warmup=True, **options)
        compiled.append((self.__name__, binary))
        return binary

    driver.set_active(_NamedTarget(GPUTarget(target.backend, target.arch, target.warp_size)))
    JITFunction.run = run
    try:
        with as_configured_by(file):
            yield compiled
    finally:
        JITFunction.run = plain_run
        for function in used:
            function.device_caches.clear()


COLUMNS = ["op", "kernel", "target", "file", "shared", "registers", "spills", "matrix", "fits"]


def table(kernels: Sequence[Kernel]) -> str:
    """One line a kernel, the first case that launches it where something is wrong, and a count."""
    lines = [COLUMNS, *(_cells(kernel) for kernel in kernels)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    wrong = sum(not kernel.ok for kernel in kernels)
    return "\n".join([*text, f"{len(kernels)} kernels, {wrong} do not fit or do not compile"])


def _cells(kernel: Kernel) -> list[str]:
    numbers = ["-" if n is None else str(n) for n in (kernel.shared_bytes, kernel.registers, kernel.spill_bytes)]
    fits = "yes" if not kernel.problem else f"{'no' if not kernel.ok else 'no (not required)'}: {kernel.problem}"
    if kernel.problem:
        fits += f" [{kernel.case}]"
    return [kernel.op, kernel.kernel or "-", kernel.target, kernel.file, *numbers, kernel.matrix or "-", fits]
