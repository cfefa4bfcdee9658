"""The process in which an engine under test runs: it sees bytes that the judge sent, and nothing of the judge.

``python -m conformance.host FD`` imports torch once, then forks a process for each engine that is asked for; an engine
may crash, hang or patch what it likes, and the judge goes on. This isolates mistakes and tricks inside Python and its
libraries. It is no sandbox: the process runs as the same user.
"""

import os
import socket
import sys
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from reference.quantization import Fp8Weight, Int4Weight

from .engine import OPTIONAL_MODEL_MEMBERS, OPTIONAL_SESSION_MEMBERS, EngineError, find_engine, move
from .wire import WireError, receive, send

GUARD_BYTES = 512  # on both sides of an input; keeps it aligned
GUARD_BYTE = 0xFF  # NaN in every floating dtype, -1 in integers


class Host:
    """What an engine's process does for the judge; each public method is a call."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.model: Any = None
        self.sessions: dict[int, Any] = {}
        self.memory: dict[int, Tensor] = {}  # of each input: the same for every call, as what a server reuses

    def load(self, name: str, device: str | None) -> dict[str, Any]:
        """Find the engine and describe it."""
        self.engine = find_engine(name)
        if device is not None:
            move(self.engine, device)
        rows = self.engine.ops()
        if not hasattr(rows, "keys") or not all(isinstance(row, str) for row in rows):
            raise EngineError(f"engine: ops() of {name} returned a {type(rows).__name__}; want a mapping of row names")
        return {
            "name": str(self.engine.name),
            "profile": str(self.engine.profile),
            "device": str(torch.device(self.engine.device)),
            "rows": sorted(rows),
        }

    def op(self, name: str, inputs: list[Any]) -> dict[str, Any]:
        """Run a row on guarded copies of the inputs."""
        device = torch.device(self.engine.device)
        storages: list[Tensor] = []
        sent = [self._placed(value, device, storages) for value in inputs]
        function = self.engine.ops()[name]
        with PoisonedAllocations():
            output = function(*sent)
        parts = output if isinstance(output, tuple) else (output,)
        shared = {storage.untyped_storage().data_ptr() for storage in storages}
        tensors = [part for part in parts if isinstance(part, Tensor)]
        aliases = [part.numel() > 0 and part.untyped_storage().data_ptr() in shared for part in tensors]
        devices = [str(part.device) for part in tensors]
        return {"output": output, "storages": storages, "shares_memory": any(aliases), "devices": devices}

    def op_on_repeated(
        self, name: str, inputs: list[Any], repeated: list[int], times: int, rows: list[int]
    ) -> dict[str, Any]:
        """Run a row on inputs some of which are repeated along their first axis; some rows of the result, its shape.

        What is made here crosses no process, so it may be larger than 2**31 elements.
        """
        device = torch.device(self.engine.device)
        sent = [value.to(device) if isinstance(value, Tensor) else value for value in inputs]
        for number in repeated:
            sent[number] = sent[number].repeat(times, *[1] * (sent[number].ndim - 1))
        with PoisonedAllocations():
            output = self.engine.ops()[name](*sent)
        if not isinstance(output, Tensor) or len(output) <= max(rows):
            return {"output": output, "shape": []}
        return {"output": output[torch.tensor(rows, device=output.device)], "shape": list(output.shape)}

    def _placed(self, value: Any, device: torch.device, storages: list[Tensor]) -> Any:
        """Copy an input to the engine's device, with guard bytes around it."""
        if isinstance(value, Fp8Weight):
            parts = [self._placed(part, device, storages) for part in (value.data, value.scale_inv)]
            return Fp8Weight(parts[0], parts[1], value.block)
        if isinstance(value, Int4Weight):
            parts = [self._placed(part, device, storages) for part in (value.data, value.scale)]
            return Int4Weight(parts[0], parts[1], value.group)
        if not isinstance(value, Tensor):
            return value
        if device.type == "mps" and value.dtype == torch.float64:  # MPS has none
            device = torch.device("cpu")
        size = value.numel() * value.element_size()
        storage = self._memory(len(storages), GUARD_BYTES + size + GUARD_BYTES, device).fill_(GUARD_BYTE)
        storages.append(storage)
        inside = storage[GUARD_BYTES : GUARD_BYTES + size]
        inside.copy_(value.contiguous().reshape(-1).view(torch.uint8))
        return inside.view(value.dtype).reshape(value.shape)

    def _memory(self, number: int, num_bytes: int, device: torch.device) -> Tensor:
        """Bytes for an input, at the address where its like was before: an address says nothing of a content."""
        memory = self.memory.get(number)
        if memory is None or memory.device.type != device.type or len(memory) < num_bytes:
            memory = self.memory[number] = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        return memory[:num_bytes]

    def load_model(self, checkpoint: str) -> list[str]:
        """Load a model; the names of its optional members."""
        from pathlib import Path

        self.sessions = {}
        self.model = self.engine.load_model(Path(checkpoint))
        return [member for member in OPTIONAL_MODEL_MEMBERS if hasattr(self.model, member)]

    def new_session(self, number: int) -> list[str]:
        """Open a context; the names of its optional members."""
        with PoisonedAllocations():
            session = self.sessions[number] = self.model.new_session()
        return [member for member in OPTIONAL_SESSION_MEMBERS if hasattr(session, member)]

    def close_session(self, number: int) -> None:
        self.sessions.pop(number, None)

    def session(self, number: int, member: str, args: list[Any]) -> Any:
        session = self.sessions[number]
        return {"output": getattr(session, member)(*args), "length": int(session.length)}

    def batch(self, numbers: list[int], token_ids: list[list[int]]) -> Any:
        """Extend several sessions in one step."""
        sessions = [self.sessions[number] for number in numbers]
        logits = list(self.model.extend_batch(sessions, token_ids))
        return {"output": logits, "lengths": [int(session.length) for session in sessions]}

    def generate(self, prompt_ids: list[int], max_new_tokens: int, options: dict[str, Any]) -> dict[str, Any]:
        result = self.model.generate(prompt_ids, max_new_tokens, **options)
        names = ("tokens", "drafted_per_position", "accepted_per_position")
        return {name: [int(number) for number in getattr(result, name)] for name in names}

    def call_model(self, member: str, args: list[Any]) -> Any:
        """Call an optional member of the model."""
        return getattr(self.model, member)(*args)


