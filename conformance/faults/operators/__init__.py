"""Operators with one thing wrong, and everything else the reference's; a module for each family of rows."""

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

FAMILY = {  # module of each row
    "embedding": "projections",
    "linear": "projections",
    "rms_norm": "norm",
    "qk_norm": "norm",
    "rope": "rope",
    "attention": "attention",
    "head_gate": "gate",
    "swiglu": "activation",
    "mlp": "activation",
    "router": "router",
    "experts": "experts",
    "experts_fp8": "quantized",
    "quantize_activation": "quantized",
    "mtp_input": "mtp",
    "sampling": "sampling",
    "draw": "sampling",
    "accept_draft": "acceptance",
}


def find_operator(row: str, name: str) -> Callable[..., Any]:
    """The function that replaces a row.

    Raises:
        ValueError: no such row or function; the message names the module that was searched.
    """
    if row not in FAMILY:
        raise ValueError(f"fault: row is {row!r}; want one of {', '.join(FAMILY)}")
    module = importlib.import_module(f"{__name__}.{FAMILY[row]}")
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"fault: {module.__name__} has no function {name!r}; want one that replaces {row}")
    return found


def misreading(row: str, name: str) -> Callable[..., Any]:
    """A row of experts that reads its quantised weights wrongly, by a function of ``stored``.

    Raises:
        ValueError: no such function.
    """
    from reference.operators import Operators

    from . import stored

    change, base = getattr(stored, name, None), getattr(Operators(), row)
    if not callable(change):
        raise ValueError(f"fault: {stored.__name__} has no function {name!r}; want one that misreads weights")

    def experts(x: Tensor, ids: Tensor, weights: Tensor, gate: Any, up: Any, down: Any, limit: float) -> Any:
        return base(x, ids, weights, *change(gate, up, down), limit)

    return experts
