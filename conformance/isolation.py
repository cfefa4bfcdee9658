"""The judge's side of an engine's process: calls with a time limit, and what happens when they are not answered."""

import atexit
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from .engine import EngineError
from .tolerance import ConformanceError
from .wire import WireError, receive, send

CHECK_LIMIT_S = 600.0  # of one check; the slowest needs a tenth of it
LOG_LINES, LOG_BYTES = 15, 4096  # of its end, where the reason is


class EngineDiedError(BaseException):
    """The engine's process ended or spoke nonsense. Not an Exception: no smaller example is looked for."""


class EngineHungError(EngineDiedError):
    """The engine's process did not answer in time."""


class Unsupported(Exception):  # noqa: N818, not an error
    """The engine says that it does not do this."""


@dataclass(frozen=True)
class Call:
    """One call and its answer."""

    call: str
    args: dict[str, Any]
    value: Any


class _Nursery:
    """The process that engines are forked from; one for the life of the judge."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        command = [sys.executable, "-P", "-m", "conformance.host", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, start_new_session=True)
        theirs.close()
        self.control = ours
        atexit.register(self.close)

    def fork(self, log: int) -> tuple[int, socket.socket]:
        """A new process whose output goes to a file descriptor, and the connection to it."""
        ours, theirs = socket.socketpair()
        socket.send_fds(self.control, [b"fork"], [theirs.fileno(), log])
        theirs.close()
        return self._number(), ours

    def reap(self, process: int) -> int | None:
        """The exit code of a process that has ended, a signal negative; None if its own end cannot be learned."""
        try:
            self.control.sendall(b"reap %d" % process)
            return self._number()
        except (OSError, EngineDiedError):
            return None  # an engine killed the process that it came from

    def close(self) -> None:
        self.control.close()
        self.process.wait()

    def _number(self) -> int:
        answer = b""
        while not answer.endswith(b"\n"):
            part = self.control.recv(32)
            if not part:
                raise EngineDiedError("the process that engines are forked from has ended; run again")
            answer += part
        return int(answer)


_nursery: _Nursery | None = None


def _get_nursery() -> _Nursery:
    global _nursery
    if _nursery is None or _nursery.process.poll() is not None:
        _nursery = _Nursery()
    return _nursery


class EngineProcess:
    """An engine in a process of its own, started again after it died.

    Attributes:
        description: name, profile, device and rows, as the engine said when it was loaded.
        calls: of this check, in order; of operators only the last.
        incarnation: how often it was started; models and sessions of an earlier one are gone.

    Raises:
        EngineError: the engine cannot be found or used.
    """

    def __init__(self, engine: str, device: str | None = None, limit_s: float = CHECK_LIMIT_S) -> None:
        self.engine = engine
        self.device = device
        self.limit_s = limit_s
        self.incarnation = 0
        self._log: int | None = None
        self._process: int | None = None
        self._exit_code: int | None = None
        self.begin_check()
        try:
            self.description = self._start()
        except EngineDiedError as error:
            raise EngineError(f"engine: {engine} {error}") from error

    def begin_check(self) -> None:
        """Start the clock and the digests of a check."""
        self._deadline = time.monotonic() + self.limit_s
        self._inputs, self._outputs = hashlib.sha256(), hashlib.sha256()
        self.calls: list[Call] = []

    def digests(self) -> dict[str, str]:
        """sha256 of everything that the engine was given, and of everything that it returned, in this check."""
        return {"inputs": self._inputs.hexdigest(), "outputs": self._outputs.hexdigest()}

    def call(self, call: str, what: str, **args: Any) -> Any:
        """Have the engine do something.

        Args:
            call: a method of ``host.Host``; args: its arguments.
            what: the operator or member, for messages.

        Raises:
            ConformanceError: the engine raised, or returned what no engine may.
            Unsupported: it does not do this.
            EngineDiedError, EngineHungError: its process ended, or is late.
        """
        if self._process is None:
            self._start()
        answer = self._ask(call, args, what)
        if call == "op":
            self.calls.clear()  # of operators, the last call is enough
        self.calls.append(Call(call, args, answer.get("value")))
        if "value" in answer:
            return answer["value"]
        if "unsupported" in answer:
            raise Unsupported(answer["unsupported"])
        if "foreign" in answer:
            raise ConformanceError(f"{what}: returned what is not a tensor ({answer['foreign']}); want tensors")
        raise ConformanceError(f"{what}: raised {answer.get('raised') or answer.get('refused')}; want a result")

    def stop(self) -> None:
        """End the process and what it started."""
        if self._process is None:
            return
        process, self._process = self._process, None
        self._connection.close()
        for kill in (os.killpg, os.kill):  # the group, and itself if it has not yet made one
            with contextlib.suppress(ProcessLookupError):
                kill(process, signal.SIGKILL)
        self._exit_code = self._nursery.reap(process)

    def _start(self) -> Any:
        self._nursery = _get_nursery()
        if self._log is not None:
            os.close(self._log)
        self._log, name = tempfile.mkstemp(prefix="engine-")
        os.unlink(name)  # noqa: PTH108, the descriptor is all that is needed
        self._process, self._connection = self._nursery.fork(self._log)
        self._number = 0
        self.incarnation += 1
        self._connection.settimeout(self.limit_s)
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))  # small tensors: more threads cost more than they bring
        send(self._connection, 0, {"path": list(sys.path), "threads": threads})
        answer = self._ask("load", {"name": self.engine, "device": self.device}, "engine")
        if "value" not in answer:
            self.stop()
            raise EngineError(answer.get("refused") or f"engine: {self.engine} raised {answer.get('raised')}")
        return answer["value"]

    def _ask(self, call: str, args: dict[str, Any], what: str) -> dict[str, Any]:
        self._number += 1
        remaining_s = self._deadline - time.monotonic()
        try:
            if remaining_s <= 0:
                raise TimeoutError
            self._connection.settimeout(remaining_s)
            self._inputs.update(send(self._connection, self._number, {"call": call, "args": args}))
            number, answer, digested = receive(self._connection)
            if number != self._number or not isinstance(answer, dict):
                raise WireError(f"answered message {number}; want {self._number}")
        except TimeoutError:
            self.stop()
            raise EngineHungError(
                f"{what}: no answer within the {self.limit_s:g} s of a check; want one{self._last_words()}"
            ) from None
        except (OSError, EOFError) as error:
            self.stop()
            how = "" if self._exit_code is None else f" {_ending(self._exit_code)}"
            raise EngineDiedError(f"{what}: its process ended{how}; want a result{self._last_words()}") from error
        except WireError as error:
            self.stop()
            raise EngineDiedError(f"{what}: {error}; want one answer to each call{self._last_words()}") from error
        self._outputs.update(digested)
        return answer

    def _last_words(self) -> str:
        assert self._log is not None, "a process that was started has a log"
        size = os.fstat(self._log).st_size
        written = os.pread(self._log, LOG_BYTES, max(size - LOG_BYTES, 0))
        lines = written.decode(errors="replace").splitlines()
        return "".join(f"\n  | {line}" for line in lines[-LOG_LINES:])


def _ending(exit_code: int) -> str:
    return f"by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"with exit code {exit_code}"
