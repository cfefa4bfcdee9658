"""From a failed check to the part of the engine that is probably wrong.

A check of an operator names its row, and most checks of a model the part that they judge (``part`` in clauses.toml).
Logits that fail are compared with the faults of the catalogue, each in a float64 model: the one that comes nearest
names the part.
"""

from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

from reference.model import Model

from .clauses import CLAUSES
from .isolation import Call
from .oracle import OracleModel
from .tolerance import Failure

# Rows that other rows are made of: where both fail, the smaller one is the cause.
MADE_OF = {
    "qk_norm": ("rms_norm",),
    "mlp": ("linear", "swiglu"),
    "experts": ("swiglu",),
    "experts_fp8": ("quantize_activation", "swiglu"),
    "mtp_input": ("rms_norm", "linear"),
}
NEAR = 0.5**0.5  # a suspect explains a failure if it leaves less than half of the residual's square
Context = tuple[int, ...]


def row_of(check_id: str) -> str | None:
    """The row that a check judges; None for a check of something else."""
    folder, _, rest = check_id.partition("/ops/test_")
    return rest.partition(".py")[0] if rest and folder else None


def probable_part(
    check_id: str,
    clause: str,
    calls: Sequence[Call],
    failure: Failure | None,
    oracle: OracleModel | None,
    without: str | None = None,
) -> str | None:
    """Name the part that a failed check points to.

    Args:
        calls: what the engine was asked in this check.
        failure: what was compared, if anything was.
        oracle: of the checkpoint that the check ran on; None where there is none.
        without: a fault that must not be thought of: so that finding it again proves nothing is proven by others.
    """
    if (row := row_of(check_id)) is not None:
        return row
    if CLAUSES[clause].part is not None:
        return CLAUSES[clause].part
    if failure is not None and oracle is not None and (context := _context(calls)) is not None:
        return _nearest(oracle, context, failure, without)
    return None


def smallest_parts(parts: Iterable[str]) -> list[str]:
    """Parts without those that are made of another one among them."""
    found = set(parts)
    return sorted(part for part in found if not found & set(MADE_OF.get(part, ())))


def _context(calls: Sequence[Call]) -> Context | None:
    """The tokens of the session that was used last, or of a call of draft_logits."""
    if calls and calls[-1].call == "call_model" and calls[-1].args["member"] == "draft_logits":
        return tuple(calls[-1].args["args"][0])
    sessions = [call for call in calls if call.call == "session"]
    if not sessions:
        return None
    tokens: list[int] = []
    for call in sessions:
        if call.args["number"] != sessions[-1].args["number"]:
            continue
        if call.args["member"] == "extend":
            tokens += call.args["args"][0]
        elif call.args["member"] == "truncate":
            del tokens[call.args["args"][0] :]
    return tuple(tokens) or None


def _nearest(oracle: OracleModel, context: Context, failure: Failure, without: str | None) -> str | None:
    """The part whose fault gives the rows nearest to the engine's; None if the right ones are as near."""
    got = failure.got.double()
    if got.ndim != 2 or got.shape != failure.want.shape or got.shape[1] != oracle.config.vocab_size:
        return None
    right = (got - failure.want.double()).norm().item()
    best, part = right * NEAR, None
    for suspect in _suspects(oracle, context):
        if without is not None and _is_the_same(suspect.fault, without):
            continue
        for rows in suspect.outputs:
            distance = _distance(got, rows)
            if distance < best:
                best, part = distance, suspect.part
    return part


def _is_the_same(suspect: str, fault: str) -> bool:
    """Whether two faults are one, perhaps in another arithmetic."""
    from .faults.catalogue import FAULTS

    return fault in FAULTS and FAULTS[suspect].content[1:] == FAULTS[fault].content[1:]


class _Suspect:
    """A fault and the logits of its model: of the backbone, and of each MTP depth."""

    def __init__(self, fault: str, part: str, outputs: list[Tensor]) -> None:
        self.fault, self.part, self.outputs = fault, part, outputs


@cache
def _suspects(oracle: OracleModel, context: Context) -> list[_Suspect]:
    from .faults.suspects import wrong_models  # only what fails pays for the catalogue

    found = []
    for fault, part, model in wrong_models(oracle.config, oracle.weights, ops=oracle.model.ops):
        try:
            found.append(_Suspect(fault, part, _outputs(model, context)))
        except (RuntimeError, ValueError, IndexError):
            continue  # a fault that cannot run on this context cannot be the one that did
    return found


def _outputs(model: Model, context: Context) -> list[Tensor]:
    tokens = torch.tensor(context)
    with torch.inference_mode():
        hidden = model.hidden(tokens)
        outputs = [model.logits(hidden)]
        for depth in range(min(model.config.num_nextn_predict_layers, len(context) - 1)):
            following = tokens[1 + depth :]
            hidden = model.mtp_hidden(depth, hidden[: len(following)], following)
            outputs.append(model.mtp_logits(depth, hidden))
    return outputs


def _distance(got: Tensor, rows: Tensor) -> float:
    """Of the engine's rows from the last of a suspect's; the check may have compared the newest rows only."""
    if len(rows) < len(got):
        return float("inf")
    return (got - rows[len(rows) - len(got) :]).norm().item()
