"""Cost and inputs of ``sampling``."""

from collections.abc import Callable
from typing import Any

from ..agreement import wide
from ..case import Agreement, Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import FEW_TOKENS, published

TOLERANCE = 1e-3  # of a row's mass: float32 sums may put one token more or less into the kept set
SETTINGS = {"greedy": (0.0, 0, 1.0, 0.0), "top-p 0.95": (0.6, 0, 0.95, 0.0)}  # temperature, top_k, top_p, min_p


def cost(T: int, V: int, itemsize: int = 2) -> Cost:
    """Read the logits, write float32 probabilities; subtract, scale, add, divide an element."""
    return Cost(hbm_bytes=T * V * (itemsize + 4), flops=4 * T * V)


def cases() -> list[Case]:
    return [_case(T, name) for name in SETTINGS for T in FEW_TOKENS]


def _case(T: int, setting: str) -> Case:
    V = published().model.vocab_size

    def build(maker: Maker) -> Draw:
        def draw() -> Args:
            return maker.normal(T, V, scale=3.0), *SETTINGS[setting]

        return draw

    return Case("sampling", f"T={T} V={V} {setting}", "bf16", cost(T, V), build, _check)


def _check(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    """Mass that lies on other tokens than in the reference."""
    moved = (got.double() - reference(*map(wide, args))).abs().sum(dim=-1).max()
    return Agreement(float("inf") if moved != moved else float(moved) / TOLERANCE, "mass of each row")
