"""An engine whose rows each break the contract in another way, and engines that cannot be loaded."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from reference.engine import ReferenceEngine
from reference.operators import Operators

R = Operators()


class Odd(ReferenceEngine):
    """One wrong row, under the name of ``rms_norm``."""

    def __init__(self, row: Callable[..., Any]) -> None:
        super().__init__("odd")
        self.row = row

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {"rms_norm": self.row, "router": R.router}


def _raising(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    raise RuntimeError("no kernel for this shape")


def _sleeping(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    time.sleep(600)
    return x


def _prints_and_dies(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    print("about to divide by zero", flush=True)
    raise SystemExit(3)


right = Odd(R.rms_norm)
in_place = Odd(lambda x, weight, eps: x.mul_(2).clone())
raising = Odd(_raising)
aliasing = Odd(lambda x, weight, eps: x)
short = Odd(lambda x, weight, eps: x[:1].clone())
wide = Odd(lambda x, weight, eps: x.double())
nan = Odd(lambda x, weight, eps: x * math.nan)
nothing = Odd(lambda x, weight, eps: None)
array = Odd(lambda x, weight, eps: numpy.zeros(3))
pair = Odd(lambda x, weight, eps: (x.clone(), x.clone()))
sleeping = Odd(_sleeping)
dying = Odd(_prints_and_dies)


class WrongRows(ReferenceEngine):
    def ops(self) -> Any:
        return [torch.relu]


wrong_rows = WrongRows()
without_members = object()


def ends_while_loading() -> Any:
    raise SystemExit(7)
