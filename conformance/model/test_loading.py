"""Checks of loading: every tensor is used, and where it lies in the files does not matter."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reference.checkpoint import expected_tensors
from reference.config import ModelConfig
from reference.model import Model
from reference.synthetic import random_tensor

from ..clauses import clause
from ..counters import Counters
from ..guard import GuardedModel
from ..oracle import OracleModel
from ..profiles import Profile
from ..tolerance import ENVELOPE_FACTOR, bit_exact, within
from ..under_test import UnderTest
from . import tiny
from .contexts import check_logits, random_tokens
from .loading import Load
from .refusal import check_refused
from .test_drafts import draft_logits_of

CONTEXT = 40  # tokens; past the window
LOUDER = 16  # times, norms and biases: those of a random checkpoint hardly matter
TINY = ModelConfig.from_dict(tiny.TINY)
SHARD_COUNTS = (3, 7)
SPREAD = 10  # times, biases of routers: choices that rounding turns over would hide what a tensor moves
PARTS = {  # by how names begin after the layer's number
    "norms": ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"),
    "attention": ("self_attn",),
    "dense feed-forward": ("mlp",),
    "router": ("moe.gate.", "moe.router_bias"),
    "routed experts": ("moe",),
    "shared expert": ("share_expert",),
    "input": ("enorm", "hnorm", "eh_proj"),
    "head": ("transformer",),
}


@dataclass(frozen=True)
class Outputs:
    """What a loaded model says of one context: logits, and logits of every MTP depth."""

    logits: Tensor
    drafts: list[Tensor]

    def of(self, depth: int | None) -> Tensor:
        """[rows, V]: everything that a tensor of this MTP depth reaches; None: a tensor of the backbone."""
        return torch.cat([self.logits] if depth is None else self.drafts[depth:]).double()


def outputs_of(model: Model, tokens: list[int]) -> Outputs:
    with torch.inference_mode():
        return Outputs(model.logits(model.hidden(torch.tensor(tokens))), draft_logits_of(model, tokens))


def engine_outputs(model: GuardedModel, tokens: list[int], depth: int | None) -> Outputs:
    """Of the engine; drafts only where they are asked for."""
    drafts = [] if depth is None else model.draft_logits(tokens)
    return Outputs(model.new_session().extend(tokens), drafts)


def _part(name: str) -> str:
    """The part of the model that a tensor belongs to."""
    if not name.startswith("model.layers."):
        return "embedding, final norm and head"
    kind = name.split(".", 3)[3]
    part = next(part for part, starts in PARTS.items() if kind.startswith(starts))
    return part if _depth(name) is None else f"{part} of MTP layers"


def _kind(name: str) -> str:
    """The name without its layer."""
    return name.split(".", 3)[3] if name.startswith("model.layers.") else name


def _depth(name: str) -> int | None:
    """The MTP depth that a tensor belongs to."""
    layer = int(name.split(".")[2]) if name.startswith("model.layers.") else 0
    return layer - TINY.num_hidden_layers if layer >= TINY.num_hidden_layers else None


def changed(tensors: dict[str, Tensor], fields: dict[str, Any], name: str, seed: int) -> dict[str, Tensor]:
    """The same tensors but one, which is drawn anew; norms and biases louder, so that they matter."""
    spec = expected_tensors(ModelConfig.from_dict(fields))[name]
    values = random_tensor(name, spec, torch.Generator().manual_seed(seed + sum(name.encode())))
    if values.ndim == 1:
        values = LOUDER * values
    elif name.endswith("_scale_inv"):
        values = values * tensors[name]  # by a half and more, around what the codes were made for
    elif values.dtype == torch.float8_e4m3fn:
        values = tensors[name].flip(0)  # codes of the other experts: they fill the range
    return tensors | {name: values}


@cache
def _base(profile: Profile, seed: int, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], OracleModel]:
    """A random checkpoint, written once."""
    fields = tiny.fields_for(profile)
    tensors = tiny.random_weights(fields, seed)
    for name, tensor in tensors.items():
        if name.endswith("router_bias"):
            tensor *= SPREAD
    return fields, tensors, OracleModel(tiny.write(folder, fields, tensors), profile)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("base")


@clause("LOAD-1")
@pytest.mark.parametrize("part", dict.fromkeys(_part(name) for name in expected_tensors(TINY)))
def test_another_tensor_gives_another_model(
    engine: UnderTest, load: Load, folder: Path, tmp_path: Path, counters: Counters, seed: int, tier: str, part: str
) -> None:
    """Each tensor drawn anew moves the output as it moves the oracle's: 0 would be not loaded, 1 is loaded.

    Where experts are stored in FP8, their scales are tensors of their own.
    """
    fields, tensors, oracle = _base(engine.profile, seed, folder)
    names = [name for name in tensors if _part(name) == part]
    if tier == "quick":  # of each kind, that of one layer
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
        names = list({_kind(names[place]): names[place] for place in order}.values())
    tokens = random_tokens(oracle.config, CONTEXT, seed)
    engine_before = engine_outputs(load(folder), tokens, _depth(names[0]))
    exact_before, legal_before = outputs_of(oracle.model, tokens), outputs_of(oracle.legal_models()[1], tokens)
    for number, name in enumerate(names):
        depth, other = _depth(name), tiny.write(tmp_path / str(number), fields, changed(tensors, fields, name, seed))
        other_oracle = OracleModel(other, engine.profile)
        moves = [
            outputs_of(model, tokens).of(depth) - before.of(depth)
            for model, before in ((other_oracle.model, exact_before), (other_oracle.legal_models()[1], legal_before))
        ]
        got = engine_outputs(load(other), tokens, depth)
        counters.add(f"{name}_would_show", bool(ENVELOPE_FACTOR * abs(share(moves[1], moves[0]) - 1) < 0.5))
        loaded = share(got.of(depth) - engine_before.of(depth), moves[0])
        rule = "half way between the old tensor and the new one"
        one, half = torch.ones(1, dtype=torch.float64), torch.tensor([0.5])
        within(loaded[None], one, half, rule, counters, f"share of the move that another {name} makes")


def share(move: Tensor, of: Tensor) -> Tensor:
    """How much of a move another one makes, in the median of the rows that move most.

    Where rounding turns over a router's choice, a row moves otherwise: few rows, and not the median.
    """
    sizes = of.square().sum(dim=-1)
    loud = sizes >= sizes.mean()
    return ((move * of).sum(dim=-1)[loud] / sizes[loud]).median()


@clause("LOAD-1")
@pytest.mark.parametrize("name", ["model.layers.2.moe.router_bias", "model.layers.7.enorm.weight", "lm_head.weight"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(
    engine: UnderTest, load: Load, folder: Path, tmp_path: Path, counters: Counters, seed: int, name: str
) -> None:
    """Zeros, random numbers or another tensor in its place would be another model."""
    fields, tensors, _ = _base(engine.profile, seed, folder)
    kept = [other for other in tensors if other != name]
    lacking = tiny.write_in_order(tmp_path, fields, tensors, kept)
    check_refused(lambda: load(lacking), counters, f"a checkpoint without {name}")


@clause("LOAD-1")
@pytest.mark.parametrize("name", ["model.layers.2.self_attn.q_proj.bias", "model.layers.1.moe.gate_proj.weight_scale"])
def test_a_checkpoint_with_a_tensor_that_nothing_takes_is_refused(
    engine: UnderTest, load: Load, folder: Path, tmp_path: Path, counters: Counters, seed: int, name: str
) -> None:
    """A bias or a scale that is passed over in silence is another model, too."""
    fields, tensors, _ = _base(engine.profile, seed, folder)
    more = tensors | {name: torch.ones(12, dtype=torch.bfloat16)}
    strange = tiny.write_in_order(tmp_path, fields, more, list(more))
    check_refused(lambda: load(strange), counters, f"a checkpoint with {name}")


@clause("LOAD-2")
@pytest.mark.parametrize("parts", SHARD_COUNTS)
def test_the_order_and_the_files_of_tensors_do_not_matter(
    engine: UnderTest, load: Load, folder: Path, tmp_path: Path, counters: Counters, seed: int, parts: int
) -> None:
    """Bit for bit, if the engine repeats itself bit for bit; else each within the envelope."""
    fields, tensors, oracle = _base(engine.profile, seed, folder)
    tokens = random_tokens(oracle.config, CONTEXT, seed)
    names = list(tensors)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed + parts)).tolist()
    shuffled = [names[place] for place in order]
    model = load(folder)
    want, again = (model.new_session().extend(tokens) for _ in range(2))
    check_logits(want, oracle, tokens, counters, "one file in the usual order")
    counters.add("tensors_out_of_order", sum(place != number for number, place in enumerate(order)))
    for name, other in (
        ("one file in another order", tiny.write_in_order(tmp_path / "order", fields, tensors, shuffled)),
        (
            f"{parts} files",
            tiny.write_sharded(tmp_path / "shards", fields, {name: tensors[name] for name in shuffled}, parts),
        ),
    ):
        got = load(other).new_session().extend(tokens)
        check_logits(got, oracle, tokens, counters, name)
        if torch.equal(want, again):
            bit_exact(got, want, counters, name)
