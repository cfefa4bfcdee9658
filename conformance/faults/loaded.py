"""Loaded models with one thing wrong in what they do for their users: subclasses of ``ReferenceModel``."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reference.engine import ReferenceModel, ReferenceSession
from reference.generate import Generation

# Generation


class WithOptions(ReferenceModel):
    """Calls the reference's ``generate`` with other arguments."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        """The arguments that are used instead, by name."""
        raise NotImplementedError

    def generate(
        self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, *args: Any, **named: Any
    ) -> Generation:
        names = ("temperature", "top_k", "top_p", "min_p", "seed")
        given = {"max_new_tokens": max_new_tokens, "mtp": mtp} | dict(zip(names, args, strict=False)) | named
        used = {"prompt_ids": prompt_ids} | given | self.options(prompt_ids, given)
        return super().generate(**used)


class Unseeded(WithOptions):
    """Every call is another draw."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"seed": int(torch.randint(1 << 30, ()))}


class SeedIgnored(WithOptions):
    """Every seed is 0."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"seed": 0}


class SeedOfTheLength(WithOptions):
    """The seed depends on how many tokens are wanted."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"seed": int(given.get("seed", 0)) + int(given["max_new_tokens"])}


class TemperatureIgnored(WithOptions):
    """Anything above 0 is 1."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"temperature": 1.0 if given.get("temperature", 0.0) else 0.0}


class AlwaysGreedy(WithOptions):
    """Sampling was never built."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"temperature": 0.0}


class TopPIgnored(WithOptions):
    """The filter is there, and its parameter does not arrive."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"top_p": 1.0}


class TopKIgnored(WithOptions):
    """The filter is there, and its parameter does not arrive."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"top_k": 0}


class MinPIgnored(WithOptions):
    """The filter is there, and its parameter does not arrive."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"min_p": 0.0}


class HiddenTopK(WithOptions):
    """Without a top-k, one of 2 from the checkpoint's own defaults."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"top_k": given.get("top_k") or 2}


class ForgetsTheEndOfThePrompt(WithOptions):
    """The prompt is cut to whole blocks of four: a continued generation differs."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_ids": prompt_ids[: len(prompt_ids) // 4 * 4]}


class CutsThePrompt(WithOptions):
    """A prompt that is too long loses its beginning in silence."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        room = self.model.config.max_position_embeddings - 1
        return {"prompt_ids": prompt_ids[-room:]}


class OneTokenTooMany(WithOptions):
    """Counts from 0."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"max_new_tokens": given["max_new_tokens"] + 1}


class OneTokenTooFew(WithOptions):
    """Counts from 1."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"max_new_tokens": max(given["max_new_tokens"] - 1, 1)}


class StartsFromNothing(WithOptions):
    """An empty prompt is the start token."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_ids": prompt_ids or [self.model.config.bos_token_id]}


class OneTokenAtLeast(WithOptions):
    """Asked for none, it gives one."""

    def options(self, prompt_ids: list[int], given: dict[str, Any]) -> dict[str, Any]:
        return {"max_new_tokens": max(given["max_new_tokens"], 1)}


class WithResult(ReferenceModel):
    """Changes what the reference generated."""

    def changed(self, result: Generation, prompt_ids: list[int], mtp: int) -> Generation:
        raise NotImplementedError

    def generate(
        self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, *args: Any, **named: Any
    ) -> Generation:
        result = super().generate(prompt_ids, max_new_tokens, mtp, *args, **named)
        changed = self.changed(result, prompt_ids, mtp)
        return replace(changed, tokens=changed.tokens[:max_new_tokens])


class SecondBest(WithResult):
    """The last token is the second best."""

    def changed(self, result: Generation, prompt_ids: list[int], mtp: int) -> Generation:
        logits = self.new_session().extend(prompt_ids + result.tokens[:-1])[-1]
        return replace(result, tokens=[*result.tokens[:-1], int(logits.topk(2).indices[1])])


class TokenTwice(WithResult):
    """A token that two steps saw is emitted by both."""

    def changed(self, result: Generation, prompt_ids: list[int], mtp: int) -> Generation:
        half = len(result.tokens) // 2
        return replace(result, tokens=result.tokens[: half + 1] + result.tokens[half:])


class BonusTokenLost(WithResult):
    """The token that follows three accepted drafts does not arrive."""

    def changed(self, result: Generation, prompt_ids: list[int], mtp: int) -> Generation:
        if not mtp or not result.accepted_per_position[-1]:
            return result
        return replace(result, tokens=result.tokens[: mtp + 1] + result.tokens[mtp + 2 :])


class EndTokenDropped(WithResult):
    """What ends a generation is not handed out."""

    def changed(self, result: Generation, prompt_ids: list[int], mtp: int) -> Generation:
        ended = len(result.tokens) > 1 and result.tokens[-1] in self.model.config.eos_token_ids
        return replace(result, tokens=result.tokens[:-1]) if ended else result


class PromptHandedBack(WithResult):
    """The prompt's last token comes first."""

    def changed(self, result: Generation, prompt_ids: list[int], mtp: int) -> Generation:
        return replace(result, tokens=prompt_ids[-1:] + result.tokens)


