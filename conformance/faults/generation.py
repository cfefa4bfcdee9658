"""Loaded models that generate wrongly: subclasses of the reference's ``ReferenceModel``."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reference.engine import ReferenceModel
from reference.generate import Generation


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


# An equivalent


class SamplesShiftedLogits(WithModel):
    """Nobody can see it: what is sampled from is the logits plus a constant."""

    def operators(self, prompt_ids: list[int], max_new_tokens: int) -> dict[str, Any]:
        usual = self.model.ops
        return {"sampling": lambda logits, *filters: usual.sampling(logits + 1, *filters)}
