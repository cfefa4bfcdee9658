"""The numbers that every clause rests on: the published config as the suite reads it. No engine is asked."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from reference.accounting import inspect, kv_cache_bytes
from reference.config import LayerConfig, ModelConfig
from reference.ops.rope import inverse_frequencies
from reference.ops.swiglu import swiglu

from ..clauses import clause
from ..counters import Counters
from ..tolerance import bit_exact, within

CONFIGS = Path(str(find_spec("reference").origin)).parent / "configs"  # type: ignore[union-attr]
BF16, FP8 = (CONFIGS / f"step_3_5_flash{name}.json" for name in ("", "_fp8"))
# Radians per token of rotated pairs of a full layer, to the digits they are published in (llama.cpp rope_freqs.weight).
FULL_FREQUENCIES = {14: 1.0301961e-3, 16: 2.8368644e-4, 20: 3.2891371e-5, 31: 1.6193578e-7}
DIGITS = 8  # that these have
LIMIT_7 = [(10, 3, 21), (10, -9, -49), (7.01, 1, 7.0)]  # gate, up, swiglu at limit 7


def equal(got: object, want: object, counters: Counters, what: str) -> None:
    """Compare whole numbers or names exactly."""
    same = torch.tensor([got == want])
    bit_exact(same, torch.ones_like(same), counters, f"{what} is {got}, want {want}: whether they are equal")


@clause("CONF-1")
def test_parameters_and_bytes_are_the_published_ones(counters: Counters) -> None:
    counts = inspect(ModelConfig.from_file(BF16))
    equal(counts["num_tensors"], 804, counters, "tensors")
    equal(counts["checkpoint_bytes"], 398_768_626_944, counters, "bytes of the bf16 checkpoint")
    equal(counts["parameters"]["backbone"], 196_956_130_368, counters, "parameters of the backbone")
    equal(counts["parameters"]["mtp"], 2_428_171_008, counters, "parameters of the MTP layers")
    equal(inspect(ModelConfig.from_file(FP8))["num_tensors"], 930, counters, "tensors of the FP8 checkpoint")


@clause("CONF-1")
def test_a_cached_token_costs_48_kibibytes_and_rings_66_mebibytes(counters: Counters) -> None:
    config = ModelConfig.from_file(BF16)
    grown = kv_cache_bytes(config, 131_072) - kv_cache_bytes(config, 131_071)
    equal(grown, 12 * 4096, counters, "bytes of one more token, in the 12 full layers")
    equal(kv_cache_bytes(config, 1), 45 * 4096, counters, "bytes of the first token, in all 45 layers")


@clause("CONF-1")
def test_layers_alternate_as_published(counters: Counters) -> None:
    config = ModelConfig.from_file(BF16)
    equal((len(config.layers), len(config.mtp_layers)), (45, 3), counters, "layers and MTP layers")

    def facts(layer: LayerConfig) -> tuple[object, ...]:
        heads = layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim
        return heads, layer.sliding_window, layer.rotary_dim, layer.rope_theta, layer.rope_scaling is not None

    for layer in (*config.layers, *config.mtp_layers):
        is_full = layer.index % 4 == 0 and layer.index < 45
        full, sliding = ((64, 8, 128), None, 64, 5e6, True), ((96, 8, 128), 512, 128, 1e4, False)
        equal(facts(layer), full if is_full else sliding, counters, f"layer {layer.index}")
        equal(layer.is_moe, 3 <= layer.index <= 44, counters, f"layer {layer.index}: whether it has experts")
        limits = layer.swiglu_limit, layer.swiglu_limit_shared
        want = {43: (7.0, 0.0), 44: (7.0, 16.0)}.get(layer.index, (0.0, 0.0))
        equal(limits, want, counters, f"layer {layer.index}: limits of routed and shared experts")
    counters.add("layers_with_a_limit", sum(layer.swiglu_limit > 0 for layer in config.layers))


@clause("CONF-1")
def test_experts_are_chosen_as_published(counters: Counters) -> None:
    layer = ModelConfig.from_file(BF16).layers[3]
    chosen = layer.num_experts, layer.num_experts_per_tok, layer.intermediate_size, layer.routed_scaling_factor
    equal(chosen, (288, 8, 1280, 3.0), counters, "experts, experts a token, width, scaling factor")
    equal(layer.rms_norm_eps, 1e-5, counters, "eps")


@clause("CONF-1")
def test_frequencies_of_full_layers_have_the_published_digits(counters: Counters) -> None:
    layer = ModelConfig.from_file(BF16).layers[0]
    frequencies = inverse_frequencies(layer.rotary_dim, layer.rope_theta, layer.rope_scaling)
    for pair, published in FULL_FREQUENCIES.items():
        want = torch.tensor([published], dtype=torch.float64)
        bound = want * 10.0 ** (1 - DIGITS) / 2
        within(frequencies[pair : pair + 1], want, bound, f"{DIGITS} published digits", counters, f"pair {pair}")


@clause("CONF-1")
@pytest.mark.parametrize(("gate", "up", "want"), LIMIT_7)
def test_the_clamp_follows_the_activation(counters: Counters, gate: float, up: float, want: float) -> None:
    """Where the gate is beyond its limit the product is exact; clamping first would give 6.99362 in the last."""
    got = swiglu(torch.tensor([gate], dtype=torch.float64), torch.tensor([up], dtype=torch.float64), 7.0)
    bit_exact(got, torch.tensor([want], dtype=torch.float64), counters, f"gate {gate}, up {up}, limit 7")
