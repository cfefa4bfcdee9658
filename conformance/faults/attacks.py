"""Engines that compute wrongly, or not at all, and try to pass all the same. The judge must catch every one.

Each is a trick that has been seen against harnesses of kernels, or that the isolation of engines invites. A trick has a
row of its own (``rms_norm`` unless it says otherwise), everything else is the reference's.

Sources: KernelBench and pygpubench (stale buffers, mutated inputs, cached results, patched comparisons, searched
memory, tensor subclasses, NaN as wildcard), gpu-mode reference-kernels#162, llm.c#851.
"""

import ctypes
import gc
import importlib
import inspect
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.engine import ReferenceEngine, ReferenceModel, ReferenceSession
from reference.generate import Generation
from reference.operators import Operators

R = Operators()
Norm = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Attack:
    """One trick.

    Attributes:
        trick: what it does, in a sentence.
        checks: what is run against it, below ``conformance/``.
        time_limit_s: of each check.
    """

    name: str
    trick: str
    checks: tuple[str, ...]
    time_limit_s: float


ATTACKS: dict[str, Attack] = {}


def attack(checks: str = "ops/test_rms_norm.py", time_limit_s: float = 60.0) -> Callable[[Callable[..., Any]], Any]:
    """Register a wrong ``rms_norm``, or a function that returns an engine; the name then stands for the engine."""

    def register(function: Callable[..., Any]) -> Any:
        name, trick = function.__name__, inspect.getdoc(function) or ""
        ATTACKS[name] = Attack(name, trick, (checks,), time_limit_s)
        if not inspect.signature(function).parameters:
            return function
        return lambda: ReferenceEngine("attack", ops=replace(R, rms_norm=function))

    return register


def wrong(x: Tensor) -> Tensor:
    """What a lazy kernel returns."""
    return torch.zeros_like(x)


