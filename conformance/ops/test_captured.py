"""Checks of every row on the inputs that it gets when the miniature reads real text, layer by layer."""

from collections.abc import Callable

import pytest
import torch

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact, legal
from ..profiles import PROFILES
from ..tolerance import DotBound, Envelope, bit_exact, gamma, near_tie, within
from ..under_test import UnderTest
from . import test_attention, test_head_gate, test_rms_norm, test_rope, test_router, test_swiglu
from .captured import Call, Inputs, captured

FP8 = PROFILES["fp8"]
Judge = Callable[[UnderTest, Inputs, Counters, str], None]


def embedding(engine: UnderTest, inputs: Inputs, counters: Counters, where: str) -> None:
    ids, table = inputs
    counters.add("tokens", len(ids))
    bit_exact(engine.op("embedding")(ids, table), table[ids], counters, where)


def rms_norm(engine: UnderTest, inputs: Inputs, counters: Counters, where: str) -> None:
    x, weight, _ = inputs
    counters.add("weights_that_are_not_zero", int((weight != 0).sum()))
    got = engine.op("rms_norm")(*inputs)
    test_rms_norm.tolerance(x.shape[-1]).check(got, exact("rms_norm", *inputs), counters, where)


def qk_norm(engine: UnderTest, inputs: Inputs, counters: Counters, where: str) -> None:
    tolerance = test_rms_norm.tolerance(inputs[0].shape[-1])
    counters.add("weights_that_differ_between_q_and_k", int((inputs[2] != inputs[3]).sum()))
    for name, got, want in zip("qk", engine.op("qk_norm")(*inputs), exact("qk_norm", *inputs), strict=True):
        tolerance.check(got, want, counters, f"{where}, {name}")


def rope(engine: UnderTest, inputs: Inputs, counters: Counters, where: str) -> None:
    x, positions, frequencies = inputs
    got = engine.op("rope")(*inputs)
    bound = test_rope.rotation_bound(x, positions, frequencies, got.dtype, engine.profile)
    counters.add("positions_above_0", int((positions > 0).sum()))
    within(got, exact("rope", *inputs), bound, test_rope.rotation_rule(engine.profile), counters, where)


def attention(engine: UnderTest, inputs: Inputs, counters: Counters, where: str) -> None:
    want = exact("attention", *inputs)
    counters.add("queries", len(want))
    test_attention.check(engine, engine.op("attention")(*inputs), inputs, want, counters, where)


def head_gate(engine: UnderTest, inputs: Inputs, counters: Counters, where: str) -> None:
    gate = inputs[1].double().sigmoid()
    counters.add("gates_that_are_neither_open_nor_shut", int(((gate > 0.01) & (gate < 0.99)).sum()))
    got, want = engine.op("head_gate")(*inputs), exact("head_gate", *inputs)
    test_head_gate.TOLERANCE.check(got, want, counters, where, inputs[1][..., None])


def linear(engine: UnderTest, inputs: Inputs, counters: Counters, where: str) -> None:
    x, weight = inputs
    magnitude = exact("linear", x.abs(), weight.abs())
    counters.add("products", magnitude.numel())
    dot = DotBound(x.shape[-1], engine.profile.accumulate)
    dot.check(engine.op("linear")(*inputs), exact("linear", *inputs), magnitude, counters, where)


def swiglu(engine: UnderTest, inputs: Inputs, counters: Counters, where: str) -> None:
    """Of the gate and up projections inside ``mlp``, as the profile holds them."""
    x, gate_weight, up_weight, _, limit = inputs
    gate, up = (exact("linear", x, weight).to(x.dtype) for weight in (gate_weight, up_weight))
    counters.add("gates", gate.numel())
    got = engine.op("swiglu")(gate, up, limit)
    test_swiglu.TOLERANCE.check(got, exact("swiglu", gate, up, limit), counters, where, gate)


