"""Call an engine so that what it raises is its failure, and so that it cannot cheat unseen.

An operator gets copies of the inputs in its own process, must leave them and the memory around them as they are, and
must return new, finite tensors of the shape and dtype that the reference returns for the same inputs. A session must
return finite logits of every new token, and count its tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from reference.operators import Operators
from reference.quantization import Fp8Weight, Int4Weight

from .host import GUARD_BYTE, GUARD_BYTES
from .isolation import EngineProcess, Unsupported
from .tolerance import ConformanceError

Operator = Callable[..., Any]


def guarded(op: str, process: EngineProcess) -> Operator:
    """Wrap a row of an engine.

    Args:
        op: the row's name in ``reference/ops``.
        process: the engine's.

    Returns:
        A function of the same arguments, on the CPU; tensors come back to the CPU. It raises ``ConformanceError`` for
        what is said above, and where the engine's function raises.
    """
    reference = getattr(Operators(), op)

    def call(*inputs: Any) -> Any:
        try:
            answer = process.call("op", op, name=op, inputs=list(inputs))
        except Unsupported as refusal:
            raise ConformanceError(f"{op}: raised NotImplementedError: {refusal}; want a result") from refusal
        for number, (storage, sent) in enumerate(zip(answer["storages"], _tensors(inputs), strict=True)):
            _unchanged(op, number, storage, sent)
        if answer["shares_memory"]:
            raise ConformanceError(f"{op}: result shares memory with an input; want a new tensor")
        device = process.description["device"].partition(":")[0]
        elsewhere = [where for where in answer["devices"] if where.partition(":")[0] != device]
        if elsewhere:
            raise ConformanceError(f"{op}: result is on {elsewhere[0]}; want {device}")
        got, want = _parts(op, answer["output"]), _parts(op, reference(*inputs))
        if len(got) != len(want):
            raise ConformanceError(f"{op}: returned {len(got)} values; want {len(want)}")
        checked = [
            _checked(op, g, w) if isinstance(w, Tensor) else _whole_number(op, g)
            for g, w in zip(got, want, strict=True)
        ]
        return checked[0] if len(checked) == 1 else tuple(checked)

    return call


def on_repeated(
    op: str, process: EngineProcess, inputs: Sequence[Any], repeated: Sequence[int], times: int, rows: Sequence[int]
) -> Tensor:
    """Run a row of an engine on ``inputs``, some of them repeated ``times`` times along their first axis.

    The repetition is made in the engine's process: what is larger than 2**31 elements need not cross to it.

    Args:
        repeated: which of the inputs.
        rows: of the result, that come back.

    Returns:
        [len(rows), ...] on the CPU.

    Raises:
        ConformanceError: the engine raised, or the result has not as many rows as the repeated inputs.
    """
    question = {"name": op, "inputs": list(inputs), "repeated": list(repeated), "times": times, "rows": list(rows)}
    try:
        answer = process.call("op_on_repeated", op, **question)
    except Unsupported as refusal:
        raise ConformanceError(f"{op}: raised NotImplementedError: {refusal}; want a result") from refusal
    num_rows = times * len(inputs[repeated[0]])
    if answer["shape"][:1] != [num_rows]:
        raise ConformanceError(f"{op}: result has shape {answer['shape']}; want a tensor of {num_rows} rows")
    output: Tensor = answer["output"]
    return output


@dataclass
class Generation:
    """What an engine generated; see ``engine.Generation``."""

    tokens: list[int]
    drafted_per_position: list[int]
    accepted_per_position: list[int]


class GuardedSession:
    """A session in the engine's process."""

    def __init__(self, model: "GuardedModel", number: int) -> None:
        self._model = model
        self.number = number
        self.optional: list[str] = model.call("new_session", number=number)
        self.length = 0

    def extend(self, token_ids: list[int]) -> Tensor:
        answer = self._call("extend", list(token_ids))
        self._counts(answer["length"], self.length + len(token_ids), "extend")
        return checked_logits("extend", answer["output"], len(token_ids), self._model.vocab_size)

    def truncate(self, length: int) -> None:
        self._counts(self._call("truncate", length)["length"], length, "truncate")

    def routing(self) -> Mapping[int, tuple[Tensor, Tensor]]:
        """Expert ids and weights of the newest ``extend``, by layer."""
        if "routing" not in self.optional:
            self._model.refuses("routing")
        answer = self._call("routing")["output"]
        pairs = isinstance(answer, Mapping) and all(
            isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)
            for pair in answer.values()
        )
        if not pairs:
            raise ConformanceError("routing: is no mapping of layers to (expert ids, expert weights); want one")
        return {int(layer): pair for layer, pair in answer.items()}

    def close(self) -> None:
        """Let go of the context."""
        self._model.call("close_session", number=self.number)

    def counts(self, got: int, more: int) -> None:
        """Note that ``more`` tokens came in by another way, and that the engine counts ``got``."""
        self._counts(got, self.length + more, "extend_batch")

    def _call(self, member: str, *args: Any) -> Any:
        return self._model.call("session", what=member, number=self.number, member=member, args=list(args))

    def _counts(self, got: int, want: int, what: str) -> None:
        if got != want:
            raise ConformanceError(f"{what}: length is {got} afterwards; want {want}")
        self.length = want


