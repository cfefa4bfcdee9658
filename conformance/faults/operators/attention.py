"""Wrong ``attention``."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .arithmetic import R, bf16, wide

PAGE = 16
Weigh = Callable[[Tensor, Tensor], Tensor]  # scores [N, T, S] and what is visible [T, S], to weights


def visible(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    distance = query_positions[:, None] - key_positions[None, :]
    seen = (distance >= 0) & (key_positions >= 0)
    return seen if window is None else seen & (distance < window)


def softmax(scores: Tensor, seen: Tensor) -> Tensor:
    return scores.masked_fill(~seen, -math.inf).softmax(dim=-1).nan_to_num(0.0)


def by_group(head: int, group: int) -> int:
    return head // group


def attention_like(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    *,
    weigh: Weigh = softmax,
    kv_head: Callable[[int, int], int] = by_group,
) -> Tensor:
    """Attention with one of its parts exchanged; ``seen`` [T, S] is what a query may look at."""
    num_heads = q.shape[-2]
    heads = [kv_head(head, num_heads // k.shape[-2]) for head in range(num_heads)]
    scores = torch.einsum("...tnh,...snh->...nts", wide(q), wide(k)[..., heads, :]) * q.shape[-1] ** -0.5
    return torch.einsum("...nts,...snh->...tnh", weigh(scores, seen), wide(v)[..., heads, :]).to(q.dtype)


def with_window(change: Callable[[int | None], int | None]) -> Callable[..., Tensor]:
    """The reference's attention with another window."""

    def attention(*args: Any) -> Tensor:
        *rest, window = args
        return R.attention(*rest, change(window))

    return attention


