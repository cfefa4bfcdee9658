"""Sessions with one thing wrong: subclasses of the reference's ``ReferenceSession``."""

from typing import Any

import torch
from torch import Tensor

from reference.engine import ReferenceSession
from reference.model import Model

BLOCK = 16  # tokens that a prefix cache knows by one hash


def memory(model: Model) -> dict[str, Any]:
    """What all sessions of a model share."""
    held: dict[str, Any] = model.__dict__.setdefault("shared_by_sessions", {})
    return held


class ShiftedSession(ReferenceSession):
    """Positions of every chunk but the first are one too high."""

    shifted = False

    @property
    def length(self) -> int:
        return self.cache.length - self.shifted

    def extend(self, token_ids: list[int]) -> Tensor:
        if self.cache.length and not self.shifted:
            self.cache.length += 1
            self.shifted = True
        return super().extend(token_ids)

    def truncate(self, length: int) -> None:
        super().truncate(length + self.shifted)


class SharedSession(ReferenceSession):
    """Every session writes its first full layer to the same cache."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        first = next(iter(self.cache.layers))
        self.cache.layers[first] = memory(model).setdefault("layer", self.cache.layers[first])


class SharesARing(ReferenceSession):
    """Every session writes its first sliding layer to the same ring."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        ring = next(index for index, cache in self.cache.layers.items() if cache.capacity is not None)
        self.cache.layers[ring] = memory(model).setdefault("ring", self.cache.layers[ring])


class UnclearedPages(ReferenceSession):
    """A new session's full layers still hold the first positions of the one before."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        before = memory(model).get("newest")
        if before is not None:
            for index, cache in self.cache.layers.items():
                if cache.capacity is None:
                    held = before.cache.layers[index]
                    cache.k_SKH, cache.v_SKH = held.k_SKH[:3].clone(), held.v_SKH[:3].clone()
                    cache.positions_S = held.positions_S[:3].clone()
        memory(model)["newest"] = self


class PositionOfTheOther(ReferenceSession):
    """The first step after a change of sessions starts where the other session stood."""

    def extend(self, token_ids: list[int]) -> Tensor:
        other = memory(self.model).get("last", self)
        memory(self.model)["last"] = self
        own = self.cache.length
        self.cache.length = other.cache.length if other is not self and other.cache.length else own
        try:
            return super().extend(token_ids)
        finally:
            self.cache.length = own + len(token_ids)


class PageOfTheOther(ReferenceSession):
    """The first step after a change of sessions writes its values into the other session's full layers."""

    def extend(self, token_ids: list[int]) -> Tensor:
        other = memory(self.model).get("last", self)
        memory(self.model)["last"] = self
        logits = super().extend(token_ids)
        if other is not self:
            for index, cache in self.cache.layers.items():
                held = other.cache.layers[index]
                if cache.capacity is None and len(held.v_SKH) and len(cache.v_SKH):
                    held.v_SKH[-1] = cache.v_SKH[-1]
        return logits


class CachesPrefixes(ReferenceSession):
    """A context whose beginning was seen before takes what was computed for it; a key that says too little."""

    def extend(self, token_ids: list[int]) -> Tensor:
        seen: list[list[int]] = memory(self.model).setdefault("contexts", [])
        if self.length:
            return super().extend(token_ids)
        used = next((hit for earlier in seen if (hit := self.hit(token_ids, earlier)) is not None), token_ids)
        seen.append(list(token_ids))
        return super().extend(used)

    def hit(self, token_ids: list[int], earlier: list[int]) -> list[int] | None:
        """The tokens whose keys, values and logits are taken for ``token_ids``; None: nothing of the earlier ones."""
        raise NotImplementedError


class PrefixIgnoresTheLastToken(CachesPrefixes):
    """The hash leaves out the last token."""

    def hit(self, token_ids: list[int], earlier: list[int]) -> list[int] | None:
        return list(earlier) if len(token_ids) > 1 and token_ids[:-1] == earlier[:-1] else None


class PrefixByLength(CachesPrefixes):
    """Contexts of one length are one context."""

    def hit(self, token_ids: list[int], earlier: list[int]) -> list[int] | None:
        return list(earlier) if len(token_ids) == len(earlier) else None


class PrefixWithoutItsParent(CachesPrefixes):
    """A block is known by its own tokens, whatever comes before it."""

    def hit(self, token_ids: list[int], earlier: list[int]) -> list[int] | None:
        last = (len(token_ids) - 1) // BLOCK * BLOCK
        start = last - BLOCK
        if start < 0 or token_ids[start:last] != earlier[start:last]:
            return None
        return earlier[:last] + token_ids[last:]


