"""What this device reaches at best, measured in the same run by the same timer: reading, and large matrix products."""

from collections.abc import Callable
from functools import partial

from .cost import Ceilings
from .timing import time_on_device

READ_BYTES = 1 << 32
SIZE = 8192  # of the square matrices


def measure_ceilings() -> Ceilings:
    """Measure on the current CUDA device: sums over 4 GiB, the fastest of several, and products of random matrices."""
    import torch

    from .read_kernel import VARIANTS, read

    x = torch.empty(READ_BYTES // 4, dtype=torch.float32, device="cuda").normal_()  # 4 GiB until the end of this
    times_us: dict[tuple[int, int], float] = {}
    for block, per_sm in VARIANTS:
        times_us[block, per_sm] = time_on_device(partial(_read, read, x, block, per_sm), 1).us
    best = min(times_us, key=lambda variant: times_us[variant])
    read_us = times_us[best]
    notes = {"read": f"{READ_BYTES >> 30} GiB of float32 summed by perf/read_kernel.py (block, programs: {best})"}
    flops = 2 * SIZE**3
    tflops = {}
    for dtype, product in _products().items():
        try:
            tflops[dtype] = flops / time_on_device(product(), 1).us / 1e6
            notes[dtype] = f"{SIZE}^3, {product.__doc__}"
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:
            notes[dtype] = f"not measured: {str(error).splitlines()[0]}; bf16 stands in"
            tflops[dtype] = tflops["bf16"]
    torch.cuda.empty_cache()
    return Ceilings(READ_BYTES / read_us / 1e3, tflops, notes)


def _read(read: Callable[..., object], x: object, block: int, per_sm: int, copy: int) -> object:
    return read(x, block, per_sm)


def _products() -> dict[str, Callable[[], Callable[[int], object]]]:
    return {"bf16": _bf16, "fp8": _fp8}


def _bf16() -> Callable[[int], object]:
    """torch.mm"""
    import torch

    a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return lambda _: a @ b.T


def _fp8() -> Callable[[int], object]:
    """torch._scaled_mm, one scale for each matrix"""
    import torch

    a, b = (torch.randn(SIZE, SIZE, device="cuda").clamp(-448, 448).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device="cuda")
    return lambda _: torch._scaled_mm(a, b.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
