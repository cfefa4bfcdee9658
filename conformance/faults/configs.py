"""Wrong readings of config.json: functions from the right ``ModelConfig`` to what the engine makes of it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from reference.config import LayerConfig, ModelConfig

Edit = Callable[[ModelConfig], ModelConfig]


def layers_where(which: Callable[[LayerConfig], bool], **changes: Any) -> Edit:
    """Change fields of some layers, MTP layers included; a callable gets the layer."""

    def edit(config: ModelConfig) -> ModelConfig:
        return of_layers(config, lambda layer: _changed(layer, changes) if which(layer) else layer)

    return edit


def of_layers(config: ModelConfig, change: Callable[[LayerConfig], LayerConfig]) -> ModelConfig:
    return replace(config, layers=tuple(map(change, config.layers)), mtp_layers=tuple(map(change, config.mtp_layers)))


def _changed(layer: LayerConfig, changes: dict[str, Any]) -> LayerConfig:
    return replace(layer, **{name: value(layer) if callable(value) else value for name, value in changes.items()})


def is_full(layer: LayerConfig) -> bool:
    return layer.attention_type == "full_attention"


def is_sliding(layer: LayerConfig) -> bool:
    return layer.attention_type == "sliding_attention"


def is_moe(layer: LayerConfig) -> bool:
    return layer.is_moe


def any_layer(layer: LayerConfig) -> bool:
    return True


def is_clamped(layer: LayerConfig) -> bool:
    return layer.swiglu_limit > 0


def has_clamped_shared_expert(layer: LayerConfig) -> bool:
    return layer.swiglu_limit_shared > 0


def _first(config: ModelConfig, which: Callable[[LayerConfig], bool]) -> LayerConfig:
    return next(layer for layer in config.layers if which(layer))


def _of_an_entry(*names: str, later: int | None) -> Edit:
    """Entries of per-layer lists are taken ``later`` places on; None: as if the list ended with the backbone."""

    def edit(config: ModelConfig) -> ModelConfig:
        entries = config.layers + config.mtp_layers
        shift = len(config.mtp_layers) if later is None else later

        def changed(layer: LayerConfig) -> LayerConfig:
            other = entries[max(min(layer.index + shift, len(entries) - 1), 0)]
            return replace(layer, **{name: getattr(other, name) for name in names})

        return replace(config, layers=tuple(map(changed, config.layers)))

    return edit


# Sliding window
window_one_fewer = layers_where(is_sliding, sliding_window=lambda layer: layer.sliding_window - 1)
window_one_more = layers_where(is_sliding, sliding_window=lambda layer: layer.sliding_window + 1)
window_of_a_quarter = layers_where(is_sliding, sliding_window=lambda layer: layer.sliding_window // 4)
window_never = layers_where(is_sliding, sliding_window=None)


def window_on_full_layers(config: ModelConfig) -> ModelConfig:
    return layers_where(is_full, sliding_window=_first(config, is_sliding).sliding_window)(config)


# Which list entry belongs to which layer
attention_of_the_next_layer = _of_an_entry("sliding_window", "rope_theta", "rotary_dim", "rope_scaling", later=1)
windows_counted_from_the_end = _of_an_entry("sliding_window", later=None)
thetas_counted_from_the_end = _of_an_entry("rope_theta", later=None)
fractions_counted_from_the_end = _of_an_entry("rotary_dim", later=None)
limits_counted_from_the_end = _of_an_entry("swiglu_limit", later=None)
shared_limits_counted_from_the_end = _of_an_entry("swiglu_limit_shared", later=None)
limits_one_layer_early = _of_an_entry("swiglu_limit", later=1)
limits_one_layer_late = _of_an_entry("swiglu_limit", later=-1)
shared_limits_one_layer_early = _of_an_entry("swiglu_limit_shared", later=1)

# Rotation
theta_10000 = layers_where(is_full, rope_theta=1e4)
theta_5000000 = layers_where(is_sliding, rope_theta=5e6)
thetas_swapped = layers_where(any_layer, rope_theta=lambda layer: 1e4 if is_full(layer) else 5e6)
rotary_all = layers_where(is_full, rotary_dim=lambda layer: layer.head_dim)
rotary_half = layers_where(is_sliding, rotary_dim=lambda layer: layer.head_dim // 2)
scaling_off = layers_where(is_full, rope_scaling=None)
scaling_factor_4 = layers_where(is_full, rope_scaling=lambda layer: replace(layer.rope_scaling, factor=4.0))
scaling_of_llama = layers_where(
    is_full, rope_scaling=lambda layer: replace(layer.rope_scaling, factor=8.0, high_freq_factor=4.0)
)
scaling_of_a_longer_context = layers_where(
    is_full,
    rope_scaling=lambda layer: replace(
        layer.rope_scaling,
        original_max_position_embeddings=2 * layer.rope_scaling.original_max_position_embeddings,
    ),
)


def scaling_everywhere(config: ModelConfig) -> ModelConfig:
    return layers_where(is_sliding, rope_scaling=_first(config, is_full).rope_scaling)(config)


# Norms
def eps_1e_6(config: ModelConfig) -> ModelConfig:
    return replace(layers_where(any_layer, rms_norm_eps=1e-6)(config), rms_norm_eps=1e-6)


# Router
seven_experts = layers_where(is_moe, num_experts_per_tok=lambda layer: layer.num_experts_per_tok - 1)
nine_experts = layers_where(is_moe, num_experts_per_tok=lambda layer: layer.num_experts_per_tok + 1)
factor_1 = layers_where(is_moe, routed_scaling_factor=1.0)
factor_2_5 = layers_where(is_moe, routed_scaling_factor=2.5)
factor_twice = layers_where(is_moe, routed_scaling_factor=lambda layer: layer.routed_scaling_factor**2)

# Clamps
routed_clamp_off = layers_where(any_layer, swiglu_limit=0.0)
routed_clamp_16 = layers_where(is_clamped, swiglu_limit=16.0)
routed_clamp_everywhere = layers_where(is_moe, swiglu_limit=7.0)
shared_clamp_off = layers_where(any_layer, swiglu_limit_shared=0.0)
shared_clamp_7 = layers_where(has_clamped_shared_expert, swiglu_limit_shared=7.0)
shared_clamp_on_both = layers_where(is_clamped, swiglu_limit_shared=16.0)
shared_clamp_falls_back = layers_where(
    is_clamped, swiglu_limit_shared=lambda layer: layer.swiglu_limit_shared or layer.swiglu_limit
)
clamps_swapped = layers_where(
    is_moe,
    swiglu_limit=lambda layer: layer.swiglu_limit_shared,
    swiglu_limit_shared=lambda layer: layer.swiglu_limit,
)


def routed_clamp_off_in_the_last_layer(config: ModelConfig) -> ModelConfig:
    last = config.num_hidden_layers - 1
    return layers_where(lambda layer: layer.index == last, swiglu_limit=0.0)(config)


def routed_clamp_in_the_last_layer_only(config: ModelConfig) -> ModelConfig:
    last = config.num_hidden_layers - 1
    return layers_where(lambda layer: layer.index != last, swiglu_limit=0.0)(config)


# MTP layers
def _of_mtp_layers(change: Callable[[LayerConfig, ModelConfig], LayerConfig]) -> Edit:
    def edit(config: ModelConfig) -> ModelConfig:
        return replace(config, mtp_layers=tuple(change(layer, config) for layer in config.mtp_layers))

    return edit


def _as_full(layer: LayerConfig, config: ModelConfig) -> LayerConfig:
    full = _first(config, is_full)
    names = ("sliding_window", "rope_theta", "rotary_dim", "rope_scaling")
    return replace(layer, **{name: getattr(full, name) for name in names})


def _alone_after_the_first(layer: LayerConfig, config: ModelConfig) -> LayerConfig:
    return layer if layer.index == config.num_hidden_layers else replace(layer, sliding_window=1)


def _one_fewer(layer: LayerConfig, config: ModelConfig) -> LayerConfig:
    return layer if layer.sliding_window is None else replace(layer, sliding_window=layer.sliding_window - 1)


mtp_like_full_layers = _of_mtp_layers(_as_full)
mtp_theta_of_full_layers = _of_mtp_layers(lambda layer, config: replace(layer, rope_theta=5e6))
mtp_scaled = _of_mtp_layers(lambda layer, config: replace(layer, rope_scaling=_first(config, is_full).rope_scaling))
mtp_newest_row_only = _of_mtp_layers(_alone_after_the_first)
mtp_window_one_fewer = _of_mtp_layers(_one_fewer)
mtp_clamped = _of_mtp_layers(lambda layer, config: replace(layer, swiglu_limit_shared=1.0))
mtp_eps_1e_6 = _of_mtp_layers(lambda layer, config: replace(layer, rms_norm_eps=1e-6))


def mtp_layers_all_the_first(config: ModelConfig) -> ModelConfig:
    """Settings of the first MTP layer for all of them; indices stay."""
    first = config.mtp_layers[0]
    return replace(config, mtp_layers=tuple(replace(first, index=layer.index) for layer in config.mtp_layers))


# End tokens and the length of a context
def no_end_tokens(config: ModelConfig) -> ModelConfig:
    return replace(config, eos_token_ids=())


def first_end_token_only(config: ModelConfig) -> ModelConfig:
    return replace(config, eos_token_ids=config.eos_token_ids[:1])


def last_end_token_only(config: ModelConfig) -> ModelConfig:
    return replace(config, eos_token_ids=config.eos_token_ids[-1:])


def context_one_shorter(config: ModelConfig) -> ModelConfig:
    return replace(config, max_position_embeddings=config.max_position_embeddings - 1)


def context_one_longer(config: ModelConfig) -> ModelConfig:
    return replace(config, max_position_embeddings=config.max_position_embeddings + 1)


def context_before_scaling(config: ModelConfig) -> ModelConfig:
    """The length that positions were scaled from."""
    scaling = _first(config, is_full).rope_scaling
    half = config.max_position_embeddings // 2
    original = half if scaling is None else scaling.original_max_position_embeddings
    return replace(config, max_position_embeddings=min(original, half))


def window_of_the_whole_context(config: ModelConfig) -> ModelConfig:
    """Full layers get a window that nothing lies beyond."""
    return layers_where(is_full, sliding_window=config.max_position_embeddings)(config)
