"""Number formats: the bytes they hold, what they lose, and what they refuse."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference.quantization import (
    FORMATS,
    Fp8Weight,
    Int4Weight,
    dense,
    dequantize_fp8_activation,
    pack_int4,
    quantization_error,
    quantize_fp8_activation,
    quantize_fp8_weight,
    quantize_int4_weight,
    quantize_stack,
    unpack_int4,
    weight_bytes,
)

E4M3 = torch.float8_e4m3fn
quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
leading = st.sampled_from([(), (3,), (2, 3)])
# from groups whose float16 scales are subnormal to nearly the largest; the model's weights lie well inside
amplitudes = st.sampled_from([1e-7, 3e-5, 0.02, 1.0, 300.0, 3e4])


def gaussian(shape: tuple[int, ...], seed: int, amplitude: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * amplitude


def random_bytes(shape: tuple[int, ...], seed: int, below: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(below, shape, generator=generator, dtype=torch.uint8)


def fp8_bytes(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def spread(scale: Tensor, block: tuple[int, int], shape: torch.Size) -> Tensor:
    """Give every weight its scale, by index, independently of the code under test."""
    rows = torch.arange(shape[-2]) // block[0]
    columns = torch.arange(shape[-1]) // block[1]
    return scale.double()[..., rows[:, None], columns[None, :]]


def scales_of(quantized: Fp8Weight | Int4Weight) -> Tensor:
    return quantized.scale_inv if isinstance(quantized, Fp8Weight) else quantized.scale


def test_fp8_rounds_to_nearest_even_at_the_block_scale():
    weight = torch.tensor([[448.0, 1.0, 17.0], [-448.0, 19.0, 2.0**-9]])
    quantized = quantize_fp8_weight(weight, block=(2, 3))
    assert quantized.scale_inv.tolist() == [[1.0]]
    want = torch.stack((fp8_bytes(0x7E, 0x38, 0x58), fp8_bytes(0xFE, 0x5A, 0x01)))  # 17 to 16, 19 to 20
    assert torch.equal(quantized.data.view(torch.uint8), want)
    assert quantized.dequantize().tolist() == [[448, 1, 16], [-448, 20, 2.0**-9]]


def test_fp8_scale_rows_are_outputs_and_columns_are_inputs():
    data = torch.ones(256, 256).to(E4M3)
    weight = Fp8Weight(data, torch.tensor([[1.0, 1e3], [1e-3, 1e6]])).dequantize()
    corners = weight[[0, 127, 128, 255]][:, [0, 127, 128, 255]]
    top, bottom = [1.0, 1.0, 1e3, 1e3], [1e-3, 1e-3, 1e6, 1e6]
    assert torch.equal(corners, torch.tensor([top, top, bottom, bottom]))


def test_fp8_blocks_a_thousand_apart_keep_their_own_scales():
    amplitude = torch.tensor([[1.0, 1e3, 1e-3], [1e-6, 1e6, 1e-9]])
    signs = gaussian((256, 384), seed=0).sign()
    weight = signs * amplitude.repeat_interleave(128, 0).repeat_interleave(128, 1)
    quantized = quantize_fp8_weight(weight)
    assert torch.equal(quantized.scale_inv, amplitude / 448)
    assert torch.allclose(quantized.dequantize(), weight, rtol=2**-23, atol=0)


@quick
@given(seed=seeds, lead=leading, scale=st.integers(1, 255), exponent=st.integers(-40, 40))
def test_fp8_round_trip_of_representable_values_is_bit_exact(seed, lead, scale, exponent):
    data = random_bytes((*lead, 10, 14), seed, below=256)
    data = torch.where(data % 128 == 127, 0, data)  # 0x7F and 0xFF are NaN
    data[..., ::4, ::4] = 0x7E  # 448 in every block, the short ones too, so the scale is the amax over 448
    original = Fp8Weight(data.view(E4M3), torch.full((*lead, 3, 4), scale * 2.0**exponent), (4, 4))
    again = quantize_fp8_weight(original.dequantize(), (4, 4))
    assert torch.equal(again.data.view(torch.uint8), data)
    assert torch.equal(again.scale_inv, original.scale_inv)


@quick
@given(
    seed=seeds,
    lead=leading,
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    amplitude=st.sampled_from([1e-44, 1e-38, 1e-5, 1.0, 1e4, 1e37]),
)
def test_fp8_error_is_within_half_a_step_of_e4m3_times_the_scale(seed, lead, shape, amplitude):
    weight = gaussian((*lead, *shape), seed, amplitude)
    quantized = quantize_fp8_weight(weight, (4, 3))
    scale = spread(quantized.scale_inv, (4, 3), quantized.shape)
    exponent = (weight.double().abs() / scale).clamp(min=2.0**-6).log2().floor()
    half_step = 2.0 ** (exponent - 4) * scale
    error = (quantized.dequantize(torch.float64) - weight.double()).abs()
    assert (error <= half_step * (1 + 1e-6)).all()


@pytest.mark.parametrize("amplitude", [465.0, 1e3, 1e6, 3.4e38])
def test_fp8_values_above_464_saturate_instead_of_becoming_nan(amplitude):
    weight = gaussian((64, 256), seed=1).clamp(-1, 1) * amplitude
    quantized = quantize_fp8_weight(weight)
    assert quantized.dequantize(torch.float64).isfinite().all()
    assert quantized.data.float().abs().max() == 448


def test_fp8_keeps_bfloat16_scales_and_widens_them_exactly():
    scale = torch.tensor([[0.3]], dtype=torch.bfloat16)
    quantized = Fp8Weight(torch.full((2, 2), 3.0).to(E4M3), scale)
    assert quantized.scale_inv.dtype == torch.bfloat16
    assert torch.equal(quantized.dequantize(), torch.full((2, 2), 3 * float(scale)))


def test_fp8_activation_scales_each_group_of_a_row_on_its_own():
    x = torch.tensor([[448.0, 1.0, 0.448, 0.224, 0.0], [0.0, 0.0, -4.48, 4.48, 896.0]])
    codes, scale = quantize_fp8_activation(x, group=2)
    assert scale.shape == (2, 3)
    assert scale[0, 2] == 1  # a group of zeros
    assert scale[1, 0] == 1
    assert torch.allclose(scale, torch.tensor([[1.0, 1e-3, 1.0], [1.0, 1e-2, 2.0]]), rtol=1e-6)
    assert codes.float().tolist() == [[448, 1, 448, 224, 0], [0, 0, -448, 448, 448]]
    assert torch.allclose(dequantize_fp8_activation(codes, scale, group=2), x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(300,), (3, 300), (2, 0, 300), (2, 3, 128)])
def test_fp8_activation_of_one_row_at_a_time_equals_the_whole(shape):
    x = gaussian(shape, seed=2)
    codes, scale = quantize_fp8_activation(x)
    assert codes.shape == shape
    assert scale.shape == (*shape[:-1], math.ceil(shape[-1] / 128))
    for index in itertools.product(*map(range, shape[:-1])):
        row_codes, row_scale = quantize_fp8_activation(x[index])
        assert torch.equal(row_codes.view(torch.uint8), codes[index].view(torch.uint8))
        assert torch.equal(row_scale, scale[index])


def test_fp8_activation_equals_a_weight_in_blocks_of_one_output():
    x = gaussian((5, 300), seed=3).bfloat16()
    codes, scale = quantize_fp8_activation(x)
    weight = quantize_fp8_weight(x, (1, 128))
    assert torch.equal(codes.view(torch.uint8), weight.data.view(torch.uint8))
    assert torch.equal(scale, weight.scale_inv)
    assert torch.equal(dequantize_fp8_activation(codes, scale), weight.dequantize())


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_fp8_activation_poison_fills_its_group_and_no_other(poison):
    x = gaussian((2, 8), seed=4)
    x[1, 5] = poison
    back = dequantize_fp8_activation(*quantize_fp8_activation(x, group=4), group=4)
    assert back[1, 4:].isnan().all()
    assert back[0].isfinite().all()
    assert back[1, :4].isfinite().all()


def test_int4_puts_the_extreme_at_minus_eight_with_the_sign_in_the_scale():
    weight = torch.tensor([[-8.0, 7.0, 0.0, 3.0], [8.0, -7.0, 0.0, -3.0], [2.0, -2.0, 0.125, 0.375]])
    quantized = quantize_int4_weight(weight, group=4)
    assert quantized.scale.tolist() == [[1.0], [-1.0], [0.25]]
    codes = [[0, 15, 8, 11], [0, 15, 8, 11], [15, 0, 8, 10]]  # a tie to even both ways; 2.0 is cut to 7 steps
    assert unpack_int4(quantized.data).tolist() == codes
    assert quantized.data.tolist() == [[0xF0, 0xB8], [0xF0, 0xB8], [0x0F, 0xA8]]
    assert quantized.dequantize()[2].tolist() == [1.75, -2.0, 0.0, 0.5]


@quick
@given(seed=seeds, lead=leading, pairs=st.integers(0, 9))
def test_int4_packing_round_trips_every_code(seed, lead, pairs):
    codes = random_bytes((*lead, 2 * pairs), seed, below=16)
    assert torch.equal(unpack_int4(pack_int4(codes)), codes)
    packed = random_bytes((*lead, pairs), seed, below=256)
    assert torch.equal(pack_int4(unpack_int4(packed)), packed)


@quick
@given(seed=seeds, lead=leading, bits=st.integers(0x0400, 0x7BFF), sign=st.sampled_from([-1.0, 1.0]))
def test_int4_round_trip_of_representable_values_is_bit_exact(seed, lead, bits, sign):
    """Any normal float16 scale of either sign; each group holds code 0, as do those this quantiser makes."""
    codes = random_bytes((*lead, 3, 10), seed, below=16)
    codes[..., ::4] = 0
    magnitude = torch.tensor(bits, dtype=torch.int16).view(torch.float16)
    original = Int4Weight(pack_int4(codes), (magnitude * sign).expand(*lead, 3, 3).contiguous(), group=4)
    again = quantize_int4_weight(original.dequantize(), group=4)
    assert torch.equal(again.data, original.data)
    assert torch.equal(again.scale, original.scale)


@quick
@given(seed=seeds, lead=leading, pairs=st.integers(1, 6), amplitude=amplitudes)
def test_int4_error_is_within_half_a_step_except_where_the_far_side_is_cut(seed, lead, pairs, amplitude):
    weight = gaussian((*lead, 5, 2 * pairs), seed, amplitude)
    quantized = quantize_int4_weight(weight, group=4)
    scale = spread(quantized.scale, (1, 4), quantized.shape)
    steps = weight.double() / scale
    cut = steps > 7.5
    error = (quantized.dequantize(torch.float64) - weight.double()).abs() / scale.abs()
    assert (error[~cut] <= 0.5 + 1e-6).all()
    assert (unpack_int4(quantized.data)[cut] == 15).all()
    assert (steps.abs() <= 8).all()


def test_int4_scales_belong_to_an_output_and_a_group_of_inputs():
    amplitude = torch.tensor([[1.0, 1e3, 1e-3], [1e-2, 10.0, 1e2]])
    weight = -amplitude.repeat_interleave(4, 1)
    quantized = quantize_int4_weight(weight, group=4)
    assert torch.allclose(quantized.scale.float(), amplitude / 8, rtol=2**-10)
    assert torch.allclose(quantized.dequantize(), weight, rtol=2**-10, atol=0)


def test_gptq_words_hold_eight_inputs_lowest_first_and_zero_points_of_eight_less_one():
    """Against a decoder written from AutoRound's file layout alone, element by element."""
    weight = quantize_int4_weight(gaussian((16, 24), seed=5), group=8)
    qweight, scales, qzeros = weight.to_gptq()
    assert (qweight.shape, scales.shape, qzeros.shape) == ((3, 16), (3, 16), (3, 2))
    assert qweight.dtype == qzeros.dtype == torch.int32
    want = weight.dequantize()
    for o in range(16):
        for i in range(24):
            code = int(qweight[i // 8, o]) >> 4 * (i % 8) & 0xF
            zero = (int(qzeros[i // 8, o // 8]) >> 4 * (o % 8) & 0xF) + 1
            assert (code - zero) * float(scales[i // 8, o]) == want[o, i]


@pytest.mark.parametrize("lead", [(), (3,)])
def test_gptq_round_trip_is_bit_exact(lead):
    weight = quantize_int4_weight(gaussian((*lead, 16, 256), seed=6))
    again = Int4Weight.from_gptq(*weight.to_gptq())
    assert torch.equal(again.data, weight.data)
    assert torch.equal(again.scale, weight.scale)
    assert again.group == 128


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_of_zeros_stay_exact_beside_others_under_a_scale_of_one(name):
    weight = gaussian((256, 256), seed=7)
    weight[:128, 128:] = 0
    quantized = FORMATS[name].quantize(weight)
    back, zero_scales = quantized.dequantize(), scales_of(quantized)[: 128 // FORMATS[name].block[0], 1]
    assert (back[:128, 128:] == 0).all()
    assert (zero_scales == 1).all()
    assert back.isfinite().all()
    assert back[:128, :128].any()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_indexing_equals_slicing_of_the_dequantised_whole(name, lead):
    quantized = FORMATS[name].quantize(gaussian((*lead, 130, 260), seed=8))
    for index in range(lead[0]):
        assert torch.equal(quantized[index].dequantize(), quantized.dequantize()[index])
        assert quantized[index].shape == quantized.shape[1:]
    one = quantized[1].data
    assert one.untyped_storage().data_ptr() == quantized.data.untyped_storage().data_ptr()  # no copy


@pytest.mark.parametrize("name", FORMATS)
def test_dequantize_is_exact_in_float64_and_rounds_the_wide_product_once(name):
    quantized = FORMATS[name].quantize(gaussian((130, 130), seed=9))
    codes = quantized.data if name == "fp8" else unpack_int4(quantized.data).double() - 8
    exact = codes.double() * spread(scales_of(quantized), FORMATS[name].block, quantized.shape)
    assert torch.equal(quantized.dequantize(torch.float64), exact)
    assert torch.equal(quantized.dequantize(), exact.float())
    assert torch.equal(quantized.dequantize(torch.bfloat16), exact.float().bfloat16())


@pytest.mark.parametrize("name", FORMATS)
def test_dense_takes_a_weight_quantised_or_not(name):
    quantized = FORMATS[name].quantize(gaussian((130, 130), seed=9))
    assert torch.equal(dense(quantized, torch.float64), quantized.dequantize(torch.float64))
    assert torch.equal(dense(quantized.dequantize(), torch.bfloat16), quantized.dequantize(torch.bfloat16))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(1, 2), (128, 128), (129, 130), (3, 127, 256), (2, 3, 1, 130), (0, 128, 128)])
def test_nbytes_equals_weight_bytes(name, shape):
    quantized = FORMATS[name].quantize(gaussian(shape, seed=10))
    assert quantized.nbytes == weight_bytes(name, shape)
    assert tuple(quantized.shape) == shape


@pytest.mark.parametrize(("name", "bits"), [("fp8", 8.001953125), ("int4", 4.125)])
def test_bits_per_weight_of_whole_blocks(name, bits):
    assert FORMATS[name].bits_per_weight == bits
    for size in (128, 256, 1280, 4096):
        assert weight_bytes(name, (128, size)) * 8 == bits * 128 * size


@pytest.mark.parametrize(
    ("name", "mtp_parameters", "published_gb"),
    [("fp8", 2_428_171_008, 208.56), ("int4", 0, 111.5)],  # with MTP, and without
)
def test_weight_bytes_reproduce_the_size_of_the_checkpoint(name, mtp_parameters, published_gb):
    """All parameters but the routed experts in bfloat16, and the 42 * 288 router biases in float32."""
    backbone, routed = 196_956_130_368, 190_253_629_440
    rest_bytes = 2 * (backbone - routed + mtp_parameters) + 2 * 42 * 288
    projections = 2 * weight_bytes(name, (288, 1280, 4096)) + weight_bytes(name, (288, 4096, 1280))
    assert round((rest_bytes + 42 * projections) / 1e9, 2) == pytest.approx(published_gb, abs=0.005)


def test_quantization_error_of_a_hand_made_weight():
    weight = torch.tensor([[[-8.0, 3.5], [0.0, 0.0]], [[-16.0, 8.0], [0.0, 0.0]]])
    error = quantization_error(weight, quantize_int4_weight(weight, group=2))
    relative_rms = math.sqrt(0.25 / (64 + 12.25 + 256 + 64))  # only 3.5 is off its grid, by half a step of 1
    assert error.relative_rms == pytest.approx(relative_rms)
    assert error.max_relative_to_block_amax == 0.5 / 8
    assert error.snr_db == pytest.approx(-20 * math.log10(relative_rms))
    assert error.bits_per_weight == 4 + 16 / 2


def test_quantization_error_of_a_lossless_weight_is_zero():
    error = quantization_error(torch.zeros(2, 4), quantize_int4_weight(torch.zeros(2, 4)))
    assert (error.relative_rms, error.max_relative_to_block_amax, error.snr_db) == (0.0, 0.0, math.inf)


def test_quantization_error_of_something_where_there_was_nothing_is_infinite():
    error = quantization_error(torch.zeros(2, 4), quantize_int4_weight(torch.ones(2, 4)))
    assert (error.relative_rms, error.max_relative_to_block_amax, error.snr_db) == (
        math.inf,
        math.inf,
        -math.inf,
    )


def one_in_a_thousand_loud(seed: int) -> Tensor:
    loud = torch.rand(1024, 1024, generator=torch.Generator().manual_seed(seed)) < 1e-3
    return torch.where(loud, 20.0, 1.0) * gaussian((1024, 1024), seed + 1, 0.02)


@pytest.mark.parametrize(
    ("name", "weight", "snr_db"),
    [
        ("int4", gaussian((1024, 1024), 11, 0.02), 19.7),
        ("int4", one_in_a_thousand_loud(12), 14.4),
        ("fp8", gaussian((1024, 1024), 11, 0.02), 31.6),
    ],
)
def test_signal_to_noise_is_what_the_module_says(name, weight, snr_db):
    weight = weight.bfloat16()
    assert quantization_error(weight, FORMATS[name].quantize(weight)).snr_db == pytest.approx(snr_db, abs=0.3)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_weight_with_nan_or_infinity_is_refused_and_located(name, poison):
    weight = gaussian((2, 128, 256), seed=14)
    weight[1, 0, 200] = poison
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 of \d+ blocks, first in block \(1, 0, 1\)"):
        FORMATS[name].quantize(weight)


CODES, SCALE = torch.ones(256, 384).to(E4M3), torch.ones(2, 3)
GPTQ = quantize_int4_weight(gaussian((16, 24), seed=15), group=8).to_gptq()


@pytest.mark.parametrize("format", ["fp8", "int4"])
@pytest.mark.parametrize("shape", [(5, 130, 200), (300, 200)])
def test_a_part_at_a_time_gives_the_codes_and_scales_of_the_whole(monkeypatch, format, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr("reference.quantization.QUANTIZED_AT_ONCE", 2 * 130 * 200)
    got, want = quantize_stack(format, weight, "cpu"), FORMATS[format].quantize(weight)
    assert torch.equal(got.data.view(torch.uint8), want.data.view(torch.uint8))
    assert torch.equal(got.dequantize(), want.dequantize())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Fp8Weight(CODES, SCALE.T), r"scale_inv: shape is \(3, 2\); want \(2, 3\)"),
        (lambda: Fp8Weight(CODES.float(), SCALE), r"data: dtype is torch.float32; want torch.float8_e4m3fn"),
        (lambda: Fp8Weight(CODES, SCALE.double()), r"scale_inv: dtype is torch.float64"),
        (lambda: Fp8Weight(CODES, SCALE, (0, 128)), r"block: is \(0, 128\)"),
        (lambda: Fp8Weight(CODES, SCALE)[0], r"want a leading dimension"),
        (lambda: quantize_fp8_weight(torch.ones(4)), r"shape is \(4,\); want at least two dimensions"),
        (lambda: quantize_fp8_activation(torch.tensor(1.0)), r"x is a scalar"),
        (lambda: dequantize_fp8_activation(CODES, SCALE), r"scale: shape is \(2, 3\); want \(256, 3\)"),
        (lambda: quantize_int4_weight(torch.ones(2, 3)), r"want even inputs"),
        (lambda: quantize_int4_weight(torch.ones(2, 6), group=3), r"an even group"),
        (
            lambda: quantize_int4_weight(torch.full((2, 2), 6e5)),
            r"reaches 600000; want magnitudes up to 524032",
        ),
        (lambda: Int4Weight(CODES.view(torch.uint8), SCALE), r"scale: shape is \(2, 3\); want \(256, 6\)"),
        (lambda: quantize_int4_weight(torch.ones(4, 4))[0], r"want a leading dimension"),
        (lambda: quantize_int4_weight(torch.ones(4, 8)).to_gptq(), r"multiples of 8"),
        (
            lambda: Int4Weight.from_gptq(GPTQ[0], GPTQ[1], GPTQ[2] + 1),
            r"qzeros holds 0x77777778; want 0x77777777",
        ),
        (lambda: Int4Weight.from_gptq(GPTQ[0], GPTQ[1].T, GPTQ[2]), r"24 inputs in 16 groups"),
        (lambda: weight_bytes("int3", (128, 128)), r"format is 'int3'; want one of 'fp8', 'int4'"),
        (lambda: weight_bytes("int4", (128, 127)), r"not whole bytes"),
        (lambda: weight_bytes("fp8", (128,)), r"shape is \(128,\)"),
        (
            lambda: quantization_error(torch.ones(2, 2), quantize_fp8_weight(torch.ones(2, 3))),
            r"want \(2, 2\)",
        ),
        (
            lambda: quantization_error(torch.ones(0, 2), quantize_fp8_weight(torch.ones(0, 2))),
            r"at least one",
        ),
    ],
)
def test_misuse_is_refused_with_what_is_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
