"""The comparison of rules: on a small layer it shows what the published table shows at the real shape."""

import pytest

from conformance.profiles import PROFILES
from conformance.rules import ALL_RULES, ROUTED, RULES, Shape, calc_diff, compare, nmse, relative_or_absolute, table

SMALL = Shape(tokens=12, hidden_size=256, intermediate_size=128, num_experts=12, top_k=4)


def test_the_rules_are_what_their_names_say() -> None:
    import torch

    want = torch.randn(64, 128).double()
    assert calc_diff(want, want)
    assert not calc_diff(1.1 * want, want)
    assert nmse(1.02 * want, want)
    assert not nmse(1.03 * want, want)  # 0.03 squared is 9e-4
    most = want.clone()
    most[:12] += 10  # 19 percent of the rows
    assert relative_or_absolute(0.85, 0.1, 0.80)(most, want)
    assert not relative_or_absolute(0.2, 0.1, 0.85)(most, want)


def test_no_rule_without_false_alarms_catches_more() -> None:
    result = compare(PROFILES["fp8"], SMALL, families=["randn", "saturating"])
    assert not result["objections"], "a right variant is rejected"
    assert len(result["faults"]) >= 35
    assert len(result["right"]) >= 4
    rows = {rule: [int(cell.partition("/")[0]) for cell in cells] for rule, *cells in table(result)}
    assert set(rows) == set(ALL_RULES)
    for rule in RULES:
        on_randn, anywhere, rejected = rows[rule]
        assert rejected > 0 or (on_randn <= rows[ROUTED][0] and anywhere <= rows[ROUTED][1]), rule
    assert rows["FlashInfer: 0.85 relative, 0.1 absolute, for 80 %"][0] < rows[ROUTED][0]


@pytest.mark.parametrize("family", ["all_negative", "mixed_rows"])
def test_every_family_can_be_judged(family: str) -> None:
    result = compare(PROFILES["bf16"], Shape(8, 128, 64, 12, 4), families=[family])
    assert not result["objections"]
