"""What torch and Triton can do on a device here, found by doing it, and how fast it copies, reads and multiplies."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

CPU_COPY_BYTES = 1 << 28
CPU_MATMUL_SIZE = 1024
CPU_ROUNDS = 7
QUEUE_BYTES = 1 << 30  # more than a last-level cache that CPU and GPU share
QUEUE_MATMUL_SIZE = 4096
QUEUED = 8


@dataclass(frozen=True)
class Probe:
    """One question. ``answer`` is None where it could not be put; then ``reason`` says why."""

    question: str
    answer: bool | float | None
    unit: str
    source: str
    reason: str | None = None


def probes(device: str) -> list[Probe]:
    """Put each question; an error is an answer."""
    return [*_abilities(device), *_rates(device)]


def as_dicts(found: list[Probe]) -> list[dict[str, Any]]:
    return [asdict(probe) for probe in found]


def _abilities(device: str) -> Iterator[Probe]:
    yield _tried("float8_e4m3fn tensors are made and read", device, lambda: _fp8_round_trip(device), "torch")
    yield _tried("float8_e4m3fn matrices are multiplied", device, lambda: _fp8_product(device), "torch._scaled_mm")
    yield _tried("a Triton kernel runs", device, lambda: _triton(device), "triton")
    yield _tried("bfloat16 matrices are multiplied", device, lambda: _bf16_product(device), "torch.mm")
    mps = torch.backends.mps
    yield Probe("MPS is built in", mps.is_built(), "", "torch.backends.mps.is_built")
    yield Probe("MPS is available", mps.is_available(), "", "torch.backends.mps.is_available")


def _tried(question: str, device: str, attempt: Callable[[], object], source: str) -> Probe:
    try:
        attempt()
    except Exception as error:  # whatever a library raises is the answer
        said = str(error).strip().splitlines() or [""]
        return Probe(question, False, "", f"{source} on {device}", f"{type(error).__name__}: {said[0][:160]}")
    return Probe(question, True, "", f"{source} on {device}")


def _fp8_round_trip(device: str) -> None:
    x = torch.tensor([1.0, -448.0], device=device).to(torch.float8_e4m3fn)
    if x.float().tolist() != [1.0, -448.0]:
        raise RuntimeError("values that e4m3 holds came back changed")


def _fp8_product(device: str) -> None:
    a = torch.ones(32, 32, device=device).to(torch.float8_e4m3fn)
    one = torch.ones((), device=device)
    y = torch._scaled_mm(a, a.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    if y.float().ne(32).any():
        raise RuntimeError("a product of ones is not their number")


def _bf16_product(device: str) -> None:
    a = torch.ones(32, 32, device=device, dtype=torch.bfloat16)
    if (a @ a).float().ne(32).any():
        raise RuntimeError("a product of ones is not their number")


def _triton(device: str) -> None:
    if not device.startswith("cuda"):
        raise RuntimeError(f"Triton compiles for GPUs; on {device} its interpreter alone runs (TRITON_INTERPRET=1)")
    from .read_kernel import read

    if read(torch.ones(1 << 16, device=device), 2048, 2).sum().item() != 1 << 16:
        raise RuntimeError("a sum of ones is not their number")


def _rates(device: str) -> Iterator[Probe]:
    if device.startswith("cuda"):
        yield from _cuda_rates()
    elif device == "cpu":
        yield from _cpu_rates()
    elif device == "mps":
        yield from _queue_rates(device, torch.mps.synchronize)
    else:
        reason = f"no timer of the suite measures {device} yet"
        yield Probe("memory is copied", None, "GB/s", "none", reason)


def _cuda_rates() -> Iterator[Probe]:
    from functools import partial

    from .ceilings import measure_ceilings
    from .timing import time_on_device

    rate = _copied_gb_per_s(partial(time_on_device, num_sets=1))
    yield Probe("memory is copied", rate, "GB/s", "torch copy_ of 4 GiB, reads and writes counted")
    torch.cuda.empty_cache()
    found = measure_ceilings()
    yield Probe("memory is read", found.read_gb_per_s, "GB/s", found.notes["read"])
    for dtype, tflops in found.tflops.items():
        yield Probe(f"{dtype} matrices are multiplied", tflops, "TFLOP/s", found.notes[dtype])


def _copied_gb_per_s(timed: Callable[..., Any]) -> float:
    x = torch.empty(1 << 30, dtype=torch.float32, device="cuda").normal_()
    y = torch.empty_like(x)
    return 2 * x.nbytes / timed(lambda _: y.copy_(x)).us / 1e3


def _cpu_rates() -> Iterator[Probe]:
    x = torch.randn(CPU_COPY_BYTES // 4)
    y = torch.empty_like(x)
    source = f"torch, {torch.get_num_threads()} threads, median of {CPU_ROUNDS}"
    seconds = _median_s(lambda: y.copy_(x))
    copied = f"{source}; {CPU_COPY_BYTES >> 20} MiB, reads and writes counted"
    yield Probe("memory is copied", 2 * x.nbytes / seconds / 1e9, "GB/s", copied)
    seconds = _median_s(x.sum)
    yield Probe("memory is read", x.nbytes / seconds / 1e9, "GB/s", f"{source}; a sum of {CPU_COPY_BYTES >> 20} MiB")
    a = torch.randn(CPU_MATMUL_SIZE, CPU_MATMUL_SIZE)
    seconds = _median_s(lambda: a @ a)
    rate = 2 * CPU_MATMUL_SIZE**3 / seconds / 1e12
    yield Probe("float32 matrices are multiplied", rate, "TFLOP/s", f"{source}; {CPU_MATMUL_SIZE}^3")


def _queue_rates(
    device: str, wait: Callable[[], None], size_bytes: int = QUEUE_BYTES, side: int = QUEUE_MATMUL_SIZE
) -> Iterator[Probe]:
    """Of a device that works behind a queue: many calls between two waits, so that starting one of them hides.

    Written for MPS, and tested with a stand-in: it has not run on Apple's hardware.
    """
    source = f"torch on {device}, {QUEUED} calls between two waits, median of {CPU_ROUNDS}"
    x = torch.randn(size_bytes // 4, device=device)
    y = torch.empty_like(x)
    seconds = _queued_s(lambda: y.copy_(x), wait)
    copied = f"{source}; {size_bytes >> 20} MiB, reads and writes counted"
    yield Probe("memory is copied", 2 * x.nbytes / seconds / 1e9, "GB/s", copied)
    seconds = _queued_s(x.sum, wait)
    yield Probe("memory is read", x.nbytes / seconds / 1e9, "GB/s", f"{source}; a sum of {size_bytes >> 20} MiB")
    for name, dtype in (("bf16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)):
        question = f"{name} matrices are multiplied"
        try:
            a = torch.randn(side, side, device=device).to(dtype)
            seconds = _queued_s(lambda a=a: a @ a, wait)  # type: ignore[misc]
        except (RuntimeError, TypeError) as error:  # older systems have no bfloat16 there
            said = str(error).strip().splitlines() or [""]
            yield Probe(question, None, "TFLOP/s", source, f"{type(error).__name__}: {said[0][:160]}")
            continue
        yield Probe(question, 2 * side**3 / seconds / 1e12, "TFLOP/s", f"{source}; {side}^3")


def _queued_s(work: Callable[[], object], wait: Callable[[], None]) -> float:
    """Seconds of one call."""

    def together() -> None:
        for _ in range(QUEUED):
            work()
        wait()

    wait()
    return _median_s(together) / QUEUED


def _median_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(CPU_ROUNDS + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first touches the pages
