"""Models and sessions with one thing wrong around their operators; ``catalogue.py`` says who must notice."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.cache import LayerCache
from reference.engine import ReferenceEngine, ReferenceModel, ReferenceSession
from reference.generate import Generation


class StaleLayerCache(LayerCache):
    def truncate(self, length: int) -> None:
        """Forgets nothing."""


class StaleSession(ReferenceSession):
    """Keys and values of tokens that were taken back stay visible."""

    def truncate(self, length: int) -> None:
        for layer in self.cache.layers.values():
            layer.__class__ = StaleLayerCache
        self.cache.truncate(length)


class ShiftedSession(ReferenceSession):
    """Positions of every chunk but the first are one too high."""

    @property
    def length(self) -> int:
        return self.cache.length - hasattr(self, "shifted")

    def extend(self, token_ids: list[int]) -> Tensor:
        if self.cache.length and not hasattr(self, "shifted"):
            self.cache.length += 1
            self.shifted = True
        return super().extend(token_ids)

    def truncate(self, length: int) -> None:
        super().truncate(length + hasattr(self, "shifted"))


class ForgetfulSession(ReferenceSession):
    """The first position is lost as soon as a second chunk comes."""

    def extend(self, token_ids: list[int]) -> Tensor:
        for layer in self.cache.layers.values():
            layer.positions_S = layer.positions_S.clone()
            layer.positions_S[:1] = -1
        return super().extend(token_ids)


class SharedSession(ReferenceSession):
    """Every session writes its first full layer to the same cache."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        first = next(iter(self.cache.layers))
        self.cache.layers[first] = model.__dict__.setdefault("shared_layer", self.cache.layers[first])


def engine_with_session(session: type[ReferenceSession]) -> Any:
    class Model(ReferenceModel):
        def new_session(self) -> ReferenceSession:
            return session(self.model)

    return engine_with_model(Model)


def engine_with_model(model: type[ReferenceModel]) -> Any:
    class Engine(ReferenceEngine):
        def load_model(self, checkpoint: Path) -> ReferenceModel:
            return model(super().load_model(checkpoint).model)

    return Engine("wrong")


class UnscaledRopeModel(ReferenceModel):
    """Full layers without llama3 scaling."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        for layer in model.config.layers:
            size = layer.rotary_dim
            exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
            model._frequencies[layer.index] = layer.rope_theta**-exponents


class FirstDepthModel(ReferenceModel):
    """Every draft depth uses the weights of the first."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        depths = model.config.mtp_layers
        layer_of, first = model.weights.layer, depths[0].index
        model.weights.layer = lambda index: layer_of(first if index in {d.index for d in depths} else index)


class UnseededModel(ReferenceModel):
    def generate(
        self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, *args: Any, **options: Any
    ) -> Generation:
        options["seed"] = int(torch.randint(1 << 30, ()))
        return super().generate(prompt_ids, max_new_tokens, mtp, *args, **options)


class SecondBestModel(ReferenceModel):
    """The last token is the second best."""

    def generate(
        self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, *args: Any, **options: Any
    ) -> Generation:
        result = super().generate(prompt_ids, max_new_tokens, mtp, *args, **options)
        session = self.new_session()
        logits = session.extend(prompt_ids + result.tokens[:-1])[-1]
        result.tokens[-1] = int(logits.topk(2).indices[1])
        return result


class CountingModel(ReferenceModel):
    """The token after a prompt depends on how long the prompt is: a continued generation differs."""

    def generate(
        self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, *args: Any, **options: Any
    ) -> Generation:
        return super().generate(prompt_ids[: len(prompt_ids) // 4 * 4], max_new_tokens, mtp, *args, **options)