def with_kv_head(kv_head: Callable[[int, int, int], int]) -> Callable[..., Tensor]:
    """Query heads read other key-value heads: of (head, group, number of key-value heads)."""

    def attention(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
        count = k.shape[-2]
        seen = visible(qp, kp, window)
        return attention_like(q, k, v, seen, kv_head=lambda head, group: kv_head(head, group, count))

    return attention


def weighed_by(weigh: Weigh) -> Callable[..., Tensor]:
    """Scores become weights in another way."""

    def attention(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
        return attention_like(q, k, v, visible(qp, kp, window), weigh=weigh)

    return attention


def _up_to_a_page(window: int | None) -> int | None:
    return None if window is None else -(-window // PAGE) * PAGE


attention_window_one_more = with_window(lambda window: None if window is None else window + 1)
attention_window_one_fewer = with_window(lambda window: None if window is None else max(window - 1, 1))
attention_window_always = with_window(lambda window: window or 512)
attention_window_never = with_window(lambda window: None)
attention_window_of_a_quarter = with_window(lambda window: None if window is None else max(window // 4, 1))
attention_window_in_pages = with_window(_up_to_a_page)

attention_heads_interleaved = with_kv_head(lambda head, group, count: head % count)
attention_first_kv_head = with_kv_head(lambda head, group, count: 0)
attention_groups_of_the_other_kind = with_kv_head(
    lambda head, group, count: min(head // max(group * 2 // 3, 1), count - 1)
)
attention_kv_heads_reversed = with_kv_head(lambda head, group, count: count - 1 - head // group)


def _bf16(scores: Tensor, seen: Tensor) -> Tensor:
    return bf16(softmax(bf16(scores), seen))


def _without_maximum(scores: Tensor, seen: Tensor) -> Tensor:
    powers = scores.exp() * seen
    return powers / powers.sum(dim=-1, keepdim=True)


def _with_a_sink(scores: Tensor, seen: Tensor) -> Tensor:
    """One more key of score 0 whose value is nothing."""
    return softmax(torch.cat((scores, torch.zeros_like(scores[..., :1])), dim=-1), _one_more_seen(seen))[..., :-1]


def _one_more_seen(seen: Tensor) -> Tensor:
    return torch.cat((seen, torch.ones_like(seen[..., :1])), dim=-1)


def _masked_after(scores: Tensor, seen: Tensor) -> Tensor:
    """Hidden keys get no weight, and yet count in the sum."""
    return scores.softmax(dim=-1) * seen


def _capped(scores: Tensor, seen: Tensor) -> Tensor:
    return softmax(50 * (scores / 50).tanh(), seen)


def _splits_averaged(scores: Tensor, seen: Tensor) -> Tensor:
    """Each half of the keys has a softmax of its own, and both count the same."""
    half = scores.shape[-1] // 2
    halves = [softmax(scores[..., a:b], seen[..., a:b]) for a, b in ((0, half), (half, None))]
    return torch.cat(halves, dim=-1) / 2


def _last_page_lost(scores: Tensor, seen: Tensor) -> Tensor:
    """The last page is read only when it is full."""
    whole = scores.shape[-1] // PAGE * PAGE
    lost = torch.arange(scores.shape[-1]) >= (whole or scores.shape[-1])
    return softmax(scores, seen & ~lost)


def _of_root_heads(scores: Tensor, seen: Tensor) -> Tensor:
    """1 / sqrt(N) for 1 / sqrt(H); relative to a head of 128, so that both are numbers of this model."""
    return softmax(scores * (128 / scores.shape[-3]) ** 0.5, seen)


attention_softmax_in_bf16 = weighed_by(_bf16)
attention_without_maximum = weighed_by(_without_maximum)
attention_with_a_sink = weighed_by(_with_a_sink)
attention_masked_after_softmax = weighed_by(_masked_after)
attention_scores_capped = weighed_by(_capped)
attention_splits_averaged = weighed_by(_splits_averaged)
attention_last_page_lost = weighed_by(_last_page_lost)
attention_scale_of_heads = weighed_by(_of_root_heads)
attention_reads_empty = weighed_by(softmax)  # 0 * NaN is NaN


def attention_sees_next(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    return R.attention(q, k, v, qp + 1, kp, None if window is None else window + 1)


def attention_sees_all_of_a_page(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    """Causal between pages only."""
    return R.attention(q, k, v, qp // PAGE * PAGE + PAGE - 1, kp, None if window is None else window + PAGE)


def attention_not_itself(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    seen = visible(qp, kp, window) & ((qp[:, None] != kp[None, :]) | (qp[:, None] == 0))
    return attention_like(q, k, v, seen)


def attention_scale(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    return R.attention(q * 2**0.5, k, v, qp, kp, window)


def attention_unscaled(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    return R.attention(q * q.shape[-1] ** 0.5, k, v, qp, kp, window)


def attention_by_slot(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    return R.attention(q, k, v, qp, kp.sort().values, window)


def attention_values_one_slot_late(
    q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None
) -> Tensor:
    return R.attention(q, k, v.roll(1, dims=-3), qp, kp, window)


def attention_half_of_the_head(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    """Scores from the first half of each head."""
    half = torch.cat((q[..., : q.shape[-1] // 2], torch.zeros_like(q[..., q.shape[-1] // 2 :])), dim=-1)
    return R.attention(half, k, v, qp, kp, window)


def attention_position_in_window(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    """Sliding layers count positions from the start of a table as long as the window."""
    if window is None:
        return R.attention(q, k, v, qp, kp, window)
    return R.attention(q, k, v, qp % window, torch.where(kp < 0, kp, kp % window), window)


def attention_distance_in_int16(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    distance = (qp[:, None] - kp[None, :]).to(torch.int16)
    seen = (distance >= 0) & (kp >= 0)
    return attention_like(q, k, v, seen if window is None else seen & (distance < window))


def attention_positions_in_bf16(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    return R.attention(q, k, v, qp.bfloat16().long(), kp.bfloat16().long(), window)


def attention_keys_in_fp8(q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None) -> Tensor:
    """Keys and values in e4m3 with a scale of 1."""
    k, v = (x.clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) for x in (k, v))
    return R.attention(q, k, v, qp, kp, window)


def attention_scale_in_the_queries(
    q: Tensor, k: Tensor, v: Tensor, qp: Tensor, kp: Tensor, window: int | None
) -> Tensor:
    root = math.sqrt(q.shape[-1])
    return R.attention((wide(q) / root * root).to(q.dtype), k, v, qp, kp, window)