def router(engine: UnderTest, inputs: Inputs, counters: Counters, where: str) -> None:
    x, weight, bias, top_k, scaling = inputs
    ids, weights = engine.op("router")(*inputs)
    scores, errors = test_router.scores(x, weight), test_router.logit_errors(engine, x, weight)
    score_errors = errors / 4 + gamma(test_router.SIGMOID, engine.profile.accumulate)
    biased = scores + bias.double()
    counters.add("experts_chosen", len(ids.unique()))
    for token, chosen in enumerate(ids.tolist()):
        near_tie(set(chosen), biased[token], score_errors[token], top_k, counters, f"{where}, token {token}")
    chosen_scores = scores.gather(-1, ids)
    want = chosen_scores / chosen_scores.sum(dim=-1, keepdim=True) * scaling
    relative = (1 - chosen_scores) * errors.gather(-1, ids).expm1() + gamma(test_router.SIGMOID, torch.float32)
    bound = want * (relative + relative.amax(dim=-1, keepdim=True) + gamma(top_k + 3, torch.float32))
    within(weights, want, bound, "both errors of a quotient of sigmoids", counters, where)


def composite(row: str) -> Judge:
    """The judge of a row that is held to the envelope of legal evaluations."""

    def judge(engine: UnderTest, inputs: Inputs, counters: Counters, where: str) -> None:
        counters.add("rows", len(inputs[0]))
        envelope = Envelope(legal(row, engine.profile, *inputs), exact(row, *inputs))
        envelope.check(engine.op(row)(*inputs), counters, where)

    return judge


def experts_fp8(engine: UnderTest, inputs: Inputs, counters: Counters, where: str) -> None:
    counters.add("rows", len(inputs[0]))
    bounds = Envelope(
        legal("experts_fp8", FP8, *inputs), exact("experts_fp8", *inputs), ideal=exact("experts", *inputs)
    )
    bounds.check(engine.op("experts_fp8")(*inputs), counters, where)


# row: the clause that its judge reads, and the judge. The head's clause is that of any product.
ROWS: dict[str, tuple[str, Judge]] = {
    "embedding": ("EMB-1", embedding),
    "rms_norm": ("NORM-1", rms_norm),
    "qk_norm": ("QKN-1", qk_norm),
    "rope": ("ROPE-1", rope),
    "attention": ("ATT-4", attention),
    "head_gate": ("GATE-1", head_gate),
    "linear": ("LIN-1", linear),
    "swiglu": ("ACT-1", swiglu),
    "mlp": ("MLP-1", composite("mlp")),
    "router": ("ROUT-1", router),
    "experts": ("MOE-1", composite("experts")),
    "experts_fp8": ("MOE-5", experts_fp8),
    "mtp_input": ("MTP-1", composite("mtp_input")),
}
SLOW = ("experts_fp8",)  # and an engine of profile fp8 is shown the same inputs as ``experts``


def calls_of(engine: UnderTest, row: str) -> list[Call]:
    """What a row was given.

    swiglu is given what mlp makes of its inputs. A model runs one of the two rows of experts: experts_fp8 is judged in
    profile fp8, whatever the engine's, and experts on the same inputs if that is the engine's.
    """
    profile = FP8 if row == "experts_fp8" else engine.profile
    names = {"swiglu": ("mlp",), "experts": ("experts", "experts_fp8")}.get(row, (row,))
    return [call for call in captured(profile) if call.row in names]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[clause(id), *([pytest.mark.full] if row in SLOW else [])])
        for row, (id, _) in ROWS.items()
    ],
)
def test_a_row_is_right_on_what_it_is_given_while_reading_text(engine: UnderTest, counters: Counters, row: str) -> None:
    """Every call of every layer, MTP layers included."""
    engine.op(row)
    for number, call in enumerate(calls_of(engine, row)):
        layer = "outside of layers" if call.layer is None else f"layer {call.layer}"
        ROWS[row][1](engine, call.inputs, counters, f"call {number}, {layer}")
