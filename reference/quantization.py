"""Number formats of the routed experts: FP8 in 128x128 blocks, int4 in groups along the input.

``fp8``: the published FP8 checkpoint (StepFun Step-3.5-Flash-FP8). e4m3 codes and one multiplier per block of
128 outputs x 128 inputs; the checkpoint calls the multiplier ``weight_scale_inv``:

    W[o, i] = codes[o, i] * scale_inv[o // 128, i // 128]

``int4``: AutoRound, symmetric, group 128, as the card of Hugging Face Intel/Step-3.5-Flash-int4-mixed-AutoRound
says; zero point 8 and float16 scales are AutoRound's default packing (auto_round:auto_gptq):

    W[o, i] = (code[o, i] - 8) * scale[o, i // 128]        code in 0..15

Two codes to a byte, the even input in the low nibble; read as little-endian int32, these are the words of
compressed-tensors ``weight_packed`` and, transposed, of GPTQ and AutoRound ``qweight``. A scale may be
negative: AutoRound gives the side that reaches further the extra code.

Why int4. Signal to noise in dB of one million bf16 weights, rounded to nearest: gaussian / Student t with 4
degrees of freedom / gaussian with one weight in a thousand 20 times as wide. Every group divides 128, 256,
1280 and 4096.

    format                     bits per weight    signal to noise          scales per 128 inputs
    int4, group 128, float16   4.125              19.7 / 15.4 / 14.4       1
    MXFP4, group 32, e8m0      4.25               18.9 / 17.6 / 17.2       4
    mlx affine, group 64       4.5                21.0 / 18.6 / 18.6       2, and 2 offsets
    NVFP4, group 16, e4m3      4.5                20.4 / 20.7 / 20.6       8, and 1 per tensor

Decode at batch one is bound by bytes, and int4 has the fewest. Hopper has no FP4 tensor core, so each format
is widened to bf16 first. For int4 that is exact, at about one and a half instructions a weight by count: a
shift, a masked OR with 0x4300 (128 in bf16, whose last place there is 1) and a subtraction of 136, each on
two weights at once. The scale is one multiply per output and 128 inputs, on the float32 accumulator; shorter
groups pay it more often. The price is outliers, where the finer scales win.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

FP8_MAX = 448.0  # largest finite e4m3fn; torch 2.11 casts above 464 to NaN, later ones saturate: clamp first
INT4_ZERO = 8  # the code that stands for 0
INT4_SCALE_MAX = 65504.0  # largest finite float16
QUANTIZED_AT_ONCE = 1 << 26  # weights; bounds the float32 copies that rounding makes
GPTQ_ZEROS = 0x77777777  # eight zero points of 8, each stored minus one


@dataclass(frozen=True)
class Fp8Weight:
    """A weight [..., O, I] as e4m3 codes and a multiplier per block.

    Attributes:
        data: [..., O, I], float8_e4m3fn.
        scale_inv: [..., ceil(O / block[0]), ceil(I / block[1])], float32 or bfloat16; a multiplier in spite
            of its name. The last block of an axis may be short.
        block: outputs and inputs that share a multiplier.

    Raises:
        ValueError: a dtype or a shape that does not fit the above.
    """

    data: Tensor
    scale_inv: Tensor
    block: tuple[int, int] = (128, 128)

    def __post_init__(self) -> None:
        _require_matrix("fp8 weight", self.data)
        _require_positive("fp8 weight: block", *self.block)
        _require_dtype("fp8 weight: data", self.data, torch.float8_e4m3fn)
        _require_dtype("fp8 weight: scale_inv", self.scale_inv, torch.float32, torch.bfloat16)
        _require_shape("fp8 weight: scale_inv", self.scale_inv.shape, _scale_shape(self.shape, self.block))

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.data.nbytes + self.scale_inv.nbytes

    def to(self, device: torch.device | str) -> Fp8Weight:
        """The same on another device."""
        return Fp8Weight(self.data.to(device), self.scale_inv.to(device), self.block)

    def __getitem__(self, expert: int) -> Fp8Weight:
        """Take one index of the leading dimension; a view, nothing is widened."""
        _require_leading("fp8 weight", self.shape)
        return Fp8Weight(self.data[expert], self.scale_inv[expert], self.block)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return [..., O, I] in ``dtype``; the product is taken in float32 or wider and rounded once."""
        wide = torch.promote_types(dtype, torch.float32)
        return _multiply_blocks(self.data.to(wide), self.scale_inv.to(wide), self.block).to(dtype)