class PrefixOneTooLong(CachesPrefixes):
    """One token more is taken from the cache than is shared."""

    def hit(self, token_ids: list[int], earlier: list[int]) -> list[int] | None:
        limit = min(len(token_ids), len(earlier)) - 1
        shared = next((i for i in range(limit) if token_ids[i] != earlier[i]), limit)
        return earlier[: shared + 1] + token_ids[shared + 1 :] if shared >= BLOCK // 2 else None


class LogitsOfTheChunkBefore(ReferenceSession):
    """A single token gets the logits of the token before it: they are read before the step has ended."""

    def extend(self, token_ids: list[int]) -> Tensor:
        logits = super().extend(token_ids)
        stale = self.__dict__.get("stale", logits[-1:])
        self.stale = logits[-1:]
        return stale.clone() if len(token_ids) == 1 else logits


class LogitsOfTheLastTokenOnly(ReferenceSession):
    """Every row of a chunk is that of its last token."""

    def extend(self, token_ids: list[int]) -> Tensor:
        logits = super().extend(token_ids)
        return logits[-1:].expand_as(logits).clone()


class LogitsRoundedInChunks(ReferenceSession):
    """Chunks of more than 32 tokens run in bfloat16."""

    def extend(self, token_ids: list[int]) -> Tensor:
        logits = super().extend(token_ids)
        return logits.bfloat16().to(logits.dtype) if len(token_ids) > 32 else logits


class ReplaysOldTokens(ReferenceSession):
    """A graph that was captured for a number of tokens reads the tokens it was captured with."""

    def extend(self, token_ids: list[int]) -> Tensor:
        captured = memory(self.model).setdefault("captured", {}).setdefault(len(token_ids), list(token_ids))
        return super().extend(captured)


class Drifts(ReferenceSession):
    """A buffer of partial sums that is never cleared: every call adds a little."""

    def extend(self, token_ids: list[int]) -> Tensor:
        calls = memory(self.model)["calls"] = memory(self.model).get("calls", 0) + 1
        return super().extend(token_ids) * (1 + 1e-3 * calls)


class RacesNowAndThen(ReferenceSession):
    """In every fifth call of many tokens, one row is its neighbour's."""

    def extend(self, token_ids: list[int]) -> Tensor:
        logits = super().extend(token_ids)
        calls = memory(self.model)["races"] = memory(self.model).get("races", 0) + 1
        if calls % 5 == 0 and len(logits) > 1:
            logits[-1] = logits[-2]
        return logits


class TruncatesBeyondTheEnd(ReferenceSession):
    """Keeping more tokens than there are keeps what there is, in silence."""

    def truncate(self, length: int) -> None:
        super().truncate(min(length, self.length))


# What is reported of the routing


class RoutingUnscaled(ReferenceSession):
    """The weights before their scaling."""

    def routing(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {
            index: (ids, weights / weights.sum(dim=-1, keepdim=True))
            for index, (ids, weights) in super().routing().items()
        }


class RoutingSorted(ReferenceSession):
    """Ids in rising order, weights as they were."""

    def routing(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {index: (ids.sort(dim=-1).values, weights) for index, (ids, weights) in super().routing().items()}


class RoutingOfTheLayerBefore(ReferenceSession):
    """Each layer reports its predecessor's choice."""

    def routing(self) -> dict[int, tuple[Tensor, Tensor]]:
        right = super().routing()
        layers = sorted(right)
        return {layer: right[layers[max(place - 1, 0)]] for place, layer in enumerate(layers)}


class RoutingOfTheLastToken(ReferenceSession):
    """Every token reports the choice of the last one."""

    def routing(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {
            index: (ids[-1:].expand_as(ids).clone(), weights[-1:].expand_as(weights).clone())
            for index, (ids, weights) in super().routing().items()
        }


class RoutingOfPhysicalExperts(ReferenceSession):
    """Ids of places, two of which have changed their experts."""

    def routing(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {
            index: (torch.where(ids == 0, 1, torch.where(ids == 1, 0, ids)), weights)
            for index, (ids, weights) in super().routing().items()
        }


class RoutingOfTheFirstStep(ReferenceSession):
    """What the first step chose, for as many tokens as there are now."""

    def routing(self) -> dict[int, tuple[Tensor, Tensor]]:
        right = super().routing()
        first = self.__dict__.setdefault("first_routing", right)

        def resized(old: Tensor, new: Tensor) -> Tensor:
            return old[torch.arange(len(new)) % len(old)]

        return {index: tuple(map(resized, first[index], right[index])) for index in right}  # type: ignore[misc]


class RoutingInBf16(ReferenceSession):
    """Weights rounded to bfloat16."""

    def routing(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {
            index: (ids, weights.bfloat16().to(weights.dtype)) for index, (ids, weights) in super().routing().items()
        }
