"""The table of operators that a model is built from.

The model reaches every operator through this table, so that a deliberately wrong or a reordered variant of one operator
gives a whole model that differs in nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .ops.accept_draft import accept_draft
from .ops.attention import attention
from .ops.draw import draw
from .ops.embedding import embedding
from .ops.experts import experts
from .ops.experts_fp8 import experts_fp8
from .ops.head_gate import head_gate
from .ops.linear import linear
from .ops.mlp import mlp
from .ops.mtp_input import mtp_input
from .ops.qk_norm import qk_norm
from .ops.quantize_activation import quantize_activation
from .ops.rms_norm import rms_norm
from .ops.rope import rope
from .ops.router import router
from .ops.sampling import sampling
from .ops.swiglu import swiglu

Operator = Callable[..., Any]


@dataclass(frozen=True)
class Operators:
    """One function for each file of ``reference/ops``, under the same name."""

    embedding: Operator = embedding
    rms_norm: Operator = rms_norm
    qk_norm: Operator = qk_norm
    rope: Operator = rope
    attention: Operator = attention
    head_gate: Operator = head_gate
    linear: Operator = linear
    swiglu: Operator = swiglu
    mlp: Operator = mlp
    router: Operator = router
    experts: Operator = experts
    quantize_activation: Operator = quantize_activation
    experts_fp8: Operator = experts_fp8
    mtp_input: Operator = mtp_input
    sampling: Operator = sampling
    draw: Operator = draw
    accept_draft: Operator = accept_draft