class GuardedModel:
    """A model loaded in the engine's process, and loaded again when that process had to be started again.

    Args:
        refuse: called with what the engine does not do and why; it does not return.

    Raises:
        Unsupported: the engine has no whole model.
    """

    def __init__(
        self, process: EngineProcess, checkpoint: Path, vocab_size: int, refuse: Callable[[str, str], NoReturn]
    ) -> None:
        self._process = process
        self._refuse = refuse
        self.checkpoint = checkpoint
        self.vocab_size = vocab_size
        self._sessions = 0
        self._load()

    def new_session(self) -> GuardedSession:
        self._sessions += 1
        return GuardedSession(self, self._sessions)

    def generate(self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, **sampling: Any) -> Generation:
        options = {"mtp": mtp, **sampling}
        answer = self.call("generate", prompt_ids=list(prompt_ids), max_new_tokens=max_new_tokens, options=options)
        result = Generation(**answer)
        if not 1 <= len(result.tokens) <= max_new_tokens or not all(0 <= t < self.vocab_size for t in result.tokens):
            raise ConformanceError(
                f"generate: returned {result.tokens}; want 1 to {max_new_tokens} tokens of the vocabulary"
            )
        if mtp and not len(result.drafted_per_position) == len(result.accepted_per_position) == mtp:
            raise ConformanceError(
                f"generate: counted drafts at {len(result.drafted_per_position)} positions; want {mtp}"
            )
        return result

    def draft_logits(self, token_ids: list[int]) -> list[Tensor]:
        """Teacher-forced draft logits of every depth."""
        answer = self._optional("draft_logits", list(token_ids))
        if not isinstance(answer, list | tuple):
            raise ConformanceError(f"draft_logits: returned a {type(answer).__name__}; want a list, one tensor a depth")
        return [
            checked_logits(f"draft_logits, depth {depth}", logits, len(token_ids) - 1 - depth, self.vocab_size)
            for depth, logits in enumerate(answer)
        ]

    def extend_batch(self, sessions: list[GuardedSession], token_ids: list[list[int]]) -> list[Tensor]:
        """Extend several sessions in one step."""
        if "extend_batch" not in self.optional:
            self.refuses("extend_batch")
        answer = self.call("batch", numbers=[session.number for session in sessions], token_ids=token_ids)
        if len(answer["output"]) != len(sessions):
            raise ConformanceError(f"extend_batch: returned {len(answer['output'])} logits; want {len(sessions)}")
        for session, length, tokens in zip(sessions, answer["lengths"], token_ids, strict=True):
            session.counts(length, len(tokens))
        return [
            checked_logits("extend_batch", logits, len(tokens), self.vocab_size)
            for logits, tokens in zip(answer["output"], token_ids, strict=True)
        ]

    def layers(self) -> list[Mapping[str, Any]]:
        """What the engine says that it built."""
        answer = self._optional("layers")
        if not isinstance(answer, list) or not all(isinstance(layer, Mapping) for layer in answer):
            raise ConformanceError("layers: is no list of mappings; want one for each layer")
        return answer

    def call(self, call: str, what: str | None = None, **args: Any) -> Any:
        """Call the engine; what it refuses with NotImplementedError skips the check as NOT-SUPPORTED."""
        if self._process.incarnation != self._incarnation:
            self._load()
        try:
            return self._process.call(call, what or call, **args)
        except Unsupported as refusal:
            self._refuse(what or call, str(refusal) or "the engine refuses it")

    def refuses(self, member: str) -> NoReturn:
        """Skip the check for want of an optional member."""
        self._refuse(member, "the engine's model or session has no such member")

    def _optional(self, member: str, *args: Any) -> Any:
        if member not in self.optional:
            self.refuses(member)
        return self.call("call_model", what=member, member=member, args=list(args))

    def _load(self) -> None:
        self.optional: list[str] = self._process.call("load_model", "load_model", checkpoint=str(self.checkpoint))
        self._incarnation = self._process.incarnation


