"""What wrong operators are made from."""

import torch
from torch import Tensor

from reference.operators import Operators

R = Operators()


def wide(x: Tensor) -> Tensor:
    """In float32 or wider, as every operator computes."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def bf16(x: Tensor) -> Tensor:
    """Rounded to bfloat16, in the dtype that it had."""
    return x.bfloat16().to(x.dtype)


def fp16(x: Tensor) -> Tensor:
    """Rounded to float16, in the dtype that it had."""
    return x.half().to(x.dtype)


def tf32(x: Tensor) -> Tensor:
    """Rounded to the ten fraction bits of TF32, in the dtype that it had."""
    bits = x.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)
