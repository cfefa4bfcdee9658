"""Call an engine so that what it raises is its failure, and so that it cannot cheat unseen.

An operator gets clones of the inputs on its own device, must leave them as they are, and must return new, finite
tensors of the shape and dtype that the reference returns for the same inputs. A session must return finite logits of
every new token, and count its tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reference.operators import Operators

from .engine import EngineModel, Generation, Session
from .tolerance import ConformanceError

Operator = Callable[..., Any]


def guarded(op: str, function: Operator, device: torch.device) -> Operator:
    """Wrap a row of an engine.

    Args:
        op: the row's name in ``reference/ops``.
        function: the engine's.
        device: where the engine computes.

    Returns:
        A function of the same arguments, on the CPU; tensors come back to the CPU. It raises ``ConformanceError`` for
        what is said above, and where the engine's function raises.
    """
    reference = getattr(Operators(), op)

    def call(*inputs: Any) -> Any:
        sent = [value.clone().to(device) if isinstance(value, Tensor) else value for value in inputs]
        output = _called(op, function, *sent)
        for number, (value, original) in enumerate(zip(sent, inputs, strict=True)):
            if isinstance(original, Tensor) and not _same_bits(value.cpu(), original):
                raise ConformanceError(f"{op}: changed its argument {number}; want inputs left as they are")
        tensors = [value for value in sent if isinstance(value, Tensor)]
        got, want = _parts(op, output), _parts(op, reference(*inputs))
        if len(got) != len(want):
            raise ConformanceError(f"{op}: returned {len(got)} values; want {len(want)}")
        checked = [
            _checked(op, g, w, tensors, device) if isinstance(w, Tensor) else int(g)
            for g, w in zip(got, want, strict=True)
        ]
        return checked[0] if len(checked) == 1 else tuple(checked)

    return call


class GuardedSession:
    """A session whose logits come back on the CPU."""

    def __init__(self, session: Session, vocab_size: int) -> None:
        self._session = session
        self._vocab_size = vocab_size

    @property
    def length(self) -> int:
        return self._session.length

    def extend(self, token_ids: list[int]) -> Tensor:
        before = self.length
        logits = _called("extend", self._session.extend, list(token_ids))
        want = (len(token_ids), self._vocab_size)
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.shape != want:
            got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ConformanceError(f"extend: returned {got}; want floating logits {want} of every new token")
        if not logits.isfinite().all():
            raise ConformanceError(f"extend: row {int((~logits.isfinite()).any(dim=-1).nonzero()[0])} is not finite")
        self._counts(before + len(token_ids), "extend")
        return logits.detach().cpu()

    def truncate(self, length: int) -> None:
        _called("truncate", self._session.truncate, length)
        self._counts(length, "truncate")

    def _counts(self, want: int, what: str) -> None:
        if self.length != want:
            raise ConformanceError(f"{what}: length is {self.length} afterwards; want {want}")


class GuardedModel:
    """A loaded model whose sessions are guarded."""

    def __init__(self, model: EngineModel, vocab_size: int) -> None:
        self._model = model
        self._vocab_size = vocab_size

    def new_session(self) -> GuardedSession:
        return GuardedSession(_called("new_session", self._model.new_session), self._vocab_size)

    def generate(self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, **sampling: Any) -> Generation:
        result: Generation = _called(
            "generate", self._model.generate, list(prompt_ids), max_new_tokens, mtp=mtp, **sampling
        )
        tokens = list(result.tokens)
        if not 1 <= len(tokens) <= max_new_tokens or not all(0 <= token < self._vocab_size for token in tokens):
            raise ConformanceError(f"generate: returned {tokens}; want 1 to {max_new_tokens} tokens of the vocabulary")
        if mtp and not len(result.drafted_per_position) == len(result.accepted_per_position) == mtp:
            raise ConformanceError(
                f"generate: counted drafts at {len(result.drafted_per_position)} positions; want {mtp}"
            )
        return result


def _called(what: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return function(*args, **options)
    except Exception as error:
        raise ConformanceError(f"{what}: raised {type(error).__name__}: {error}; want a result") from error


def _parts(op: str, output: Any) -> tuple[Any, ...]:
    if isinstance(output, tuple):
        return output
    if not isinstance(output, Tensor):
        raise ConformanceError(f"{op}: returned a {type(output).__name__}; want a tensor")
    return (output,)


def _checked(op: str, got: Any, want: Tensor, inputs: list[Tensor], device: torch.device) -> Tensor:
    if not isinstance(got, Tensor):
        raise ConformanceError(f"{op}: returned a {type(got).__name__}; want a tensor")
    if got.shape != want.shape:
        raise ConformanceError(f"{op}: shape is {tuple(got.shape)}; want {tuple(want.shape)}")
    if got.dtype != want.dtype:
        raise ConformanceError(f"{op}: dtype is {got.dtype}; want {want.dtype}")
    if got.device.type != device.type:
        raise ConformanceError(f"{op}: result is on {got.device}; want {device}")
    if got.numel() and any(got.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for x in inputs):
        raise ConformanceError(f"{op}: result shares memory with an input; want a new tensor")
    if got.is_floating_point() and not got.isfinite().all():
        index = tuple((~got.isfinite()).nonzero()[0].tolist())
        raise ConformanceError(f"{op}: result is {got[index].item()} at {index}; want a finite number")
    return got.cpu()


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))
