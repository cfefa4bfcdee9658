"""A checkpoint as what is measured, through the protocol that the judge uses: ``load_model``, ``generate``, sessions.

Times are the suite's own, of whole calls; what an engine says of its times counts for nothing. A step of decoding is
the difference between a longer and a shorter generation, over the steps by which they differ: both begin with other
text, so that no cache of prompts can make one of them shorter. Before and after timing, each token of a generation must
be one that the model, asked in one step over the whole text, finds as likely as the likeliest.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conformance.engine import Engine, EngineModel, find_engine
from hardware.energy import LEAST_S, EnergyWindow
from hardware.machine import Fact
from reference.accounting import inspect
from reference.config import ModelConfig
from reference.quantization import weight_bytes

from .live_memory import held_bytes
from .model import SETTLING, ModelResult, NotOfferedError, Scenario
from .model_cost import Stored, cached_bytes
from .prompts import Prompts
from .trusted import perf_counter
from .workload import Wrong

STORED = {"bf16": Stored(None, None), "fp8": Stored("fp8", None), "w8a16": Stored("fp8", None),
          "w4a16": Stored("int4", None)}  # fmt: skip
REFERENCES = {"float32": "engine", "bf16": "bf16_engine", "fp8": "fp8_engine", "w8a16": "w8a16_engine",
              "w4a16": "w4a16_engine"}  # fmt: skip
LARGEST_FOR_REFERENCE = 1 << 30  # bytes of a checkpoint; a larger model is asked itself
SHORTFALL = 0.05  # of what lies between the likeliest token's logit and the mean: near ties of rounded arithmetic
WINDOWS_TRIED = 16  # texts, of which some end early
ENERGY_S = 1.2 * LEAST_S  # of each length of generation, where a counter is read
WARM_UPS, SETTLED = 12, 0.9
STEPS_TOGETHER = 4  # of a batch, in a sample: as many tokens as every session can take back


class CheckpointSubject:
    """A loaded checkpoint and the text that it is measured on.

    Args:
        draft_heads: what the engine was asked to hold these in; None: as stored.

    Raises:
        NotOfferedError: the engine has no whole model on this device.
    """

    def __init__(
        self, engine: Engine, checkpoint: Path, device: str, prompts: Prompts, draft_heads: str | None = None
    ) -> None:
        self.config = ModelConfig.from_file(checkpoint)
        self.engine, self.device, self.prompts, self.checkpoint = engine, device, prompts, checkpoint
        stored, self._draft_heads = STORED.get(engine.profile), draft_heads
        self.stored, self.text = stored and replace(stored, draft_heads=draft_heads), prompts.source
        before = held_bytes(device)
        started = perf_counter()
        try:
            self.model: EngineModel = engine.load_model(checkpoint)
        except NotImplementedError as error:
            raise NotOfferedError(str(error)) from error
        self.made_s = perf_counter() - started
        self.weight_bytes = held_bytes(device) - before
        self._warm_up()
        self._counted = inspect(self.config)
        self._oracle: EngineModel | None = None

    def _warm_up(self) -> None:
        """Generate until it takes no less than before: engines compile for what they meet."""
        last = float("inf")
        for _ in range(WARM_UPS):
            _, us = self.generate(self.prompts.window(1), 1 + SETTLING, 0)
            if us > SETTLED * last:
                return
            last = us

    def description(self) -> Mapping[str, Any]:
        return {
            "format": self.engine.profile,
            "draft_heads": self._draft_heads or "as stored",
            "weight_bytes": self.weight_bytes,
            "made_s": self.made_s,
            "text": self.text,
        }

    @property
    def predicted_bytes(self) -> int:
        """Of the weights, in the engine's profile."""
        if self.stored is None:
            total = int(self._counted["parameters"]["total"]) * 4
        else:
            total = int(self._counted["weight_bytes_by_expert_format"][self.stored.experts or "bf16"]["with_mtp"])
        if self._draft_heads is None:
            return total
        shape = (self.config.vocab_size, self.config.hidden_size)
        less = shape[0] * shape[1] * self.item_bytes - weight_bytes(self._draft_heads, shape)
        return total - len(self.config.mtp_layers) * less

    @property
    def item_bytes(self) -> int:
        """Of a cached number."""
        return 4 if self.stored is None else 2

    @property
    def oracle(self) -> EngineModel:
        """The reference in the engine's profile, of a model that is small; a large one is asked itself."""
        if self._oracle is None:
            is_small = self._counted["checkpoint_bytes"] <= LARGEST_FOR_REFERENCE
            name = REFERENCES.get(self.engine.profile)
            if is_small and name:
                self._oracle = find_engine(f"reference.engine:{name}").load_model(self.checkpoint)
            else:
                self._oracle = self.model
        return self._oracle

    def open(self, scenario: Scenario) -> "_Generated | _Prompted | _Batch":
        if scenario.chunk:
            if scenario.context:
                raise NotOfferedError("the protocol has no prompt after a depth; want --weights synthetic")
            return _Prompted(self, scenario)
        return _Batch(self, scenario) if scenario.extends else _Generated(self, scenario)

    def generate(self, prompt: list[int], most: int, drafts: int) -> tuple[Any, float]:
        """A generation and its microseconds.

        Raises:
            NotOfferedError: the engine does not draft.
        """
        start = perf_counter()
        try:
            found = self.model.generate(prompt, most, mtp=drafts)
        except NotImplementedError as error:
            raise NotOfferedError(str(error)) from error
        return found, (perf_counter() - start) * 1e6

    def whole(self, length: int, most: int, drafts: int) -> tuple[list[int], Any, float]:
        """A generation that reaches its length, on text that was not used yet.

        Raises:
            ValueError: every text that was tried ends early.
        """
        for _ in range(WINDOWS_TRIED):
            prompt = self.prompts.window(max(length, 1))
            found, us = self.generate(prompt, most, drafts)
            if len(found.tokens) == most:
                return prompt, found, us
        raise ValueError(f"generation: ended before {most} tokens on {WINDOWS_TRIED} texts; want other --prompts")

    def check(self, prompt: list[int], tokens: Sequence[int]) -> Wrong | None:
        """Whether each token is one that the oracle finds as likely as the likeliest, given those before it."""
        vocab = self.config.vocab_size
        if not all(type(token) is int and 0 <= token < vocab for token in tokens):
            return Wrong(f"tokens are not of the vocabulary of {vocab}")
        session = self.oracle.new_session()
        logits = session.extend([*prompt, *tokens[:-1]])[-len(tokens) :].double().cpu()
        chosen = logits.gather(1, torch.tensor(list(tokens))[:, None])[:, 0]
        best = logits.max(dim=1).values
        missed = (best - chosen) / (best - logits.mean(dim=1)).clamp(min=1e-9)
        worst = int(missed.argmax())
        if float(missed[worst]) <= SHORTFALL:
            return None
        return Wrong(
            f"token {worst} of the generation is less likely than the likeliest by {float(missed[worst]):.0%} of what "
            f"lies between that and the mean; want {SHORTFALL:.0%} or less"
        )

    def wait(self) -> None:
        kind = torch.device(self.device).type
        if kind == "cuda":
            torch.cuda.synchronize()
        elif kind == "mps":
            torch.mps.synchronize()


