"""The wrong models of the catalogue, in float64: what a residual is compared with to say where a fault lies."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from reference.config import ModelConfig
from reference.model import Model, Weights
from reference.operators import Operators
from reference.quantization import Fp8Weight, Int4Weight, QuantizedWeight

from ..profiles import PROFILES
from .catalogue import FAULTS, Fault

AFTER_THE_LOGITS = ("sampling", "draw", "accept_draft")
STORED_AS = {"fp8": Fp8Weight, "int4": Int4Weight}
NO_LOGITS = ("STOP-1", "LIMIT-1")  # clauses of what ends a generation
ONLY_INSIDE = {"swiglu": ("mlp", "experts", "experts_fp8"), "quantize_activation": ("experts_fp8",)}  # rows of rows


class Suspect(NamedTuple):
    """A model with one thing wrong.

    Attributes:
        fault: its name in the catalogue.
        component: what is wrong: a row of ``reference/ops``, or a part around the operators.
        model: the wrong model.
    """

    fault: str
    component: str
    model: Model


def wrong_models(
    config: ModelConfig, weights: Weights, dtype: torch.dtype = torch.float64, ops: Operators | None = None
) -> Iterator[Suspect]:
    """Build each fault that a ``Model`` can have, one after the other.

    Left out: faults of sampling, acceptance and the end of a generation, which change no logits; of sessions,
    generation and loading, which no model shows; and of a quantised format that the experts of ``weights`` are not in.
    The same fault in narrower arithmetic, or judged by another check, comes once. MTP faults change nothing but the MTP
    layers' outputs; faults of caches, positions and chunks nothing but a context that comes in pieces.

    Args:
        config, weights: the right ones.
        dtype: of activations and caches.
        ops: the right operators (default: the reference's).
    """
    right, stored = Model(config, weights, dtype, ops=ops), stored_format(config, weights)
    seen = set()
    for fault in FAULTS.values():
        content = fault.content[1:]  # whatever the profile
        if content in seen or not is_of_a_model(fault) or PROFILES[fault.profile].expert_weights not in (None, stored):
            continue
        seen.add(content)
        yield Suspect(fault.name, fault.component, changed(fault, right))


def is_of_a_model(fault: Fault) -> bool:
    """Whether a ``Model`` can have this fault, and its logits or MTP logits show it."""
    return fault.changes_a_model and fault.row not in AFTER_THE_LOGITS and fault.clause not in NO_LOGITS


def changed(fault: Fault, model: Model) -> Model:
    """A model like the given one with this fault."""
    ops = replace(fault, within=fault.within or ONLY_INSIDE.get(fault.row or "", ())).operators(model.ops)
    if model.ops.experts is model.ops.experts_fp8:  # a model on FP8 activations
        ops = replace(ops, experts=ops.experts_fp8)
    return fault.of_model(Model(model.config, model.weights, model.dtype, model.device, ops))


def stored_format(config: ModelConfig, weights: Weights) -> str | None:
    """How the routed experts are stored: a key of STORED_AS, or None."""
    moe = next((layer for layer in config.layers if layer.is_moe), None)
    if moe is None:
        return None
    weight: torch.Tensor | QuantizedWeight = weights.layer(moe.index)["moe.gate_proj.weight"]
    return next((name for name, kind in STORED_AS.items() if isinstance(weight, kind)), None)
