"""Engines in processes of their own: what crosses, what the guard refuses, and what happens when they die."""

import math
import time
from collections.abc import Callable

import pytest
import torch

from conformance.engine import EngineError
from conformance.guard import guarded, on_repeated
from conformance.isolation import EngineDiedError, EngineHungError, EngineProcess
from conformance.tolerance import ConformanceError
from conformance.wire import DTYPES, WireError, pack, unpack
from reference.operators import Operators
from reference.quantization import FORMATS

X, WEIGHT, EPS = torch.randn(3, 4), torch.zeros(4), 1e-5


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Callable[..., EngineProcess]:
    """Start an engine of odd_engines.py; ended with the test."""

    def engine(name: str, limit_s: float = 60) -> EngineProcess:
        process = EngineProcess(f"odd_engines:{name}", limit_s=limit_s)
        request.addfinalizer(process.stop)
        return process

    return engine


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_bit_of_a_tensor_crosses(dtype: torch.dtype) -> None:
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (2, 3, 5 * 8), dtype=torch.uint8)
    sent = raw.view(dtype).transpose(0, 1)
    got = unpack(*pack(sent))
    assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
    assert torch.equal(got.contiguous().view(torch.uint8), sent.contiguous().view(torch.uint8))


def test_structures_and_numbers_cross() -> None:
    fp8, int4 = (FORMATS[name].quantize(torch.randn(4, 256)) for name in ("fp8", "int4"))
    sent = {"a": [1, 2.5, None, True, "x"], 3: (math.inf, torch.zeros(0, 4), torch.tensor(7)), "w": (fp8, int4)}
    got = unpack(*pack(sent))
    assert got["a"] == sent["a"]
    assert got[3][0] == math.inf
    assert (got[3][1].shape, got[3][2].shape) == ((0, 4), ())
    for one, other in zip(got["w"], (fp8, int4), strict=True):
        assert type(one) is type(other)
        assert torch.equal(one.dequantize(), other.dequantize())
    assert math.isnan(unpack(*pack(math.nan)))


@pytest.mark.parametrize(
    ("header", "numbers"),
    [
        (b"{", b""),
        (b'{"is": "pickle"}', b""),
        (b'{"is": "tensor", "dtype": "float32", "shape": [2], "at": 0, "device": "cpu"}', b"1234"),
        (b'{"is": "tensor", "dtype": "float32", "shape": [-1], "at": 0, "device": "cpu"}', b"1234"),
        (b'{"is": "tensor", "dtype": "object", "shape": [1], "at": 0, "device": "cpu"}', b"1234"),
        (b'{"is": "tensor", "dtype": "float32", "shape": [1], "at": -4, "device": "cpu"}', b"1234"),
        (b'{"is": "list", "items": 3}', b""),
    ],
)
def test_what_is_no_message_is_refused(header: bytes, numbers: bytes) -> None:
    with pytest.raises(WireError, match="message: "):
        unpack(header, numbers)


def test_only_data_crosses() -> None:
    with pytest.raises(TypeError, match="a set does not cross"):
        pack({"a": {1}})


def test_the_guard_lets_a_right_row_through(start: Callable[..., EngineProcess]) -> None:
    process = start("right")
    assert process.description == {"name": "odd", "profile": "float32", "device": "cpu", "rows": ["rms_norm", "router"]}
    assert torch.equal(guarded("rms_norm", process)(X, WEIGHT, EPS), Operators().rms_norm(X, WEIGHT, EPS))
    ids, weights = guarded("router", process)(X, torch.randn(5, 4), torch.zeros(5), 2, 3.0)
    assert (ids.shape, weights.shape) == ((3, 2), (3, 2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("in_place", "rms_norm: changed tensor 0 of its arguments; want inputs left as they are"),
        ("raising", "rms_norm: raised RuntimeError: no kernel for this shape; want a result"),
        ("aliasing", "shares memory with an input"),
        ("short", r"shape is \(1, 4\); want \(3, 4\)"),
        ("wide", "dtype is torch.float64; want torch.float32"),
        ("nan", r"result is nan at \(0, 0\); want a finite number"),
        ("nothing", "returned a NoneType; want a tensor"),
        ("array", "returned what is not a tensor .a ndarray does not cross"),
        ("pair", "returned 2 values; want 1"),
    ],
)
def test_the_guard_refuses(start: Callable[..., EngineProcess], name: str, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        guarded("rms_norm", start(name))(X, WEIGHT, EPS)


def test_a_process_that_dies_is_named_with_its_last_words_and_started_again(
    start: Callable[..., EngineProcess],
) -> None:
    process = start("dying")
    with pytest.raises(EngineDiedError, match=r"(?s)rms_norm: its process ended with exit code 1.*about to divide"):
        guarded("rms_norm", process)(X, WEIGHT, EPS)
    guarded("router", process)(X, torch.randn(5, 4), torch.zeros(5), 2, 3.0)
    assert process.incarnation == 2


def test_a_process_that_hangs_is_ended_in_time(start: Callable[..., EngineProcess]) -> None:
    process = start("sleeping", limit_s=2)
    started = time.monotonic()
    process.begin_check()
    with pytest.raises(EngineHungError, match=r"rms_norm: no answer within the 2 s of a check"):
        guarded("rms_norm", process)(X, WEIGHT, EPS)
    assert time.monotonic() - started < 30
    process.begin_check()
    guarded("router", process)(X, torch.randn(5, 4), torch.zeros(5), 2, 3.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong_rows", r"ops\(\) of odd_engines:wrong_rows returned a list; want a mapping of row names"),
        ("without_members", "lacks name, profile, device, ops, load_model"),
        ("no_such_engine", "odd_engines has no 'no_such_engine'; want module:attribute"),
        ("ends_while_loading", "its process ended with exit code 1"),
    ],
)
def test_what_cannot_be_loaded_is_an_error_that_says_what_is_wanted(name: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        EngineProcess(f"odd_engines:{name}")


def test_digests_are_of_what_crossed_and_repeat_themselves(start: Callable[..., EngineProcess]) -> None:
    process = start("right")
    row, digests = guarded("rms_norm", process), []
    for x in (X, X, X + 1):
        process.begin_check()
        row(x, WEIGHT, EPS)
        digests.append(process.digests())
    assert digests[0] == digests[1]
    assert digests[0]["inputs"] != digests[2]["inputs"]
    assert digests[0]["outputs"] != digests[2]["outputs"]


def test_a_batch_that_is_too_large_to_send_is_repeated_in_the_engines_process(
    start: Callable[..., EngineProcess],
) -> None:
    process = start("right")
    rows = [0, 5, 8]
    got = on_repeated("rms_norm", process, (X, WEIGHT, EPS), (0,), 3, rows)
    assert torch.equal(got, Operators().rms_norm(X, WEIGHT, EPS)[[row % len(X) for row in rows]])
    with pytest.raises(ConformanceError, match="rms_norm: result has shape"):
        on_repeated("rms_norm", start("short"), (X, WEIGHT, EPS), (0,), 3, [0])