class _Measured:
    """What scenarios of a checkpoint share."""

    clock = "perf_counter"
    distinct: Sequence[float] = ()

    def __init__(self, subject: CheckpointSubject, scenario: Scenario) -> None:
        self.subject, self.scenario = subject, scenario

    def weights_changed(self) -> Wrong | None:
        return None

    def step_energy(self, window: Callable[[], EnergyWindow]) -> tuple[Fact, int]:
        raise AssertionError("its calls hold nothing else")

    def add_details(self, result: ModelResult) -> ModelResult:
        return result


class _Prompted(_Measured):
    """A prompt and the first token after it."""

    @property
    def tokens_a_call(self) -> int:
        return self.scenario.chunk

    def run_checked(self, index: int = 0) -> Wrong | None:
        prompt = self.subject.prompts.window(self.scenario.chunk)
        found, _ = self.subject.generate(prompt, 1, 0)
        return self.subject.check(prompt, found.tokens)

    def next_us(self) -> float:
        return self.subject.generate(self.subject.prompts.window(self.scenario.chunk), 1, 0)[1]


class _Generated(_Measured):
    """Steps of decoding one sequence, with drafts or without."""

    def __init__(self, subject: CheckpointSubject, scenario: Scenario) -> None:
        super().__init__(subject, scenario)
        self._steps = self._tokens = self._us = 0.0
        self._drafted = [0] * scenario.num_drafts
        self._accepted = [0] * scenario.num_drafts

    @property
    def tokens_a_call(self) -> int:
        return 0 if self.scenario.context else 2 * (1 + SETTLING) + self.scenario.generated

    def run_checked(self, index: int = 0) -> Wrong | None:
        prompt, found, _ = self._generation(self.scenario.generated)
        return self.subject.check(prompt, found.tokens)

    def _generation(self, tokens: int) -> tuple[list[int], Any, float]:
        return self.subject.whole(self.scenario.context, 1 + SETTLING + tokens, self.scenario.num_drafts)

    def next_us(self) -> float:
        """Of one step: a longer generation less a shorter one, over the steps that it has more."""
        _, short, short_us = self._generation(0)
        _, long, long_us = self._generation(self.scenario.generated)
        steps = _steps_of(long) - _steps_of(short)
        self._steps += steps
        self._tokens += len(long.tokens) - len(short.tokens)
        self._us += long_us - short_us
        for position in range(self.scenario.num_drafts):
            self._drafted[position] += long.drafted_per_position[position]
            self._accepted[position] += long.accepted_per_position[position]
        return (long_us - short_us) / steps

    def step_energy(self, window: Callable[[], EnergyWindow]) -> tuple[Fact, int]:
        """Of longer generations less that of as many shorter ones of the same text, each counted over a while."""
        prompt, *_ = self._generation(self.scenario.generated)  # a text that does not end before
        (short, short_calls), (long, long_calls) = (
            self._spent(window, prompt, tokens) for tokens in (0, self.scenario.generated)
        )
        if short.value is None or long.value is None:
            return (short if short.value is None else long), 0
        more = round(int(long.value) - int(short.value) * long_calls / short_calls)
        if more <= 0:
            return Fact(None, long.source, "longer generations took no more energy than shorter ones"), 0
        return Fact(more, long.source), long_calls * self.scenario.generated

    def _spent(self, window: Callable[[], EnergyWindow], prompt: list[int], tokens: int) -> tuple[Fact, int]:
        """What generations of a length take together, and how many they were."""
        calls, started = 0, perf_counter()
        with window() as counted:
            while not calls or perf_counter() - started < ENERGY_S:
                self.subject.generate(prompt, 1 + SETTLING + tokens, self.scenario.num_drafts)
                calls += 1
        return counted.spent_mj, calls

    def add_details(self, result: ModelResult) -> ModelResult:
        result = replace(result, memory=self._memory(), memory_predicted=self._predicted())
        if not self.scenario.num_drafts or self._us <= 0:
            return result
        pairs = zip(self._accepted, self._drafted, strict=True)
        shares = [accepted / drafted if drafted else None for accepted, drafted in pairs]
        acceptance = {"length": self._tokens / self._steps, "per_position": shares}
        return replace(result, acceptance=acceptance, generated_per_s=self._tokens / self._us * 1e6)

    def _memory(self) -> dict[str, float]:
        """Of a session that holds the context: what grows with its length, and what does not."""
        subject, length = self.subject, self.scenario.context + self.scenario.generated
        if torch.device(subject.device).type != "cpu":  # caches are planned and allocated with the weights
            return {"weights_and_caches": subject.weight_bytes}
        window = max((layer.sliding_window or 0 for layer in subject.config.layers), default=0)
        lengths = [count for count in dict.fromkeys((max(window + 16, length // 2), length)) if count <= length]
        held = []
        for count in lengths:
            before = held_bytes(subject.device)
            session, text = subject.model.new_session(), subject.prompts.window(count)
            session.extend(text[:-1])
            session.extend(text[-1:])  # what is kept of the newest step alone, routing for one, is then small
            held.append(held_bytes(subject.device) - before)
            del session
        if len(lengths) < 2 or held[1] <= held[0]:
            return {"weights": subject.weight_bytes, "kv": held[-1]}
        grows = (held[1] - held[0]) / (lengths[1] - lengths[0]) * length
        return {"weights": subject.weight_bytes, "kv_full": grows, "kv_sliding": max(held[1] - grows, 0.0)}

    def _predicted(self) -> dict[str, float]:
        subject, scenario = self.subject, self.scenario
        layers = replace(subject.config, mtp_layers=())  # a session drafts nothing
        cached = cached_bytes(layers, scenario.context + scenario.generated, 1, subject.item_bytes)
        return {"weights": subject.predicted_bytes, **cached}


def _steps_of(found: Any) -> int:
    """Steps after the first token: each yields one token and what was accepted before it."""
    return max(len(found.tokens) - 1 - sum(found.accepted_per_position), 1)


class _Batch(_Measured):
    """Several sequences, a token each in a step, through ``extend_batch``; the tokens are those of the text."""

    def __init__(self, subject: CheckpointSubject, scenario: Scenario) -> None:
        super().__init__(subject, scenario)
        self._extend = getattr(subject.model, "extend_batch", None)
        if self._extend is None:
            raise NotOfferedError(f"{subject.engine.name} has no extend_batch; want it for batches")
        self._texts = [subject.prompts.window(scenario.context + STEPS_TOGETHER) for _ in range(scenario.batch)]
        self._sessions = [subject.model.new_session() for _ in range(scenario.batch)]
        for session, text in zip(self._sessions, self._texts, strict=True):
            session.extend(text[: scenario.context])

    @property
    def tokens_a_call(self) -> int:
        return STEPS_TOGETHER * self.scenario.batch

    def run_checked(self, index: int = 0) -> Wrong | None:
        """A batch's logits are those of each sequence alone, near enough to choose the same."""
        logits = self._step(0)
        for row, (text, got) in enumerate(zip(self._texts, logits, strict=True)):
            wrong = self.subject.check(text[: self.scenario.context + 1], [int(got[-1].argmax())])
            if wrong:
                return Wrong(f"sequence {row}: {wrong.reason}")
        self._back()
        return None

    def _step(self, number: int) -> list[Tensor]:
        assert self._extend is not None, "opened only where it is offered"
        at = self.scenario.context + number
        found: list[Tensor] = self._extend(self._sessions, [[text[at]] for text in self._texts])
        return found

    def _back(self) -> None:
        for session in self._sessions:
            session.truncate(self.scenario.context)

    def next_us(self) -> float:
        steps = []
        for number in range(STEPS_TOGETHER):
            start = perf_counter()
            self._step(number)
            self.subject.wait()
            steps.append((perf_counter() - start) * 1e6)
        self._back()
        return statistics.fmean(steps)
