"""From a failed check to the part of the engine that is probably wrong.

A check of an operator names its row, and most checks of a model the part that they judge (``part`` in clauses.toml).
Logits that fail are compared with the faults of the catalogue, each in a float64 model: the one that comes nearest
names the part.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from reference.model import Model
from reference.operators import Operators

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
ROWS = frozenset(vars(Operators()))
NEAR = 0.5**0.5  # a suspect explains a failure if it leaves less than half of the residual's square


class Context(NamedTuple):
    """What logits were asked for: of these tokens, by the backbone or, ``of_drafts``, by every MTP depth."""

    tokens: tuple[int, ...]
    of_drafts: bool


def row_of(check_id: str) -> str | None:
    """The row that a check judges, by its file or its parameter; None for a check of something else."""
    _, _, rest = check_id.partition("/ops/test_")
    file, parameter = rest.partition(".py")[0], rest.partition("[")[2].removesuffix("]")
    return next((name for name in (file, parameter) if name in ROWS), None)


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
        return Context(tuple(calls[-1].args["args"][0]), True)
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
    return Context(tuple(tokens), False) if tokens else None


def _nearest(oracle: OracleModel, context: Context, failure: Failure, without: str | None) -> str | None:
    """The part whose fault gives the rows nearest to the engine's; None if the right ones are as near."""
    got = failure.got.double()
    if got.ndim != 2 or got.shape != failure.want.shape or got.shape[1] != oracle.config.vocab_size:
        return None
    right = (got - failure.want.double()).norm().item()
    best, part = right * NEAR, None
    lineup = _lineup(oracle, context)
    residuals = [got - rows[len(rows) - len(got) :] if len(rows) >= len(got) else None for rows in lineup.right]
    for suspect in lineup.suspects:
        if without is not None and _is_the_same(suspect.fault, without):
            continue
        for residual, shift in zip(residuals, suspect.shifts, strict=True):
            if residual is None:  # the check may have compared the newest rows only, but never more than there are
                continue
            distance = (residual - shift[len(shift) - len(got) :]).norm().item()
            if distance < best:
                best, part = distance, suspect.part
    return part


def _is_the_same(suspect: str, fault: str) -> bool:
    """Whether two faults are one, perhaps in another arithmetic."""
    from .faults.catalogue import FAULTS

    return fault in FAULTS and FAULTS[suspect].content[1:] == FAULTS[fault].content[1:]


class _Suspect(NamedTuple):
    """A fault, and by how much it moves logits."""

    fault: str
    part: str
    shifts: list[Tensor]


class _Lineup(NamedTuple):
    """Right logits, float64, and all that may be wrong with them."""

    right: list[Tensor]
    suspects: list[_Suspect]


@lru_cache(8)  # each holds up to half a GB where the miniature has read 150 tokens
def _lineup(oracle: OracleModel, context: Context) -> _Lineup:
    from .faults.suspects import wrong_models  # only what fails pays for the catalogue

    right, found = _outputs(oracle.model, context), []
    for fault, part, model in wrong_models(oracle.config, oracle.weights, ops=oracle.model.ops):
        try:
            wrong = _outputs(model, context)
        except (RuntimeError, ValueError, IndexError):
            continue  # a fault that cannot run on this context cannot be the one that did
        if [rows.shape for rows in wrong] == [rows.shape for rows in right]:
            found.append(
                _Suspect(fault, part, [(one - other).float() for one, other in zip(wrong, right, strict=True)])
            )
    return _Lineup(right, found)


def _outputs(model: Model, context: Context) -> list[Tensor]:
    """Logits [T, V] of the backbone, or of each MTP depth in turn."""
    tokens = torch.tensor(context.tokens)
    with torch.inference_mode():
        hidden = model.hidden(tokens)
        if not context.of_drafts:
            return [model.logits(hidden)]
        outputs = []
        for depth in range(min(model.config.num_nextn_predict_layers, len(tokens) - 1)):
            following = tokens[1 + depth :]
            hidden = model.mtp_hidden(depth, hidden[: len(following)], following)
            outputs.append(model.mtp_logits(depth, hidden))
    return outputs
