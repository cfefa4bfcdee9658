"""One thing to time, its sets of inputs, and the checks that its output cannot prepare for."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .case import Args, Case
from .maker import Maker

L2_MULTIPLE = 5  # of the L2 cache: what the sets of inputs hold together, so that a call finds nothing of its own

SETS = 4
SPOT_CHECKS = 3
CHUNK_WORDS = 1 << 25  # summed at a time: the experts' weights are gigabytes


@dataclass(frozen=True)
class Wrong:
    """Why an output is not one."""

    reason: str


class Workload:
    """A case, an engine's operator and the reference.

    Its sets of inputs rotate. Before a check, inputs of a set are overwritten in place: what was computed before
    for the same addresses is then wrong. A row leaves its arguments alone; a fused kernel or a layer is given caches
    and workspaces to write to, so nobody asks that of it.

    Args:
        operator: of the engine.
        reference: the row that the case's check takes.
        device: where the inputs lie.
        num_sets: of inputs; 1: each call finds them where the last call left them.
    """

    def __init__(
        self,
        case: Case,
        operator: Callable[..., Any],
        reference: Callable[..., Any],
        device: str,
        num_sets: int = SETS,
    ) -> None:
        self.case, self.operator, self.reference = case, operator, reference
        self._draw = case.build(Maker(device))
        self.sets = [self._draw() for _ in range(num_sets)]
        pointers = [{tensor.data_ptr() for tensor in tensors_of(args)} for args in (self.sets[0], self._draw())]
        self._fixed = pointers[0] & pointers[1]  # weights: shared by all sets, never overwritten
        self._weights = {t.data_ptr(): _fingerprint(t) for t in tensors_of(self.sets[0]) if t.data_ptr() in self._fixed}

    def call(self, index: int) -> Any:
        """Run the operator on set ``index`` modulo their number."""
        return self.operator(*self.sets[index % len(self.sets)])

    def refresh(self, index: int) -> None:
        """Overwrite the inputs of a set in place with new numbers."""
        for old, new in zip(tensors_of(self.sets[index]), tensors_of(self._draw()), strict=True):
            if old.data_ptr() not in self._fixed:
                old.copy_(new)

    def check(self, index: int, got: Any) -> Wrong | None:
        """Compare an output with the reference on what set ``index`` holds now."""
        args = self.sets[index % len(self.sets)]
        leaves = leaves_of(got)
        odd = [leaf for leaf in leaves if type(leaf) not in (Tensor, int, float, bool)]
        if odd or not leaves:
            return Wrong(
                f"the output holds a {type((odd or [got])[0]).__name__}; want plain tensors or numbers, computed"
            )
        for tensor in (leaf for leaf in leaves if isinstance(leaf, Tensor)):
            if tensor.is_floating_point() and tensor.itemsize == 2 and _narrowest(args) > 2:
                return Wrong(f"the output is {tensor.dtype} of wider inputs; want no lower precision than theirs")
        try:
            agreement = self.case.check(self.reference, args, got)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            return Wrong(f"the output cannot be compared: {str(error).splitlines()[0]}")
        return None if agreement.holds else Wrong(f"{agreement.of}: {agreement.error:.3g} times the tolerance")

    def run_checked(self, index: int = 0) -> Wrong | None:
        """Overwrite a set's inputs, poison free memory, run once, and check: the output, inputs left alone, weights."""
        self.refresh(index)
        args = self.sets[index]
        before = [_fingerprint(tensor) for tensor in tensors_of(args)]
        _poison(args)
        got = self.call(index)
        snapshot = copies_of(got)
        if not self.case.writes and [_fingerprint(tensor) for tensor in tensors_of(args)] != before:
            return Wrong("an input was changed; want inputs left alone")
        return self.check(index, snapshot) or self.weights_changed()

    def weights_changed(self) -> Wrong | None:
        """Whether what all sets share is no longer what it was."""
        if self.case.fused is not None:
            return None
        held = {tensor.data_ptr(): tensor for tensor in tensors_of(self.sets[0])}
        changed = any(_fingerprint(held[pointer]) != was for pointer, was in self._weights.items())
        return Wrong("a weight was changed; want weights left alone") if changed else None


def spots(count: int) -> set[int]:
    """Which calls are checked, from the system's randomness: nothing under test can foresee them."""
    return set(random.SystemRandom().sample(range(count), min(SPOT_CHECKS, count)))


def leaves_of(value: Any) -> list[Any]:
    """What an output holds, tuples and lists unpacked."""
    return [leaf for item in value for leaf in leaves_of(item)] if isinstance(value, tuple | list) else [value]


def copies_of(value: Any) -> Any:
    """An output as it is now: what is written to it later does not count."""
    if type(value) is Tensor:
        return value.clone()
    if isinstance(value, tuple | list):
        return tuple(copies_of(item) for item in value)
    return value


def cold_sets(case: Case, first: Args, second: Args) -> int:
    """Sets of arguments that together exceed the L2 cache several times, or the case's most; of two draws of them."""
    known = {tensor.data_ptr() for tensor in tensors_of(first)}
    fresh = sum(tensor.nbytes for tensor in tensors_of(second) if tensor.data_ptr() not in known)
    wanted = L2_MULTIPLE * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return int(max(2, min(case.max_sets, -(-wanted // max(fresh, 1)))))


def tensors_of(args: Sequence[Any]) -> list[Tensor]:
    """The tensors among arguments, those of quantised weights included."""
    found: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        else:
            found += [value for value in getattr(arg, "__dict__", {}).values() if isinstance(value, Tensor)]
    return found


def _narrowest(args: Args) -> int:
    return min((tensor.itemsize for tensor in tensors_of(args) if tensor.is_floating_point()), default=8)


def _fingerprint(tensor: Tensor) -> tuple[int, int]:
    """Of the bits: a sum, and one with weights, so that swapped values show. Exact: integers wrap."""
    bits = tensor.detach().contiguous().view(-1).view(torch.uint8)
    whole = len(bits) // 8 * 8
    total, placed = int(bits[whole:].to(torch.int64).sum()), 0
    for at, words in enumerate(bits[:whole].view(torch.int64).split(CHUNK_WORDS)):
        places = torch.arange(1, len(words) + 1, device=words.device) + at
        total += int(words.sum())
        placed += int((words * places).sum())
    return total, placed


def _poison(args: Args) -> None:
    """Fill memory that was free with NaN, as far as the allocator gives it: an output not written is then wrong."""
    for tensor in tensors_of(args):
        if tensor.is_floating_point() and tensor.itemsize > 1:
            torch.full_like(tensor, float("nan"))