def checked_logits(what: str, logits: Any, num_tokens: int, vocab_size: int) -> Tensor:
    """Finite floating logits [T, V], or a failure."""
    want = (num_tokens, vocab_size)
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.shape != want:
        got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ConformanceError(f"{what}: returned {got}; want floating logits {want} of every new token")
    if not logits.isfinite().all():
        raise ConformanceError(f"{what}: row {int((~logits.isfinite()).any(dim=-1).nonzero()[0])} is not finite")
    return logits


def _tensors(inputs: tuple[Any, ...]) -> list[Tensor]:
    """The tensors of the inputs, in the order in which they are placed."""
    found: list[Tensor] = []
    for value in inputs:
        if isinstance(value, Fp8Weight):
            found += (value.data, value.scale_inv)
        elif isinstance(value, Int4Weight):
            found += (value.data, value.scale)
        elif isinstance(value, Tensor):
            found.append(value)
    return found


def _unchanged(op: str, number: int, storage: Tensor, want: Tensor) -> None:
    inside = want.contiguous().reshape(-1).view(torch.uint8)
    if storage.numel() != inside.numel() + 2 * GUARD_BYTES or storage.dtype != torch.uint8:
        raise ConformanceError(f"{op}: the memory of tensor {number} of its arguments is gone; want it left alone")
    if not torch.equal(storage[GUARD_BYTES : GUARD_BYTES + inside.numel()], inside):
        raise ConformanceError(f"{op}: changed tensor {number} of its arguments; want inputs left as they are")
    around = torch.cat((storage[:GUARD_BYTES], storage[GUARD_BYTES + inside.numel() :]))
    if not (around == GUARD_BYTE).all():
        raise ConformanceError(f"{op}: wrote beside tensor {number} of its arguments; want writes inside its result")


def _parts(op: str, output: Any) -> tuple[Any, ...]:
    if isinstance(output, tuple):
        return output
    if not isinstance(output, Tensor):
        raise ConformanceError(f"{op}: returned a {type(output).__name__}; want a tensor")
    return (output,)


def _whole_number(op: str, got: Any) -> int:
    if isinstance(got, Tensor) and got.numel() == 1 and not got.is_floating_point():
        return int(got)
    if not isinstance(got, int) or isinstance(got, bool):
        raise ConformanceError(f"{op}: returned a {type(got).__name__}; want a whole number")
    return got


def _checked(op: str, got: Any, want: Tensor) -> Tensor:
    if not isinstance(got, Tensor):
        raise ConformanceError(f"{op}: returned a {type(got).__name__}; want a tensor")
    if got.shape != want.shape:
        raise ConformanceError(f"{op}: shape is {tuple(got.shape)}; want {tuple(want.shape)}")
    if got.dtype != want.dtype:
        raise ConformanceError(f"{op}: dtype is {got.dtype}; want {want.dtype}")
    if got.is_floating_point() and not (finite := got.float().isfinite()).all():  # FP8 has no isfinite of its own
        index = tuple((~finite).nonzero()[0].tolist())
        raise ConformanceError(f"{op}: result is {got[index].item()} at {index}; want a finite number")
    return got
