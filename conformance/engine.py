"""What an engine must offer to be judged, and how it is found: by a registered name or by ``module:attribute``.

The protocol is structural: an engine imports nothing from here. The least that can be judged is

    class MyEngine:
        name, profile, device = "mine", "bf16", "cuda"

        def ops(self):
            return {"rms_norm": my_rms_norm}

        def load_model(self, checkpoint):
            raise NotImplementedError("operators only")

    engine = MyEngine()

registered in the engine's own pyproject.toml, or named as ``--engine my_package.engine:engine``:

    [project.entry-points."step35_suite.engines"]
    mine = "my_package.engine:engine"
"""

import importlib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

ENTRY_POINT_GROUP = "step35_suite.engines"


class EngineError(ValueError):
    """An engine that cannot be found or used; the message says what is known and how to register."""


class Generation(Protocol):
    """What ``generate`` returns.

    ``drafted_per_position[i]`` counts the steps that verified a draft at position i, ``accepted_per_position[i]`` those
    in which it and all drafts before it were accepted; both are empty without drafts.
    """

    @property
    def tokens(self) -> list[int]: ...
    @property
    def drafted_per_position(self) -> list[int]: ...
    @property
    def accepted_per_position(self) -> list[int]: ...


class Session(Protocol):
    """One context. Four tokens must be able to be taken back: three drafts and the token before them.

    A session may also offer ``OPTIONAL_SESSION_MEMBERS``:

        routing() -> Mapping[int, tuple[Tensor, Tensor]]
            for each MoE layer, expert ids [T, A] and expert weights [T, A] of the newest ``extend``.
    """

    @property
    def length(self) -> int: ...

    def extend(self, token_ids: list[int]) -> Tensor:
        """Append tokens; logits [T, V] of every one of them, in any floating dtype on any device."""
        ...

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens."""
        ...


class EngineModel(Protocol):
    """A loaded checkpoint.

    A model may also offer ``OPTIONAL_MODEL_MEMBERS``; without one, its checks are reported as NOT-SUPPORTED:

        draft_logits(token_ids: list[int]) -> list[Tensor]
            teacher-forced MTP: of depth k, [T - 1 - k, V]; row i predicts token i + 2 + k.
        extend_batch(sessions: list[Session], token_ids: list[list[int]]) -> list[Tensor]
            ``extend`` of several sessions in one step.
        layers() -> list[Mapping[str, Any]]
            what was built, a mapping for each layer and then for each MTP layer, under the names of ``LAYER_FIELDS``.
    """

    def new_session(self) -> Session: ...

    def generate(
        self,
        prompt_ids: list[int],
        max_new_tokens: int,
        mtp: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
    ) -> Generation:
        """Continue up to an end token or ``max_new_tokens``, with ``mtp`` drafts a step; temperature 0 is greedy."""
        ...


class Engine(Protocol):
    """An engine under test.

    Attributes:
        name: what reports call it.
        profile: where it rounds; a key of ``conformance.profiles.PROFILES``.
        device: where it computes; assigned, before anything is loaded, when ``--device`` asks for another one.
    """

    name: str
    profile: str
    device: torch.device | str

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """The rows it offers, under the names and with the signatures of ``reference/ops``; one that is absent is
        reported as NOT-SUPPORTED.
        """
        ...

    def load_model(self, checkpoint: Path) -> EngineModel:
        """Load a folder in the published format.

        Raises:
            NotImplementedError: this engine has no whole model; the model checks are reported as NOT-SUPPORTED. So is
            what any other member refuses in this way (drafts, for one).
        """
        ...


OPTIONAL_SESSION_MEMBERS = ("routing",)
OPTIONAL_MODEL_MEMBERS = ("draft_logits", "extend_batch", "layers")
LAYER_FIELDS = (
    "attention_type",
    "num_attention_heads",
    "num_key_value_heads",
    "sliding_window",
    "rotary_dim",
    "rope_theta",
    "has_rope_scaling",
    "is_moe",
    "swiglu_limit",
    "swiglu_limit_shared",
)
MEMBERS = ("name", "profile", "device", "ops", "load_model")


def resolve(name: str) -> str:
    """The module:attribute that a registered name stands for.

    Raises:
        EngineError: unknown.
    """
    registered = {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    if name in registered:
        return registered[name].value
    if ":" not in name:
        raise EngineError(
            f"engine: {name!r} is not registered; known: {', '.join(sorted(registered))}; register yours under the "
            f"entry point group {ENTRY_POINT_GROUP!r}, or name it as module:attribute"
        )
    return name


def find_engine(name: str) -> Engine:
    """Find an engine by registered name or ``module:attribute``.

    The attribute is the engine, or a callable without arguments that returns it. Nothing is guessed.

    Raises:
        EngineError: unknown, not importable, or without one of ``MEMBERS``.
    """
    name = resolve(name)
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise EngineError(f"engine: {module_name} cannot be imported ({error}); want an importable module") from error
    except AttributeError:
        raise EngineError(f"engine: {module_name} has no {attribute!r}; want module:attribute") from None
    if (not hasattr(found, "ops") and callable(found)) or isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            raise EngineError(
                f"engine: {name}() raised {type(error).__name__}: {error}; want an engine, or a callable without "
                "arguments that returns one"
            ) from error
    missing = [member for member in MEMBERS if not hasattr(found, member)]
    if missing:
        raise EngineError(f"engine: {name} lacks {', '.join(missing)}; want the protocol in conformance/engine.py")
    return cast(Engine, found)


def with_draft_heads(engine: Engine, format: str | None) -> Engine:
    """The engine with the MTP depths' heads in "fp8" or "int4"; as it is where None is asked for.

    Raises:
        EngineError: it has no ``with_draft_heads``.
    """
    if format is None:
        return engine
    change = getattr(engine, "with_draft_heads", None)
    if change is None:
        raise EngineError(
            f"draft_heads: {engine.name} has no with_draft_heads; want an engine with one, or the heads as they are"
        )
    return cast(Engine, change(format))


def move(engine: Engine, device: str) -> None:
    """Make an engine compute on another device.

    Raises:
        EngineError: it cannot be moved, or there is no such device.
    """
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise EngineError(f"device: {device!r} is unknown; want cpu, cuda, cuda:N or mps") from None
    if torch.device(engine.device) == wanted:
        return
    try:
        engine.device = wanted
    except AttributeError:
        raise EngineError(
            f"device: {engine.name} stays on {engine.device}; want {device}: let the engine's device be assigned"
        ) from None