@dataclass(frozen=True)
class Int4Weight:
    """A weight [..., O, I] as 4-bit codes with zero point 8 and a scale per group of inputs.

    Attributes:
        data: [..., O, I / 2], uint8; input 2j is the low nibble of byte j, input 2j + 1 the high one.
        scale: [..., O, ceil(I / group)], float16, bfloat16 or float32; of either sign. The last
            group may be short.
        group: inputs that share a scale.

    Raises:
        ValueError: a dtype or a shape that does not fit the above.
    """

    data: Tensor
    scale: Tensor
    group: int = 128

    def __post_init__(self) -> None:
        _require_matrix("int4 weight", self.data)
        _require_positive("int4 weight: group", self.group)
        _require_dtype("int4 weight: data", self.data, torch.uint8)
        _require_dtype("int4 weight: scale", self.scale, torch.float16, torch.bfloat16, torch.float32)
        _require_shape("int4 weight: scale", self.scale.shape, _scale_shape(self.shape, (1, self.group)))

    @classmethod
    def from_gptq(cls, qweight: Tensor, scales: Tensor, qzeros: Tensor) -> Int4Weight:
        """Take the tensors of a symmetric GPTQ or AutoRound ("auto_round:auto_gptq") checkpoint.

        Args:
            qweight: [..., I / 8, O], int32; input 8j + k is bits 4k..4k+3 of word j.
            scales: [..., I / group, O], float16.
            qzeros: [..., I / group, O / 8], int32; zero points stored minus one, so 0x77777777 throughout.

        Source: intel/auto-round, qlinear_torch_zp.py. Activation order (``g_idx``) is not supported.

        Raises:
            ValueError: shapes that disagree, or a zero point other than 8.
        """
        for name, tensor in (("qweight", qweight), ("scales", scales), ("qzeros", qzeros)):
            _require_matrix(f"gptq: {name}", tensor)
        _require_dtype("gptq: qweight", qweight, torch.int32)
        num_inputs, num_groups = 8 * qweight.shape[-2], scales.shape[-2]
        if num_groups == 0 or num_inputs % num_groups:
            raise ValueError(
                f"gptq: {num_inputs} inputs in {num_groups} groups; want groups of equal size "
                "(scales is [..., groups, outputs])"
            )
        _require_shape("gptq: qzeros", qzeros.shape, (*scales.shape[:-1], scales.shape[-1] // 8))
        if (qzeros != GPTQ_ZEROS).any():
            wrong = int(qzeros[qzeros != GPTQ_ZEROS][0]) & 0xFFFFFFFF
            raise ValueError(
                f"gptq: qzeros holds {wrong:#010x}; want {GPTQ_ZEROS:#010x}, zero point 8 stored minus one. "
                "Export the checkpoint with sym=true and packing auto_gptq"
            )
        words = qweight.transpose(-1, -2).contiguous()
        return cls(words.view(torch.uint8), scales.transpose(-1, -2).contiguous(), num_inputs // num_groups)

    def to_gptq(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(qweight, scales, qzeros)`` as ``from_gptq`` takes them.

        Raises:
            ValueError: O or I is not a multiple of 8, or I not of the group.
        """
        num_outputs, num_inputs = self.shape[-2:]
        if num_outputs % 8 or num_inputs % 8 or num_inputs % self.group:
            raise ValueError(
                f"gptq: weight is {tuple(self.shape)} in groups of {self.group}; want outputs and inputs in "
                "multiples of 8, inputs also of the group"
            )
        qweight = self.data.contiguous().view(torch.int32).transpose(-1, -2).contiguous()
        scales = self.scale.transpose(-1, -2).contiguous()
        zeros_shape = (*scales.shape[:-1], num_outputs // 8)
        qzeros = torch.full(zeros_shape, GPTQ_ZEROS, dtype=torch.int32, device=scales.device)
        return qweight, scales, qzeros

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.data.shape[:-1], 2 * self.data.shape[-1]))

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales; the constant zero points are not kept."""
        return self.data.nbytes + self.scale.nbytes

    def to(self, device: torch.device | str) -> Int4Weight:
        """The same on another device."""
        return Int4Weight(self.data.to(device), self.scale.to(device), self.group)

    def __getitem__(self, expert: int) -> Int4Weight:
        """Take one index of the leading dimension; a view, nothing is widened."""
        _require_leading("int4 weight", self.shape)
        return Int4Weight(self.data[expert], self.scale[expert], self.group)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return [..., O, I] in ``dtype``; the product is taken in float32 or wider and rounded once."""
        wide = torch.promote_types(dtype, torch.float32)
        steps = unpack_int4(self.data).to(wide) - INT4_ZERO
        return _multiply_blocks(steps, self.scale.to(wide), (1, self.group)).to(dtype)


QuantizedWeight = Fp8Weight | Int4Weight


def dense(weight: Tensor | QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Return a weight, quantised or not, as a tensor of its shape in ``dtype``."""
    return weight.to(dtype) if isinstance(weight, Tensor) else weight.dequantize(dtype)


def quantize_fp8_weight(weight: Tensor, block: tuple[int, int] = (128, 128)) -> Fp8Weight:
    """Round each block to e4m3 after scaling its largest magnitude to 448.

    A block of zeros gets scale 1. The error is at most half a step of e4m3 at that value, times the scale.

    Args:
        weight: [..., O, I], any floating dtype; the arithmetic is float32.
        block: outputs and inputs that share a scale.

    Raises:
        ValueError: a NaN or an infinity in the weight: a checkpoint that holds one is damaged.
    """
    _require_matrix("fp8", weight)
    _require_positive("fp8: block", *block)
    blocks = _to_blocks(weight.float(), block)
    scale_inv = _fp8_scale(blocks)
    _require_finite("fp8", scale_inv)
    return Fp8Weight(_from_blocks(_fp8_codes(blocks, scale_inv), weight.shape), scale_inv, block)


def quantize_fp8_activation(x: Tensor, group: int = 128) -> tuple[Tensor, Tensor]:
    """Round each group of a row to e4m3 after scaling its largest magnitude to 448.

    Rounding is to nearest, ties to even, saturating. A group of zeros gets scale 1. A group that holds a NaN
    or an infinity dequantises to NaN throughout: poison stays visible, and stays inside its group.

    Args:
        x: [..., I], any floating dtype; the arithmetic is float32.
        group: neighbours that share a scale; the last group may be short.

    Returns:
        codes [..., I], float8_e4m3fn, and scale [..., ceil(I / group)], float32; x is about codes * scale.
    """
    if x.ndim == 0:
        raise ValueError("fp8: x is a scalar; want [..., I]")
    _require_positive("fp8: group", group)
    rows = x.float().unsqueeze(-2)  # [..., 1, I]
    blocks = _to_blocks(rows, (1, group))
    scale = _fp8_scale(blocks)
    return _from_blocks(_fp8_codes(blocks, scale), rows.shape).squeeze(-2), scale.squeeze(-2)


def dequantize_fp8_activation(
    codes: Tensor, scale: Tensor, group: int = 128, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return codes [..., I] times scale [..., ceil(I / group)] in ``dtype``, computed in float32 or wider.

    Raises:
        ValueError: the scale's shape does not fit the codes and the group.
    """
    _require_positive("fp8: group", group)
    _require_shape("fp8: scale", scale.shape, (*codes.shape[:-1], math.ceil(codes.shape[-1] / group)))
    wide = torch.promote_types(dtype, torch.float32)
    product = _multiply_blocks(codes.to(wide).unsqueeze(-2), scale.to(wide).unsqueeze(-2), (1, group))
    return product.squeeze(-2).to(dtype)


def quantize_int4_weight(weight: Tensor, group: int = 128) -> Int4Weight:
    """Round each group to 16 steps from -8 to 7, the extreme of the group at -8.

    The scale is the extreme divided by -8: negative where the extreme is positive, positive on a tie. Its
    float16 magnitude is rounded up, so that -8 reaches the extreme. A group of zeros gets scale 1. The error
    is at most half a scale; only a value on the other side, nearer to 8 steps than to 7, is cut to 7 and
    loses up to one.

    Source of the rule: intel/auto-round, int.py, which took it from llama.cpp's Q4_0.

    Args:
        weight: [..., O, I], any floating dtype, I even; the arithmetic is float32.
        group: inputs that share a scale, even; the last group may be short.

    Raises:
        ValueError: an odd I or group, a NaN or an infinity, or a magnitude above 8 * 65504, which no float16
            scale reaches.
    """
    _require_matrix("int4", weight)
    _require_positive("int4: group", group)
    if weight.shape[-1] % 2 or group % 2:
        raise ValueError(
            f"int4: weight is {tuple(weight.shape)} in groups of {group}; want even inputs and an even "
            "group, two codes to a byte"
        )
    blocks = _to_blocks(weight.float(), (1, group))  # [..., O, 1, I / group, group]
    highest, lowest = blocks.amax(dim=(-3, -1)), blocks.amin(dim=(-3, -1))
    reach = torch.maximum(highest, -lowest) / INT4_ZERO
    _require_finite("int4", reach)
    if (reach > INT4_SCALE_MAX).any():
        raise ValueError(
            f"int4: weight reaches {float(reach.max()) * INT4_ZERO:g}; want magnitudes up to "
            f"{INT4_SCALE_MAX * INT4_ZERO:g}, what a float16 scale can express"
        )
    magnitude = torch.where(reach > 0, _float16_at_least(reach), 1.0)
    scale = torch.where(highest > -lowest, -magnitude, magnitude)
    steps = (blocks / _over_blocks(scale)).round().clamp(-INT4_ZERO, INT4_ZERO - 1)
    codes = _from_blocks(steps + INT4_ZERO, weight.shape).to(torch.uint8)
    return Int4Weight(pack_int4(codes), scale.to(torch.float16), group)


def pack_int4(codes: Tensor) -> Tensor:
    """Pack codes [..., I], uint8 in 0..15, I even, into [..., I / 2] bytes, even inputs in low nibbles."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack_int4(packed: Tensor) -> Tensor:
    """Unpack bytes [..., I / 2], uint8, into codes [..., I], uint8 in 0..15: the inverse of ``pack_int4``."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


@dataclass(frozen=True)
class Format:
    """A number format: how to quantise to it, and what a weight then costs."""

    quantize: Callable[[Tensor], QuantizedWeight]
    code_bits: int
    scale_bits: int
    block: tuple[int, int]  # outputs and inputs that share a scale

    @property
    def bits_per_weight(self) -> float:
        """Bits of a code and its share of the scale, where the blocks divide the weight."""
        return self.code_bits + self.scale_bits / math.prod(self.block)


FORMATS = {
    "fp8": Format(quantize_fp8_weight, code_bits=8, scale_bits=32, block=(128, 128)),
    "int4": Format(quantize_int4_weight, code_bits=4, scale_bits=16, block=(1, 128)),
}


def quantize_stack(format: str, weight: Tensor, device: torch.device | str) -> QuantizedWeight:
    """Quantise experts [E, O, I] or one matrix [O, I] on a device, a part at a time: wide copies would not fit.

    Raises:
        ValueError: as the format's own rounding.
    """
    rows = FORMATS[format].block[0] if weight.ndim == 2 else 1  # a part ends where a block does
    size = max(1, QUANTIZED_AT_ONCE // max(1, rows * weight[0].numel())) * rows
    parts = [FORMATS[format].quantize(part.to(device)) for part in weight.split(size)]
    codes, first = torch.cat([part.data for part in parts]), parts[0]
    if isinstance(first, Fp8Weight):
        return Fp8Weight(
            codes, torch.cat([part.scale_inv for part in parts if isinstance(part, Fp8Weight)]), first.block
        )
    return Int4Weight(codes, torch.cat([part.scale for part in parts if isinstance(part, Int4Weight)]), first.group)


def weight_bytes(format: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a weight [..., O, I] in a named format, scales included; nothing is allocated.

    Raises:
        ValueError: a format not in ``FORMATS``, fewer than two dimensions, or rows that are not whole bytes.
    """
    if format not in FORMATS:
        raise ValueError(f"weight_bytes: format is {format!r}; want one of {', '.join(map(repr, FORMATS))}")
    if len(shape) < 2:
        raise ValueError(f"weight_bytes: shape is {tuple(shape)}; want [..., outputs, inputs]")
    chosen = FORMATS[format]
    if shape[-1] * chosen.code_bits % 8:
        raise ValueError(f"weight_bytes: a row of {tuple(shape)} in {format} is not whole bytes; want even inputs")
    num_scales = math.prod(_scale_shape(shape, chosen.block))
    return (math.prod(shape) * chosen.code_bits + num_scales * chosen.scale_bits) // 8


@dataclass(frozen=True)
class QuantizationError:
    """How far a quantised weight is from its original.

    Attributes:
        relative_rms: root mean square of the error over that of the weight; 0 where nothing is lost.
        max_relative_to_block_amax: largest error, each over the largest magnitude that shares its scale.
        snr_db: -20 log10(relative_rms); infinite where nothing is lost.
        bits_per_weight: bits held, scales and short blocks included.
    """

    relative_rms: float
    max_relative_to_block_amax: float
    snr_db: float
    bits_per_weight: float


def quantization_error(weight: Tensor, quantized: QuantizedWeight) -> QuantizationError:
    """Measure ``quantized`` against ``weight`` [..., O, I] in float64, one matrix at a time.

    Raises:
        ValueError: shapes that differ, or a weight without elements.
    """
    _require_shape("quantization_error: quantized", quantized.shape, weight.shape)
    if weight.numel() == 0:
        raise ValueError(f"quantization_error: weight is {tuple(weight.shape)}; want at least one element")
    block = quantized.block if isinstance(quantized, Fp8Weight) else (1, quantized.group)
    square_error = square_weight = worst = 0.0
    for matrix, quantized_matrix in _matrices(weight, quantized):
        wide = matrix.double()
        error = quantized_matrix.dequantize(torch.float64) - wide
        square_error += float(error.square().sum())
        square_weight += float(wide.square().sum())
        amax = _to_blocks(wide, block).abs().amax(dim=(-3, -1))
        relative = _to_blocks(error, block).abs().amax(dim=(-3, -1)) / amax  # 0 / 0: zeros kept at zero
        worst = max(worst, float(relative.nan_to_num(nan=0.0, posinf=math.inf).max()))
    nothing_to_keep = math.inf if square_error else 0.0
    ratio = square_error / square_weight if square_weight else nothing_to_keep
    return QuantizationError(
        relative_rms=math.sqrt(ratio),
        max_relative_to_block_amax=worst,
        snr_db=-10 * math.log10(ratio) if ratio else math.inf,
        bits_per_weight=8 * quantized.nbytes / weight.numel(),
    )


def _matrices(weight: Tensor, quantized: QuantizedWeight) -> Iterator[tuple[Tensor, QuantizedWeight]]:
    """Yield the [O, I] matrices of a weight [..., O, I], each with its quantised twin."""
    if weight.ndim == 2:
        yield weight, quantized
    else:
        for index in range(len(weight)):
            yield from _matrices(weight[index], quantized[index])


def _scale_shape(shape: Sequence[int], block: tuple[int, int]) -> tuple[int, ...]:
    return (*shape[:-2], math.ceil(shape[-2] / block[0]), math.ceil(shape[-1] / block[1]))


def _to_blocks(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Cut [..., O, I], padded with zeros, into [..., O / rows, rows, I / columns, columns]."""
    rows, columns = block
    padded = pad(x, (0, -x.shape[-1] % columns, 0, -x.shape[-2] % rows))
    num_rows, num_columns = padded.shape[-2] // rows, padded.shape[-1] // columns
    return padded.unflatten(-1, (num_columns, columns)).unflatten(-3, (num_rows, rows))


def _from_blocks(blocks: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo ``_to_blocks``: drop the padding, return a contiguous tensor of ``shape``."""
    padded = blocks.flatten(-2).flatten(-3, -2)
    return padded[..., : shape[-2], : shape[-1]].contiguous()


def _over_blocks(scale: Tensor) -> Tensor:
    return scale[..., :, None, :, None]


def _multiply_blocks(values: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    return _from_blocks(_to_blocks(values, block) * _over_blocks(scale), values.shape)


def _fp8_scale(blocks: Tensor) -> Tensor:
    """Return amax / 448 of each block, at least the smallest normal float32; 1 for a block of zeros."""
    amax = blocks.abs().amax(dim=(-3, -1))
    smallest = torch.finfo(torch.float32).tiny
    return torch.where(amax == 0, 1.0, (amax / FP8_MAX).clamp(min=smallest))  # NaN and infinity pass


def _fp8_codes(blocks: Tensor, scale: Tensor) -> Tensor:
    return (blocks / _over_blocks(scale)).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def _float16_at_least(x: Tensor) -> Tensor:
    """Return the smallest float16 value >= x, in float32, for x in 0..65504."""
    nearest = x.to(torch.float16)
    bits = nearest.view(torch.int16) + (nearest.float() < x)  # one up: bits of non-negative floats are in order
    return bits.view(torch.float16).float()


def _require_matrix(name: str, tensor: Tensor) -> None:
    if tensor.ndim < 2:
        raise ValueError(f"{name}: shape is {tuple(tensor.shape)}; want at least two dimensions")


def _require_leading(name: str, shape: Sequence[int]) -> None:
    if len(shape) < 3:
        raise ValueError(f"{name}: shape is {tuple(shape)}; want a leading dimension to index")


def _require_positive(name: str, *sizes: int) -> None:
    if min(sizes) < 1:
        raise ValueError(f"{name}: is {sizes}; want sizes of at least 1")


def _require_dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    if tensor.dtype not in allowed:
        raise ValueError(f"{name}: dtype is {tensor.dtype}; want {' or '.join(map(str, allowed))}")


def _require_shape(name: str, got: Sequence[int], want: Sequence[int]) -> None:
    if tuple(got) != tuple(want):
        raise ValueError(f"{name}: shape is {tuple(got)}; want {tuple(want)}")


def _require_finite(name: str, per_block: Tensor) -> None:
    damaged = ~per_block.isfinite()
    if damaged.any():
        first = tuple(damaged.nonzero()[0].tolist())
        raise ValueError(
            f"{name}: weight has NaN or infinity in {int(damaged.sum())} of {damaged.numel()} blocks, "
            f"first in block {first}; want finite values. Look at the file the weight came from"
        )