class CountsEveryDraftAsAccepted(WithResult):
    """Counters of a step are filled before it is verified."""

    def changed(self, result: Generation, prompt_ids: list[int], mtp: int) -> Generation:
        return replace(result, accepted_per_position=list(result.drafted_per_position))


class CountsAcceptedOnceAStep(WithResult):
    """A step counts at the first position how many drafts it accepted, and nowhere else."""

    def changed(self, result: Generation, prompt_ids: list[int], mtp: int) -> Generation:
        accepted = result.accepted_per_position
        return replace(result, accepted_per_position=[sum(accepted), *[0] * (len(accepted) - 1)] if accepted else [])


class CountersReversed(WithResult):
    """The last position's counter comes first."""

    def changed(self, result: Generation, prompt_ids: list[int], mtp: int) -> Generation:
        return replace(result, accepted_per_position=result.accepted_per_position[::-1])


class AnswersAgain(ReferenceModel):
    """The answer to an earlier prompt of the same number of wanted tokens."""

    def generate(
        self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, *args: Any, **named: Any
    ) -> Generation:
        held: dict[Any, Generation] = self.__dict__.setdefault("held", {})
        key = (max_new_tokens, mtp, args, tuple(sorted(named.items())))
        if key not in held:
            held[key] = super().generate(prompt_ids, max_new_tokens, mtp, *args, **named)
        return replace(held[key], tokens=list(held[key].tokens))


class WithModel(ReferenceModel):
    """Generates with other operators than those that logits come from."""

    def operators(self, prompt_ids: list[int], max_new_tokens: int) -> dict[str, Any]:
        raise NotImplementedError

    def generate(
        self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, *args: Any, **named: Any
    ) -> Generation:
        usual = self.model.ops
        self.model.ops = replace(usual, **self.operators(prompt_ids, max_new_tokens))
        try:
            return super().generate(prompt_ids, max_new_tokens, mtp, *args, **named)
        finally:
            self.model.ops = usual


class FirstTokenGreedy(WithModel):
    """The token after the prompt is the likeliest one, whatever was asked for."""

    def operators(self, prompt_ids: list[int], max_new_tokens: int) -> dict[str, Any]:
        usual, calls = self.model.ops, iter(range(1 << 30))

        def sampling(logits: Tensor, temperature: float, *filters: Any) -> Tensor:
            return usual.sampling(logits, 0.0 if next(calls) == 0 else temperature, *filters)

        return {"sampling": sampling}


