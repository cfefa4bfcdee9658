"""Layers made of an engine's rows: right ones are right, a wrong or a missing row is seen and named."""

import pytest
import torch

from conformance.engine import find_engine
from perf.catalogue import all_cases
from perf.ops.layers import MOE_ROWS, ROWS, cost
from perf.shapes import published
from perf.small import small_cases
from perf.workload import Workload

CASES = small_cases(["layer"])
REFERENCE = dict(find_engine("reference").ops())
NARROW = dict(find_engine("reference-bf16").ops())


def test_there_is_a_layer_of_each_kind_at_the_published_shapes():
    kinds = {case.shape.split(" T=")[0] for case in all_cases() if case.op == "layer"}
    assert kinds == {"dense full", "dense sliding", "MoE full", "MoE sliding"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.shape)
def test_a_layer_of_right_rows_is_right_and_one_of_a_wrong_row_is_not(case):
    work = Workload(case, case.operator_of(NARROW), case.reference_of(REFERENCE), "cpu", 2)
    assert work.run_checked() is None
    assert work.run_checked(1) is None
    for row in ("linear", "head_gate", *(("experts",) if "MoE" in case.shape else ())):
        wrong = {**NARROW, row: lambda *args, right=NARROW[row]: -right(*args)}
        assert Workload(case, case.operator_of(wrong), case.reference_of(REFERENCE), "cpu", 2).run_checked() is not None


def test_rows_that_are_missing_are_named():
    with pytest.raises(LookupError, match="no linear, mlp"):
        CASES[0].operator_of({row: NARROW[row] for row in (*ROWS, *MOE_ROWS) if row not in ("linear", "mlp")})


def test_the_cost_is_of_what_one_token_reads():
    layer = next(layer for layer in published().model.layers if layer.is_moe and layer.sliding_window is None)
    far, near = cost(layer, 262_144), cost(layer, 4096)
    keys = 2 * layer.num_key_value_heads * layer.head_dim * torch.bfloat16.itemsize
    assert far.hbm_bytes - near.hbm_bytes == (262_144 - 4096) * keys
    experts = 3 * layer.num_experts_per_tok * layer.hidden_size * layer.intermediate_size * torch.bfloat16.itemsize
    assert experts < near.hbm_bytes < 2 * experts
