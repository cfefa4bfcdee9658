"""llama.cpp's samplers, in the order that the row asks for; its own programs put the temperature last."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .ggml_llama_cpp_context import bindings


class Chain:
    """A chain of its samplers; temperature 0 is its greedy sampler."""

    def __init__(self, temperature: float, top_k: int, top_p: float, min_p: float, seed: int = 0) -> None:
        library = bindings()
        self.handle = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        weakref.finalize(self, library.llama_sampler_free, self.handle)
        if temperature == 0:
            samplers = [library.llama_sampler_init_greedy()]
        else:
            samplers = [
                library.llama_sampler_init_temp(temperature),
                library.llama_sampler_init_top_k(top_k),
                library.llama_sampler_init_top_p(top_p, 1),
                library.llama_sampler_init_min_p(min_p, 1),
                library.llama_sampler_init_dist(seed),
            ]
        for sampler in samplers:
            library.llama_sampler_chain_add(self.handle, sampler)

    def apply(self, logits: Tensor) -> tuple[int, Any]:
        """The token that is drawn from logits [V], and what was left to draw from."""
        library = bindings()
        data = (library.llama_token_data * len(logits))()
        for token, logit in enumerate(logits.float().tolist()):
            data[token] = library.llama_token_data(token, logit, 0.0)
        candidates = library.llama_token_data_array(data, len(logits), -1, False)
        library.llama_sampler_apply(self.handle, candidates)
        left = candidates.data[: candidates.size]
        return left[candidates.selected].id, left

    def draw(self, logits: Tensor) -> int:
        token, _ = self.apply(logits)
        return token


def sampling(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Row by row; what its last sampler draws from."""
    chain = Chain(temperature, top_k, top_p, min_p)
    if temperature == 0:
        chosen = torch.tensor([chain.draw(row) for row in logits], dtype=torch.int64)
        return functional.one_hot(chosen, logits.shape[-1]).float()
    probabilities = torch.zeros(logits.shape)
    for row, values in enumerate(logits):
        for candidate in chain.apply(values)[1]:
            probabilities[row, candidate.id] = candidate.p
    return probabilities
