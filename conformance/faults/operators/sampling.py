"""Wrong ``sampling`` and ``draw``."""

import torch
from torch import Tensor

from .arithmetic import R, bf16


def filtered(p: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The filters after the temperature, on probabilities."""
    return R.sampling(p.log().clamp(min=-1e30), 1.0, top_k, top_p, min_p)


def sampling_ignores_temperature(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return R.sampling(logits, 1.0 if temperature else 0.0, top_k, top_p, min_p)


def sampling_temperature_last(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The filters look at probabilities of temperature 1."""
    if temperature == 0:
        return R.sampling(logits, temperature, top_k, top_p, min_p)
    kept = R.sampling(logits, 1.0, top_k, top_p, min_p)
    return R.sampling(kept.log().clamp(min=-1e30), temperature, 0, 1.0, 0.0)


def sampling_ignores_top_k(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return R.sampling(logits, temperature, 0, top_p, min_p)


def sampling_ignores_top_p(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return R.sampling(logits, temperature, top_k, 1.0, min_p)


def sampling_ignores_min_p(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return R.sampling(logits, temperature, top_k, top_p, 0.0)


def sampling_one_fewer(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return R.sampling(logits, temperature, max(top_k - 1, 1) if top_k else 0, top_p, min_p)


def sampling_one_more(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return R.sampling(logits, temperature, top_k + 1 if top_k else 0, top_p, min_p)


def sampling_top_p_first(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    if temperature == 0:
        return R.sampling(logits, temperature, top_k, top_p, min_p)
    return filtered(R.sampling(logits, temperature, 0, top_p, 0.0), top_k, 1.0, min_p)


def sampling_min_p_first(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    if temperature == 0:
        return R.sampling(logits, temperature, top_k, top_p, min_p)
    return filtered(R.sampling(logits, temperature, 0, 1.0, min_p), top_k, top_p, 0.0)


def sampling_min_p_absolute(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The threshold is min_p itself, not its share of the largest probability; the largest always stays."""
    p = R.sampling(logits, temperature, top_k, top_p, 0.0)
    kept = p * ((p >= min_p) | (p == p.amax(dim=-1, keepdim=True)))
    return kept / kept.sum(dim=-1, keepdim=True)


def sampling_top_p_stops_early(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The token that crosses top_p is dropped, unless it is the first."""
    if temperature == 0 or top_p == 1:
        return R.sampling(logits, temperature, top_k, top_p, min_p)
    p = R.sampling(logits, temperature, top_k, 1.0, 0.0)
    ranked, order = p.sort(dim=-1, descending=True, stable=True)
    kept = ranked.cumsum(dim=-1) <= top_p
    kept[..., 0] = True
    left = torch.zeros_like(p).scatter(-1, order, ranked * kept)
    return filtered(left / left.sum(dim=-1, keepdim=True), 0, 1.0, min_p)


def sampling_not_renormalised(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return R.sampling(logits, temperature, 0, 1.0, 0.0) * (R.sampling(logits, temperature, top_k, top_p, min_p) > 0)


def sampling_last_token_never(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The last token of the vocabulary is taken for padding."""
    masked = logits.clone()
    masked[..., -1] = torch.finfo(logits.dtype).min
    return R.sampling(masked, temperature, top_k, top_p, min_p)


def sampling_in_bf16(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return bf16(R.sampling(logits, temperature, top_k, top_p, min_p))


def sampling_no_greedy(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return R.sampling(logits, temperature or 1.0, top_k, top_p, min_p)


def sampling_greedy_of_magnitude(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return R.sampling(logits if temperature else logits.abs(), temperature, top_k, top_p, min_p)


def draw_at_border(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    cumulative = probabilities.double().cumsum(dim=-1)
    return torch.searchsorted(cumulative, uniforms[:, None].double()).clamp(max=probabilities.shape[-1] - 1)[:, 0]


def draw_greedily(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    return probabilities.argmax(dim=-1)


def draw_uniformly(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Every possible token is as likely as any other."""
    possible = (probabilities > 0).double()
    return R.draw(possible / possible.sum(dim=-1, keepdim=True), uniforms)


def draw_from_the_end(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    return R.draw(probabilities, 1 - uniforms - 2.0**-53)


def draw_with_one_number(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """All rows share the first uniform number."""
    return R.draw(probabilities, uniforms[:1].expand_as(uniforms).contiguous())


def draw_beyond_the_sum(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Where rounding leaves a sum below 1, the last token of the vocabulary, possible or not."""
    cumulative = probabilities.double().cumsum(dim=-1)
    ids = torch.searchsorted(cumulative, uniforms[:, None].double(), right=True)[:, 0]
    return ids.clamp(max=probabilities.shape[-1] - 1)


def draw_in_fp16(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    return R.draw(probabilities.half().float(), uniforms)


def draw_by_float32_sums(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    cumulative = probabilities.float().cumsum(dim=-1)
    last = (probabilities > 0).long().cumsum(dim=-1).argmax(dim=-1)
    return torch.minimum(torch.searchsorted(cumulative, uniforms.float()[:, None], right=True)[:, 0], last)
