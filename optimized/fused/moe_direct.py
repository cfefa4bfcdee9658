"""Launches of ``moe_direct_kernel``, and what it takes."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..dependent_launch import COMPILES
from .moe_direct_kernel import down_direct_kernel, up_direct_kernel
from .moe_direct_tiles import COLUMNS
from .moe_math import GROUP, INT4, PLAIN
from .moe_stored import Stored

X_IN_WORD = 4  # bfloat16 in 64 bits
OUTPUTS = 32  # the most of a program; divides the 128 that share a scale in FP8


def fits(x: Tensor, per_token: int | None, *weights: Stored, rounds: bool = False) -> bool:
    """Whether the kernels take rows of ``x`` and these weights: bfloat16, whole groups and words, whole tiles.

    Args:
        per_token: experts of each row; None: one weight has every row.
        rounds: whether rows are rounded to e4m3, which is done where a program has one of them.
    """
    is_read = COMPILES.value and x.dtype == torch.bfloat16 and x.stride(0) % X_IN_WORD == 0
    is_read = is_read and x.storage_offset() % X_IN_WORD == 0
    is_met = len(x) <= COLUMNS.value if per_token is None else per_token & (per_token - 1) == 0
    is_met = is_met and not (rounds and per_token is None and len(x) > 1)
    return is_read and is_met and all(_fits(weight) for weight in weights)


def _fits(weight: Stored) -> bool:
    if weight.kind == PLAIN.value:
        return False
    codes = weight.codes
    inputs = codes.shape[2] * (2 if weight.kind == INT4.value else 1)
    in_words = codes.storage_offset() % 16 == 0 and all(stride % 16 == 0 for stride in codes.stride()[:2])
    return in_words and inputs % GROUP.value == 0 and codes.shape[1] % OUTPUTS == 0


def up_direct(
    x: Tensor,
    ids: Tensor | None,
    gate: Stored,
    up: Stored,
    limit: float,
    launch: Mapping[str, Any],
    ids_are_older: bool = False,
    rounds: bool = False,
) -> Tensor:
    """[T A, F] bfloat16 of [T, D]; without ids, one expert has every row.

    Args:
        rounds: x to e4m3 in groups of 128.
        ids_are_older: whether another kernel was started after the one that wrote ids, and waited for it.
    """
    num_tokens, width = len(x), gate.codes.shape[1]
    slots, rows = (num_tokens, num_tokens) if ids is None else (ids.numel(), 1)
    inner = torch.empty((slots, width), dtype=x.dtype, device=x.device)
    words, gate_words, up_words = _words_of_x(x), _words(gate), _words(up)
    launch = _sized(x, rows, 1, launch)
    up_direct_kernel[(1 if ids is None else slots, width // launch["BLOCK_F"])](
        words, words if ids is None else ids, gate_words, up_words, gate.scale, up.scale, inner, words.stride(0),
        *gate_words.stride()[:2], *gate.scale.stride()[:2], width, slots // num_tokens, rows, limit,
        ROUTED=ids is not None, IDS_OLDER=ids_are_older, KIND=gate.kind, ROUNDS=rounds, CLAMP=limit > 0,
        **launch,
    )  # fmt: skip
    return inner


def down_direct(
    x: Tensor,
    ids: Tensor | None,
    weights: Tensor | None,
    weight: Stored,
    launch: Mapping[str, Any],
    rounds: bool = False,
) -> Tensor:
    """[T, D] bfloat16 of [T A, F], added up over each token's experts; without ids, a plain product."""
    num_outputs = weight.codes.shape[1]
    num_tokens, per_token = (len(x), 1) if ids is None else ids.shape
    y = torch.empty((num_tokens, num_outputs), dtype=x.dtype, device=x.device)
    words, codes = _words_of_x(x), _words(weight)
    programs, rows = (1, num_tokens) if ids is None else (num_tokens, 1)
    launch = _sized(x, rows, per_token, launch)
    down_direct_kernel[(programs, num_outputs // launch["BLOCK_D"])](
        words, words if ids is None else ids, words if weights is None else weights, codes, weight.scale, y,
        words.stride(0), *codes.stride()[:2], *weight.scale.stride()[:2], num_outputs, rows,
        ROUTED=ids is not None, KIND=weight.kind, ROUNDS=rounds, A=per_token, **launch,
    )  # fmt: skip
    return y


def _words_of_x(x: Tensor) -> Tensor:
    return x.view(torch.int64)


def _words(weight: Stored) -> Tensor:
    return weight.codes.view(torch.int32)


def _sized(x: Tensor, rows: int, per_token: int, launch: Mapping[str, Any]) -> dict[str, Any]:
    """A launch for so many rows of a program, whose blocks divide the groups of a row: a short row takes smaller ones,
    and fewer warps.
    """
    groups = x.shape[1] // GROUP.value
    at_once = math.gcd(launch["BLOCK_G"], groups)
    sized = {"BLOCK_G": at_once, "STEPS": groups // at_once, "ROWS": 1 if rows == 1 else COLUMNS.value}
    return {**launch, **sized, "num_warps": min(launch["num_warps"], per_token * at_once)}
