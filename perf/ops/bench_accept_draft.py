"""Cost and inputs of ``accept_draft``."""

from collections.abc import Callable
from typing import Any

from ..case import Agreement, Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import published


def cost(n: int, V: int) -> Cost:
    """At best all n drafts are accepted: n pairs of numbers are read, and one float32 row is drawn from."""
    return Cost(hbm_bytes=4 * V + 24 * n, flops=V)


def cases() -> list[Case]:
    model = published().model
    return [_case(model.num_nextn_predict_layers, model.vocab_size)]


def _case(n: int, V: int) -> Case:
    def build(maker: Maker) -> Draw:
        def draw() -> Args:
            target, draft = (maker.normal(rows, V, scale=3.0).float().softmax(dim=-1) for rows in (n + 1, n))
            uniforms = maker.uniform(n + 1, dtype=target.double().dtype)
            return target, draft, maker.integers(n, high=V), uniforms

        return draw

    return Case("accept_draft", f"n={n} V={V}", "float32", cost(n, V), build, _check, waits=True)


def _check(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    return Agreement(0.0 if tuple(got) == tuple(reference(*args)) else float("inf"), "count and token")
