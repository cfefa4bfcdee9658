"""Makes inputs: the same random numbers on a device, and on ``meta`` only their shapes, for the compiler."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reference.quantization import Fp8Weight, Int4Weight

CHUNK_ELEMENTS = 1 << 28  # made at a time where a wider copy is needed on the way
BF16 = torch.bfloat16


class Maker:
    """Random tensors from one seed.

    Args:
        device: a CUDA device, ``cpu`` or ``meta``: there nothing is allocated.
    """

    def __init__(self, device: torch.device | str, seed: int = 0) -> None:
        self.device = torch.device(device)
        self.generator = None if self.is_meta else torch.Generator(self.device).manual_seed(seed)

    @property
    def is_meta(self) -> bool:
        return self.device.type == "meta"

    def normal(self, *size: int, scale: float = 1.0, dtype: torch.dtype = BF16) -> Tensor:
        """Standard normal times ``scale``."""
        x = torch.empty(size, dtype=dtype, device=self.device)
        return x if self.is_meta else x.normal_(0.0, scale, generator=self.generator)

    def uniform(self, *size: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        x = torch.empty(size, dtype=dtype, device=self.device)
        return x if self.is_meta else x.uniform_(low, high, generator=self.generator)

    def integers(self, *size: int, high: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Uniform in 0..high-1."""
        x = torch.empty(size, dtype=dtype, device=self.device)
        return x if self.is_meta else x.random_(0, high, generator=self.generator)

    def to_device(self, x: Tensor) -> Tensor:
        """What was made on the CPU, as ids and positions are."""
        return x.to(self.device)

    def weight(self, *size: int, format: str) -> Tensor | Fp8Weight | Int4Weight:
        """A weight [..., O, I] of standard deviation 1 / sqrt(I), made in its format: nothing is quantised.

        Raises:
            ValueError: a format other than bf16, fp8 and int4.
        """
        outputs, inputs = size[-2:]
        deviation = inputs**-0.5
        if format == "bf16":
            return self.normal(*size, scale=deviation)
        if format == "fp8":
            shape = (*size[:-2], -(-outputs // 128), -(-inputs // 128))
            scale = self.uniform(*shape, low=0.5 * deviation / 64, high=1.5 * deviation / 64)
            return Fp8Weight(self._fp8_codes(size), scale)
        if format == "int4":
            codes = self.integers(*size[:-1], inputs // 2, high=256, dtype=torch.uint8)
            scale = self.uniform(*size[:-1], -(-inputs // 128), low=0.1 * deviation, high=0.3 * deviation)
            return Int4Weight(codes, scale.to(torch.float16))
        raise ValueError(f"weight: format is {format!r}; want bf16, fp8 or int4")

    def _fp8_codes(self, size: Sequence[int]) -> Tensor:
        codes = torch.empty(tuple(size), dtype=torch.float8_e4m3fn, device=self.device)
        if not self.is_meta:
            for part in codes.view(-1).split(CHUNK_ELEMENTS):
                part.copy_(self.normal(len(part), scale=64.0).clamp_(-448, 448))
        return codes
