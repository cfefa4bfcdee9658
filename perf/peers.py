"""What PyTorch offers for the same work, timed by the same timer: yardsticks, each labelled, none checked here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention, silu

from .case import Args, Case

Call = Callable[[], Any]


@dataclass(frozen=True)
class Peer:
    """Another implementation.

    Attributes:
        prepare: from a case's arguments to a call; conversions happen here, outside of the timing. Whatever it raises
            is the reason why this peer has no time.
        dtype: that it multiplies in; "": as the case.
        bytes_share: what it must move, as a share of what the case must.
    """

    name: str
    prepare: Callable[[Args], Call]
    dtype: str = ""
    bytes_share: float = 1.0


def peers_of(case: Case) -> tuple[Peer, ...]:
    """Those that do the work of this case."""
    if case.op == "linear":
        return (Peer("torch.mm (cuBLAS)", _mm), Peer("torch._scaled_mm 1x128/128x128 FP8", _scaled_mm, "fp8", 0.5))
    if case.op == "experts" and case.dtype == "bf16":
        return (Peer("torch._grouped_mm, 3 GEMMs and SwiGLU only", _grouped_mm),)
    if case.op == "decode_attention":
        return tuple(Peer(f"SDPA {name}", _sdpa(name, _contiguous)) for name in BACKENDS)
    if case.op in ("prefill_attention", "attention"):
        return tuple(Peer(f"SDPA {name}", _sdpa(name, _as_given)) for name in BACKENDS)
    return ()


BACKENDS = {"cuDNN": "CUDNN_ATTENTION", "FA2": "FLASH_ATTENTION"}


def _mm(args: Args) -> Call:
    x, weight = args
    return lambda: x @ weight.T


def _scaled_mm(args: Args) -> Call:
    """FP8 with a scale for 128 neighbours of a row and for 128x128 weights: half the bytes of the bf16 case."""
    x, weight = args
    x = pad(x, (0, 0, 0, -len(x) % 4))  # rows in fours: the scales' leading dimension
    rows, columns = weight.shape[0] // 128, weight.shape[1] // 128
    x_codes, x_scale = _codes(x.view(len(x), columns, 128), (2,))
    w_codes, w_scale = _codes(weight.view(rows, 128, columns, 128), (1, 3))
    x_codes, w_codes = x_codes.view(x.shape), w_codes.view(weight.shape)
    a_scale = x_scale.view(len(x), columns).t().contiguous().t()  # the rows' axis has stride 1
    b_scale = w_scale.view(rows, columns).contiguous().t()
    return lambda: torch._scaled_mm(
        x_codes, w_codes.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16, use_fast_accum=False
    )


def _codes(blocks: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    scale = blocks.abs().amax(dim=axes, keepdim=True).float().clamp(min=1e-12) / 448
    return (blocks.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale


def _grouped_mm(args: Args) -> Call:
    """Rows already gathered in the experts' order; no scatter, no sum over experts."""
    x, ids, _, gate, up, down, _ = args
    order = ids.flatten().argsort()
    routed = x[order // ids.shape[1]].contiguous()
    ends = torch.bincount(ids.flatten(), minlength=len(gate)).cumsum(0).to(torch.int32)
    gate_t, up_t, down_t = (weight.transpose(-1, -2) for weight in (gate, up, down))

    def call() -> Tensor:
        inner = silu(torch._grouped_mm(routed, gate_t, offs=ends)) * torch._grouped_mm(routed, up_t, offs=ends)
        return torch._grouped_mm(inner, down_t, offs=ends)

    return call


def _sdpa(backend: str, inputs: Callable[[Args], tuple[Tensor, Tensor, Tensor, int | None]]) -> Callable[[Args], Call]:
    def prepare(args: Args) -> Call:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        chosen = getattr(SDPBackend, BACKENDS[backend])
        q, k, v, window = inputs(args)
        T, S = len(q), len(k)
        if window is not None and T < S and T > 1:
            raise ValueError("several queries in a window need a mask")
        if window is not None and T == S and window < S:
            raise ValueError("no window in scaled_dot_product_attention")
        if T > 1 and T < S:
            raise ValueError("its causal mask is aligned to the first key, ours to the last")
        if window is not None:
            k, v = k[-window:].contiguous(), v[-window:].contiguous()
        q_, k_, v_ = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, N, T, H]

        def call() -> Tensor:
            with sdpa_kernel(chosen):
                return scaled_dot_product_attention(q_, k_, v_, is_causal=T > 1, enable_gqa=True)

        return call

    return prepare


def _as_given(args: Args) -> tuple[Tensor, Tensor, Tensor, int | None]:
    return args[0], args[1], args[2], next((arg for arg in args[-1:] if arg is not None), None)


def _contiguous(args: Args) -> tuple[Tensor, Tensor, Tensor, int | None]:
    """Pages in order, as one tensor: kinder to the peer than paging."""
    q, k_cache, v_cache, table, _, window = args[:6]
    k, v = (cache[table[0].long()].flatten(0, 1) for cache in (k_cache, v_cache))
    return q, k, v, window
