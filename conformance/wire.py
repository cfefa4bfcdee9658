"""What the judge and the process of an engine say to each other, as bytes: JSON for the shape, raw bytes for numbers.

Reading it runs no code of the writer: an engine cannot hand the judge a pickle. Tensors cross as they are stored, so
that every bit arrives, with the device they were on.
"""

import json
import math
import socket
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reference.quantization import Fp8Weight, Int4Weight

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint8, torch.bool),
    )
}
LARGEST_HEADER, LARGEST_NUMBERS = 1 << 26, 1 << 36  # bytes of one message
PREFIX = struct.Struct("<QQQ")  # number of the message, lengths of the JSON and of the numbers after it


class WireError(ValueError):
    """Bytes that are not a message."""


def pack(value: Any) -> tuple[bytes, bytes]:
    """The JSON and the numbers of a message.

    Raises:
        TypeError: a type that does not cross, by name.
    """
    numbers = bytearray()
    return json.dumps(_packed(value, numbers)).encode(), bytes(numbers)


def unpack(header: bytes, numbers: bytes) -> Any:
    """What ``pack`` was given.

    Raises:
        WireError: it is not from ``pack``.
    """
    try:
        return _unpacked(json.loads(header), memoryview(bytearray(numbers)))
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        raise WireError(f"message: cannot be read ({error!r}); want what conformance.wire.pack writes") from error


def send(connection: socket.socket, number: int, value: Any) -> bytes:
    """Write one message; returns what its sha256 is taken of."""
    header, numbers = pack(value)
    connection.sendall(PREFIX.pack(number, len(header), len(numbers)) + header)
    connection.sendall(numbers)
    return header + numbers


def receive(connection: socket.socket) -> tuple[int, Any, bytes]:
    """Read one message: its number, what was packed, and what its sha256 is taken of.

    Raises:
        EOFError: the other side is gone.
        TimeoutError: the connection's own, if it has one.
        WireError: what came is not a message.
    """
    number, header_length, length = PREFIX.unpack(_exactly(connection, PREFIX.size))
    if header_length > LARGEST_HEADER or length > LARGEST_NUMBERS:
        raise WireError(
            f"message: announces {header_length} bytes of JSON and {length} of numbers; want at most "
            f"{LARGEST_HEADER} and {LARGEST_NUMBERS}"
        )
    header, numbers = _exactly(connection, header_length), _exactly(connection, length)
    return number, unpack(header, numbers), header + numbers


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 24))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _packed(value: Any, numbers: bytearray) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"is": "float", "text": repr(float(value))}
    if isinstance(value, Tensor):
        return _packed_tensor(value, numbers)
    if isinstance(value, Fp8Weight):
        parts = [_packed_tensor(value.data, numbers), _packed_tensor(value.scale_inv, numbers)]
        return {"is": "fp8", "parts": parts, "block": list(value.block)}
    if isinstance(value, Int4Weight):
        parts = [_packed_tensor(value.data, numbers), _packed_tensor(value.scale, numbers)]
        return {"is": "int4", "parts": parts, "group": value.group}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {"is": kind, "items": [_packed(item, numbers) for item in value]}
    if isinstance(value, Mapping):
        pairs = [[_packed(key, numbers), _packed(item, numbers)] for key, item in value.items()]
        return {"is": "mapping", "items": pairs}
    raise TypeError(f"a {type(value).__name__} does not cross between processes")


def _packed_tensor(value: Tensor, numbers: bytearray) -> dict[str, Any]:
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise TypeError(f"a tensor of {value.dtype} does not cross between processes")
    plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    at = len(numbers)
    numbers += plain.numpy().tobytes()
    return {"is": "tensor", "dtype": dtype, "shape": list(value.shape), "at": at, "device": str(value.device)}


def _unpacked(value: Any, numbers: memoryview) -> Any:
    if not isinstance(value, dict):
        return value
    kind = value["is"]
    if kind == "float":
        return float(value["text"])
    if kind == "tensor":
        dtype, shape, start = DTYPES[value["dtype"]], [int(size) for size in value["shape"]], int(value["at"])
        count = math.prod(shape)
        if min([*shape, start, 0]) < 0 or start + count * dtype.itemsize > len(numbers):
            raise WireError(f"message: a tensor of {shape} at byte {start} is not among its {len(numbers)} bytes")
        if count == 0:
            return torch.zeros(shape, dtype=dtype)
        piece = numbers[start : start + count * dtype.itemsize]
        return torch.frombuffer(piece, dtype=torch.uint8).clone().view(dtype).reshape(shape)
    if kind == "fp8":
        codes, scale = (_unpacked(part, numbers) for part in value["parts"])
        return Fp8Weight(codes, scale, tuple(value["block"]))
    if kind == "int4":
        codes, scale = (_unpacked(part, numbers) for part in value["parts"])
        return Int4Weight(codes, scale, value["group"])
    items = value["items"]
    if kind == "mapping":
        return {_unpacked(key, numbers): _unpacked(item, numbers) for key, item in items}
    unpacked = [_unpacked(item, numbers) for item in items]
    return tuple(unpacked) if kind == "tuple" else unpacked