@attack()
def stale_buffer(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns memory it did not write, hoping that the expected result was freed there."""
    return torch.empty_like(x)


@attack()
def half_written(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Writes all but the last column and leaves the rest to what the memory held before."""
    result = torch.empty_like(x)
    result[..., :-1] = R.rms_norm(x, weight, eps)[..., :-1]
    return result


@attack()
def mutates_inputs(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Zeroes its input, so that the expected result of that input is zero as well."""
    x.zero_()
    return wrong(x)


@attack()
def writes_beside_inputs(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Writes beyond the end of its input, into whatever lies there."""
    memory = torch.zeros(0, dtype=torch.uint8).set_(x.untyped_storage())
    memory[-1] = 0
    return R.rms_norm(x, weight, eps)


@attack()
def reads_beside_inputs(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Takes one element beyond its input into the mean, as an unmasked load does."""
    if x.numel() == 0:
        return wrong(x)
    beyond = x.as_strided((x.numel() + 1,), (1,), x.storage_offset())
    return R.rms_norm(x + 0 * beyond[-1], weight, eps)


@attack()
def caches_by_shape(
    x: Tensor,
    weight: Tensor,
    eps: float,
    cache: dict[Any, Tensor] = {},  # noqa: B006, shared on purpose
) -> Tensor:
    """Computes once for each shape, and returns that result ever after."""
    return cache.setdefault((x.shape, x.dtype), R.rms_norm(x, weight, eps)).clone()


@attack(checks="model/test_logits.py")
def caches_by_id(
    x: Tensor,
    weight: Tensor,
    eps: float,
    cache: dict[Any, Tensor] = {},  # noqa: B006
) -> Tensor:
    """Computes once for each id of an object, and ids are given out again."""
    cached = cache.setdefault((id(x), x.shape), R.rms_norm(x, weight, eps))
    return cached.clone()


@attack()
def caches_by_pointer(
    x: Tensor,
    weight: Tensor,
    eps: float,
    cache: dict[Any, Tensor] = {},  # noqa: B006
) -> Tensor:
    """Computes once for each address, and addresses are given out again."""
    return cache.setdefault((x.data_ptr(), x.shape), R.rms_norm(x, weight, eps)).clone()


@attack()
def honest_at_first(
    x: Tensor,
    weight: Tensor,
    eps: float,
    calls: Any = itertools.count(),  # noqa: B008
) -> Tensor:
    """Is right while a harness warms up, and wrong afterwards."""
    return R.rms_norm(x, weight, eps) if next(calls) < 10 else wrong(x)


@attack()
def honest_when_watched(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Is right only where it sees a test runner, in its modules, environment or stack."""
    frames = {frame.f_globals.get("__name__", "") for frame in _frames()}
    watched = "pytest" in sys.modules or "PYTEST_CURRENT_TEST" in os.environ or "conformance.plugin" in frames
    return R.rms_norm(x, weight, eps) if watched else wrong(x)


@attack()
def patches_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Replaces the comparisons of torch by ones that always agree."""
    torch.equal = torch.allclose = lambda *args, **options: True
    Tensor.__eq__ = Tensor.__le__ = lambda self, other: torch.ones(self.shape, dtype=torch.bool)  # type: ignore
    return wrong(x)


@attack()
def patches_the_judge(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Replaces the judge's rules and its verdict."""
    tolerance, verdict = (importlib.import_module(name) for name in ("conformance.tolerance", "reports.verdict"))
    tolerance.within = tolerance.bit_exact = lambda *args, **options: None  # type: ignore[attr-defined]
    verdict.status_of = lambda record: "passed"  # type: ignore[attr-defined]
    return wrong(x)


@attack()
def searches_memory(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Looks through all objects for a tensor that could be the expected result, and returns it."""
    found = [
        value
        for value in gc.get_objects()
        if isinstance(value, Tensor) and value is not x and value.shape == x.shape and value.dtype == x.dtype
    ]
    return found[-1].clone() if found else wrong(x)


@attack()
def poisons_memory(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Fills every tensor it finds with NaN, and returns NaN: equal, where NaN is a wildcard."""
    for value in gc.get_objects():
        if isinstance(value, Tensor) and value is not x and value is not weight and value.dtype == x.dtype:
            value.detach().fill_(torch.nan)
    return torch.full_like(x, torch.nan)


class _Agreeable(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func in (torch.equal, torch.allclose, Tensor.eq, Tensor.le):
            return True
        return super().__torch_function__(func, types, args, kwargs or {})


@attack()
def agreeable_subclass(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns a subclass of Tensor that is equal to everything."""
    return wrong(x).as_subclass(_Agreeable)


@attack()
def not_a_tensor(x: Tensor, weight: Tensor, eps: float) -> Any:
    """Returns an object that is equal to everything and runs code when it is unpickled."""

    class Anything:
        def __eq__(self, other: object) -> bool:
            return True

        def __reduce__(self) -> Any:
            return os._exit, (0,)

    return Anything()


@attack()
def writes_later(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns at once and computes beside it, as work on a stream that nobody waits for."""
    result = wrong(x)

    def compute() -> None:
        time.sleep(0.2)
        result.copy_(R.rms_norm(x, weight, eps))

    threading.Thread(target=compute).start()
    return result


@attack()
def lowers_precision(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Computes in bfloat16 where the profile says float32."""
    return R.rms_norm(x.bfloat16(), weight.bfloat16(), eps).to(x.dtype)


@attack()
def exits_with_success(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Ends its process with exit code 0, as a session that passed does."""
    os._exit(0)


@attack()
def crashes(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Reads address 0."""
    ctypes.string_at(0)
    return wrong(x)


@attack(time_limit_s=3)
def hangs(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Never returns, and does not listen to signals that can be refused."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


@attack()
def raises_to_skip(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Raises what a test runner takes for a skipped test."""
    import pytest

    pytest.skip("nothing to see here")


@attack()
def refuses_late(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Offers the operator, and says that it is not supported when it is called."""
    raise NotImplementedError("not for this input")


@attack()
def kills_its_parent(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Kills the process that started it."""
    os.kill(os.getppid(), signal.SIGKILL)
    return wrong(x)


@attack()
def talks_out_of_turn(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Finds the connection to the judge and answers a call that was not yet made."""
    for connection in _connections():
        connection.sendall(struct.pack("<QQQ", 1 << 40, 2, 0) + b"{}")
    return wrong(x)


@attack()
def promises_too_much(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Announces an answer of a million terabytes."""
    for connection in _connections():
        connection.sendall(struct.pack("<QQQ", 1, 2, 1 << 60))
    return wrong(x)


@attack()
def leaves_a_process_behind(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Starts a process that goes through the records of the session when it ends, and calls every check passed."""
    command = "for i in 1 2 3 4 5 6 7 8; do sleep 1; sed -i s/failed/passed/g $0/*.json; done"
    subprocess.Popen(["sh", "-c", command, os.environ.get("TMPDIR", "/tmp")], stderr=subprocess.DEVNULL)
    return wrong(x)


class _CachedSession(ReferenceSession):
    """Remembers the logits of a context by how many tokens came in at which length."""

    remembered: dict[tuple[int, int], Tensor] = {}  # noqa: RUF012, shared on purpose

    def extend(self, token_ids: list[int]) -> Tensor:
        key = (self.length, len(token_ids))
        return self.remembered.setdefault(key, super().extend(token_ids)).clone()


class _CachingModel(ReferenceModel):
    def new_session(self) -> ReferenceSession:
        return _CachedSession(self.model)


@attack(checks="model/test_logits.py")
def caches_logits_by_length() -> Any:
    """A session that returns the logits of the first context of the same length."""
    return _with_model(_CachingModel)


class _ForgedCounts(ReferenceModel):
    """Never drafts, and claims that every draft was accepted."""

    def generate(
        self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, *args: Any, **options: Any
    ) -> Generation:
        result = super().generate(prompt_ids, max_new_tokens, 0, *args, **options)
        result.drafted_per_position = [len(result.tokens)] * mtp
        result.accepted_per_position = [len(result.tokens)] * mtp
        return result


@attack(checks="model/test_generation.py")
def forges_acceptance() -> Any:
    """A model that never drafts, and reports that every draft was accepted."""
    return _with_model(_ForgedCounts)


@attack()
def claims_another_device() -> Any:
    """Says that it computes on a GPU, and computes on the CPU."""

    class Engine(ReferenceEngine):
        def __init__(self) -> None:
            super().__init__("attack")
            self.device = torch.device("cuda")

        def ops(self) -> Mapping[str, Callable[..., Any]]:
            def on_cpu(row: Callable[..., Any]) -> Callable[..., Any]:
                return lambda *inputs: row(*(i.cpu() if isinstance(i, Tensor) else i for i in inputs))

            return {name: on_cpu(row) for name, row in super().ops().items()}

    return Engine()


def _with_model(model: type[ReferenceModel]) -> Any:
    class Engine(ReferenceEngine):
        def load_model(self, checkpoint: Path) -> ReferenceModel:
            return model(super().load_model(checkpoint).model)

    return Engine("attack")


def _frames() -> list[Any]:
    frame, frames = inspect.currentframe(), []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _connections() -> list[socket.socket]:
    return [value for value in gc.get_objects() if isinstance(value, socket.socket) and value.fileno() >= 0]