class OneUniformNumber(WithModel):
    """A request draws one uniform number and uses it for all its tokens."""

    def operators(self, prompt_ids: list[int], max_new_tokens: int) -> dict[str, Any]:
        usual, drawn = self.model.ops, list[Tensor]()

        def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
            drawn.append(uniforms[:1])
            return usual.draw(probabilities, drawn[0].expand(len(probabilities)).contiguous())

        def accept_draft(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> tuple[int, int]:
            accepted: tuple[int, int] = usual.accept_draft(target, draft, draft_ids, drawn[0].expand(len(uniforms)))
            return accepted

        return {"draw": draw, "accept_draft": accept_draft}


class UniformOfTheFirstHalf(WithModel):
    """Uniform numbers reach only from 0 to a half."""

    def operators(self, prompt_ids: list[int], max_new_tokens: int) -> dict[str, Any]:
        usual = self.model.ops
        return {
            "draw": lambda probabilities, uniforms: usual.draw(probabilities, uniforms / 2),
            "accept_draft": lambda target, draft, ids, uniforms: usual.accept_draft(target, draft, ids, uniforms / 2),
        }


class PenalisesRepetition(WithModel):
    """A hidden default: logits of the prompt's tokens are lowered."""

    def operators(self, prompt_ids: list[int], max_new_tokens: int) -> dict[str, Any]:
        usual, seen = self.model.ops, torch.tensor(sorted(set(prompt_ids)))

        def sampling(logits: Tensor, *filters: Any) -> Tensor:
            lowered = logits.clone()
            lowered[..., seen] -= 0.5
            return usual.sampling(lowered, *filters)

        return {"sampling": sampling}


# Batches


class BatchRowsSwapped(ReferenceModel):
    """The first and the last context of a batch get each other's logits."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        logits = super().extend_batch(sessions, token_ids)
        if len(logits) > 1 and logits[0].shape == logits[-1].shape:
            logits[0], logits[-1] = logits[-1], logits[0]
        return logits


class BatchOfTheFirst(ReferenceModel):
    """Every context of a batch starts with the logits of the first."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        logits = super().extend_batch(sessions, token_ids)
        for row in logits[1:]:
            row[:1] = logits[0][:1]
        return logits


class BatchInBf16(ReferenceModel):
    """A sum is split otherwise for more than one context, and its parts are rounded."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        logits = super().extend_batch(sessions, token_ids)
        return [row.bfloat16().to(row.dtype) for row in logits] if len(logits) > 1 else logits


class BatchKeepsPadding(ReferenceModel):
    """Shorter contexts are padded with token 0, and the padding stays in their caches."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        longest = max(map(len, token_ids), default=0)
        logits = []
        for session, tokens in zip(sessions, token_ids, strict=True):
            length = session.length + len(tokens)
            padded = session.extend(tokens + [0] * (longest - len(tokens)))
            session.cache.length = length
            logits.append(padded[: len(tokens)])
        return logits


class BatchPaddedOnTheLeft(ReferenceModel):
    """Shorter contexts are padded on the left, and the padding counts in their positions."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        longest = max((session.length for session in sessions), default=0)
        logits = []
        for session, tokens in zip(sessions, token_ids, strict=True):
            own = session.cache.length
            session.cache.length = longest
            logits.append(session.extend(tokens))
            session.cache.length = own + len(tokens)
        return logits


class BatchLeaksIntoTheNext(ReferenceModel):
    """The last key and value of a context are seen by the next one of the batch."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        logits: list[Tensor] = []
        before: ReferenceSession | None = None
        for session, tokens in zip(sessions, token_ids, strict=True):
            if before is not None:
                for index, cache in session.cache.layers.items():
                    held = before.cache.layers[index]
                    if cache.capacity is None and len(cache.v_SKH) and len(held.v_SKH):
                        cache.v_SKH[-1] = held.v_SKH[-1]
            logits.append(session.extend(tokens))
            before = session
        return logits


class BatchOfTheSameLength(ReferenceModel):
    """Contexts of a batch are cut to the shortest one's number of new tokens; the rest repeats its last row."""

    def extend_batch(self, sessions: Sequence[ReferenceSession], token_ids: Sequence[list[int]]) -> list[Tensor]:
        shortest = min(map(len, token_ids), default=0)
        logits = []
        for row in super().extend_batch(sessions, token_ids):
            row[shortest:] = row[shortest - 1 : shortest]
            logits.append(row)
        return logits


# Drafts' logits


class DraftLogitsNormalised(ReferenceModel):
    """Log-probabilities for logits."""

    def draft_logits(self, token_ids: list[int]) -> list[Tensor]:
        return [logits.log_softmax(dim=-1) for logits in super().draft_logits(token_ids)]


class DraftLogitsOneRowLate(ReferenceModel):
    """Rows are those of the position before."""

    def draft_logits(self, token_ids: list[int]) -> list[Tensor]:
        return [logits.roll(1, dims=0) for logits in super().draft_logits(token_ids)]


class DraftLogitsOfTheFirstDepth(ReferenceModel):
    """Every depth reports the first one's."""

    def draft_logits(self, token_ids: list[int]) -> list[Tensor]:
        first, *others = super().draft_logits(token_ids)
        return [first, *(first[: len(other)].clone() for other in others)]


class DraftLogitsOfTheBackbone(ReferenceModel):
    """The first depth reports the model's own logits."""

    def draft_logits(self, token_ids: list[int]) -> list[Tensor]:
        _, *others = super().draft_logits(token_ids)
        return [self.new_session().extend(token_ids)[1:], *others]


# The table of layers


class WithLayers(ReferenceModel):
    """Reports other layers than it has."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise NotImplementedError

    def layers(self) -> list[dict[str, Any]]:
        return self.change([dict(layer) for layer in super().layers()])

    def everywhere(self, layers: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
        return [layer | {name: layers[0][name]} for layer in layers]


class LayersWithHeadsOfFullOnes(WithLayers):
    """64 heads everywhere."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.everywhere(layers, "num_attention_heads")


class LayersWithTheFirstTheta(WithLayers):
    """5,000,000 everywhere."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.everywhere(layers, "rope_theta")


class LayersWithScalingEverywhere(WithLayers):
    """yarn_only_types is not read."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.everywhere(layers, "has_rope_scaling")


class LayersWithALargerWindow(WithLayers):
    """The window does not count the query itself."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [layer | {"sliding_window": layer["sliding_window"] and layer["sliding_window"] + 1} for layer in layers]


class LayersWithoutMtp(WithLayers):
    """The MTP layers are left out."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return layers[: self.model.config.num_hidden_layers]


class LayersOneOn(WithLayers):
    """Each layer reports the kind of the next one."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            layer | {"attention_type": after["attention_type"]}
            for layer, after in zip(layers, [*layers[1:], layers[-1]], strict=True)
        ]


class LayersWithSharedLimitOfTheSibling(WithLayers):
    """The shared expert's limit wherever routed experts have one."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [layer | {"swiglu_limit_shared": 16.0} if layer["swiglu_limit"] else layer for layer in layers]


class LayersWithExpertsFromTheStart(WithLayers):
    """The dense first layers are counted as MoE layers."""

    def change(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        backbone = self.model.config.num_hidden_layers
        return [layer | {"is_moe": index < backbone} for index, layer in enumerate(layers)]


class SamplesShiftedLogits(WithModel):
    """Nobody can see it: what is sampled from is the logits plus a constant."""

    def operators(self, prompt_ids: list[int], max_new_tokens: int) -> dict[str, Any]:
        usual = self.model.ops
        return {"sampling": lambda logits, *filters: usual.sampling(logits + 1, *filters)}
