"""Run Triton's kernels on a CPU, with right numbers: its interpreter computes bfloat16 and FP8 on their bit patterns.

``interpret()`` switches the interpreter on and mends it: narrow values are widened before every operation and rounded
to nearest even after it, casts to FP8 saturate, as on a GPU. Triton reads the switch when a kernel is defined, so call
it before importing ``optimized.ops``; a process interprets, or compiles, never both.

Verified with Triton 3.6.0 and 3.7.1; tests/optimized/test_interpreter.py compares with torch.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

SWITCH = "TRITON_INTERPRET"


def interpret() -> None:
    """Switch the interpreter on, once.

    Raises:
        RuntimeError: Triton was imported before, and so compiles in this process.
    """
    if _mended:
        return
    if "triton.language" in sys.modules and os.environ.get(SWITCH) != "1":
        raise RuntimeError(f"optimized: Triton was imported before, to compile; want {SWITCH}=1 from the start")
    os.environ[SWITCH] = "1"
    _mend()
    _mended.append(True)


_mended: list[bool] = []


def _mend() -> None:
    import numpy as np
    import torch
    import triton.language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    torch_of = {
        tl.bfloat16: torch.bfloat16,
        tl.float16: torch.float16,
        tl.float32: torch.float32,
        tl.float64: torch.float64,
        tl.float8e4nv: torch.float8_e4m3fn,
        tl.float8e5: torch.float8_e5m2,
    }
    narrow_types = (tl.bfloat16, tl.float8e4nv, tl.float8e5)
    on_bits = (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift, np.where)
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle

    def to_torch(data: Any, dtype: Any) -> Any:
        array = np.ascontiguousarray(data)
        tensor = torch.from_numpy(array.reshape(-1).copy())
        return (tensor.view(torch_of[dtype]) if dtype in narrow_types else tensor).reshape(array.shape)

    def to_numpy(tensor: Any, dtype: Any) -> Any:
        if dtype not in narrow_types:
            return tensor.contiguous().numpy()
        bits = torch.int16 if tensor.element_size() == 2 else torch.uint8
        return tensor.contiguous().view(bits).numpy().view(interpreter._get_np_dtype(dtype))

    def rounded(tensor: Any, dtype: Any) -> Any:
        if dtype in (tl.float8e4nv, tl.float8e5):
            largest = torch.finfo(torch_of[dtype]).max
            tensor = torch.where(tensor.isnan(), tensor, tensor.float().clamp(-largest, largest))
        return tensor.to(torch_of[dtype])

    def widened(value: Any) -> Any:
        dtype = value.dtype.scalar
        is_bits = dtype in narrow_types and value.data.dtype != np.float32
        return to_torch(value.data, dtype).float().numpy() if is_bits else value.data

    def narrowed(array: Any, dtype: Any) -> Any:
        return to_numpy(rounded(torch.from_numpy(np.ascontiguousarray(array)), dtype), dtype)

    def cast(self: Any, source: Any, target: Any, rounding_mode: Any = None) -> Any:
        before, after = source.dtype.scalar, target.scalar
        if before == after:
            return handle(source.data, after)
        if before in torch_of and after in torch_of:
            return handle(to_numpy(rounded(to_torch(source.data, before), after), after), after)
        if before in narrow_types:
            return handle(widened(source).astype(interpreter._get_np_dtype(target)), after)
        if after in narrow_types:
            return handle(narrowed(source.data.astype(np.float32), after), after)
        return handle(source.data.astype(interpreter._get_np_dtype(target)), after)

    def over_narrow(count: int, original: Callable[..., Any]) -> Callable[..., Any]:
        """An operation of ``count`` operands, done in float32 where one of them is narrow."""

        def operation(self: Any, *args: Any) -> Any:
            operands, function = args[:count], args[count]
            if function in on_bits or not any(operand.dtype.scalar in narrow_types for operand in operands):
                return original(self, *args)
            dtype = operands[-1 if count == 3 else 0].dtype.scalar
            result = function(*map(widened, operands))
            if result.dtype == np.bool_:
                return handle(result, tl.int1)
            return handle(narrowed(result, dtype) if dtype in narrow_types else result, dtype)

        return operation

    def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if z.dtype.scalar not in narrow_types:
            return plain_fma(self, x, y, z)
        exact = widened(x).astype(np.float64) * widened(y) + widened(z)
        return handle(narrowed(exact, z.dtype.scalar), z.dtype.scalar)

    def dot(self: Any, a: Any, b: Any, total: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        return handle(np.matmul(widened(a), widened(b), dtype=total.data.dtype) + total.data, total.dtype.scalar)

    def with_index(tensor: Any, *scope: Any) -> None:
        plain_patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())  # numpy 2.4 makes no int of a one-element array

    def patch_once(fn: Any) -> Any:
        """Patches stay: undone after every call and made again in every function, they took half of the time."""
        if fn.__module__ not in patches:
            patches[fn.__module__] = plain_patch_lang(fn)
        return type(patches[fn.__module__])()  # nothing to undo

    def numpy_dtype(dtype: Any) -> Any:
        """Looked up once for each scalar type, and not in a table that is built for every look."""
        name = dtype.scalar.name
        if name not in numpy_dtypes:
            numpy_dtypes[name] = plain_numpy_dtype(dtype)
        return numpy_dtypes[name]

    def remember_blocks() -> None:
        """Block types and the shapes of tensors, of which a kernel makes thousands alike, are worked out once each."""
        plain_block, plain_tensor = tl.block_type.__init__, tl.tensor.__init__
        blocks: dict[Any, dict[str, Any]] = {}
        shapes: dict[Any, dict[str, Any]] = {}

        def block(self: Any, element_ty: Any, shape: Any) -> None:
            key = type(element_ty), element_ty.name, tuple(getattr(size, "value", size) for size in shape)
            if key not in blocks:
                plain_block(self, element_ty, shape)
                blocks[key] = dict(vars(self))
            vars(self).update(blocks[key], element_ty=element_ty)

        def tensor(self: Any, handle: Any, of: Any) -> None:
            key = tuple(of.shape) if of.is_block() else ()
            if key not in shapes:
                plain_tensor(self, handle, of)
                shapes[key] = {name: getattr(self, name) for name in ("shape", "numel")}
            vars(self).update(shapes[key], handle=handle, type=of, dtype=of.scalar)

        tl.block_type.__init__, tl.tensor.__init__ = block, tensor

    def check_overflow(self: Any, lhs: Any, rhs: Any, operation: Any) -> None:
        """Triton works out in ten operations whether whole numbers overflow, and asserts nothing unless it debugs."""
        if self.builder.options.debug:
            plain_check(self, lhs, rhs, operation)

    patches: dict[str, Any] = {}
    numpy_dtypes: dict[str, Any] = {}
    plain_patch_lang, plain_numpy_dtype = interpreter._patch_lang, interpreter._get_np_dtype
    plain_check = TritonSemantic.binary_op_sanitize_overflow_impl
    plain_fma, plain_patch = builder.create_fma, interpreter._patch_lang_tensor
    builder.cast_impl = cast
    builder.create_fp_to_fp = cast
    builder.unary_op = over_narrow(1, builder.unary_op)
    builder.binary_op = over_narrow(2, builder.binary_op)
    builder.ternary_op = over_narrow(3, builder.ternary_op)
    builder.create_fma = fma
    builder.create_dot = dot
    interpreter._patch_lang_tensor = with_index
    interpreter._patch_lang = patch_once
    interpreter._get_np_dtype = numpy_dtype
    TritonSemantic.binary_op_sanitize_overflow_impl = check_overflow
    remember_blocks()