class PoisonedAllocations(TorchFunctionMode):
    """Memory that torch hands out uninitialised holds NaN: what an engine forgets to write, the judge sees."""

    ALLOCATORS = (torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self.ALLOCATORS and result.device.type != "meta" and result.dtype != torch.bool:
            memory = torch.zeros(0, dtype=torch.uint8, device=result.device)
            memory.set_(result.untyped_storage())
            memory.fill_(GUARD_BYTE)
        return result


def serve(connection: socket.socket) -> None:
    """Answer calls until the judge hangs up."""
    host = Host()
    while True:
        try:
            number, call, _ = receive(connection)
        except EOFError:
            return
        try:
            answer = {"value": getattr(host, call["call"])(**call["args"])}
        except NotImplementedError as refusal:
            answer = {"unsupported": str(refusal)}
        except EngineError as error:
            answer = {"refused": str(error)}
        except Exception as error:
            answer = {"raised": f"{type(error).__name__}: {error}"}
        try:
            send(connection, number, answer)
        except TypeError as error:
            send(connection, number, {"foreign": str(error)})


def main() -> None:
    """Fork a process for every connection that comes over the control socket; report how processes ended."""
    control = socket.socket(fileno=int(sys.argv[1]))
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 64, 2)
        if not message:
            return
        word, _, argument = message.decode().partition(" ")
        if word == "reap":
            _, status = os.waitpid(int(argument), 0)
            control.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            continue
        process = os.fork()
        if process == 0:
            control.close()
            _run(socket.socket(fileno=descriptors[0]), descriptors[1])
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(b"%d\n" % process)


def _run(connection: socket.socket, log: int) -> None:
    """Be an engine's process, with its output in a file, and end."""
    os.setsid()  # so that whatever it starts can be ended with it
    code = 1
    try:
        _, start, _ = receive(connection)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        sys.path[:] = start["path"]
        torch.set_num_threads(start["threads"])
        serve(connection)
        code = 0
    except (WireError, OSError) as error:
        print(f"the judge is gone: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
