"""Dynamic FP8 activations: e4m3 codes and a float32 scale for each 128 neighbours of a row.

Source: DeepGEMM and vLLM per_token_group_quant_fp8; published FP8 config.json, activation_scheme dynamic.
"""

from torch import Tensor

from ..quantization import quantize_fp8_activation


def quantize_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the largest magnitude of each group to 448 and round to e4m3, ties to even.

        scale[t, g] = max_i |x[t, 128 g + i]| / 448;  codes[t, i] = e4m3(x[t, i] / scale[t, i // 128])

    A group of zeros gets scale 1. The last group may be short.

    Args:
        x: [T, D].

    Returns:
        codes [T, D] float8_e4m3fn and scale [T, ceil(D / 128)] float32.
    """
    return quantize_fp8_activation(x)
