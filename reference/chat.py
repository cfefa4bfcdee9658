"""Chat turns to a prompt: messages and tools through the checkpoint's own template.

The frame is ChatML with tools in XML; the generation prompt opens a think block. Source: chat template of
stepfun-ai/Step-3.5-Flash. ``response.py`` reads what comes back.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .tool_schema import ChatError, Tool, parameter_types

ROLES = ("system", "user", "assistant", "tool")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """What a chat file holds, in OpenAI's shapes."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


def load_chat(path: str | Path) -> Chat:
    """Read a chat file: JSON, either a list of messages or ``{"messages": [...], "tools": [...]}``.

    Raises:
        ChatError: the file is missing, is not such JSON, or holds a message or tool of the wrong shape.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ChatError(f"{path}: {error}; want a JSON file in UTF-8") from error
    if isinstance(data, list):
        data = {"messages": data}
    if not isinstance(data, dict) or "messages" not in data:
        raise ChatError(f'{path}: a {type(data).__name__}; want a list of messages, or {{"messages": [...]}}')
    if unknown := data.keys() - {"messages", "tools"}:
        raise ChatError(f"{path}: {', '.join(sorted(unknown))}: not used; want only messages and tools")
    try:
        parameter_types(data.get("tools"))
        return Chat(_checked_messages(data["messages"]), data.get("tools"))
    except ChatError as error:
        raise ChatError(f"{path}: {error}") from error


def render(
    template: str,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    add_generation_prompt: bool = True,
    *,
    bos_token: str = "",
) -> str:
    """Render messages into the text of a prompt; encode it with ``add_bos=True``, which never doubles bos.

    Args:
        template: Jinja source, as in ``chat_template.jinja``.
        messages: OpenAI's shapes. ``content`` may be absent, None, a string or a list of text parts;
            ``arguments`` of a tool call an object or its JSON text; ``reasoning`` is read as
            ``reasoning_content``.
        tools: OpenAI's tool definitions; their keys keep their order.
        add_generation_prompt: end with the opening of an assistant turn.
        bos_token: text that the template puts where it asks for bos.

    Raises:
        ChatError: a message or tool has the wrong shape, or the template refuses or fails.
    """
    parameter_types(tools)
    checked = _checked_messages(messages)
    try:
        return _compiled(template).render(
            messages=checked, tools=tools, add_generation_prompt=add_generation_prompt, bos_token=bos_token
        )
    except jinja2.TemplateSyntaxError as error:
        raise ChatError(f"chat template: line {error.lineno}: {error.message}; want valid Jinja") from error
    except jinja2.TemplateError as error:
        raise ChatError(f"chat template: {error.message}") from error


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    """Compile under transformers' settings, which published templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_template_error
    return environment.from_string(template)


def _to_json(value: object, ensure_ascii: bool = False, **options: Any) -> str:
    """Replace Jinja's filter, which sorts keys and escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_template_error(message: str) -> None:
    raise jinja2.TemplateError(message)


def _checked_messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) == 0:
        raise ChatError(f"messages: {messages!r}; want a list of at least one message")
    return [_checked_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _checked_message(message: object, where: str) -> dict[str, Any]:
    """Copy one message with content as text, arguments as objects and reasoning under one name."""
    if not isinstance(message, Mapping):
        raise ChatError(f"{where}: a {type(message).__name__}; want an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise ChatError(f"{where}: role is {role!r}; want one of {', '.join(ROLES)}")
    checked = {**message, "content": _text_of(message.get("content"), f"{where}.content")}
    reasoning = message.get("reasoning_content", message.get("reasoning"))
    if reasoning is not None:
        checked["reasoning_content"] = _text_of(reasoning, f"{where}.reasoning_content")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ChatError(f"{where}.tool_calls: a {type(calls).__name__}; want a list")
    if calls and role != "assistant":
        raise ChatError(f"{where}.tool_calls: role is {role}; want tool calls in assistant messages only")
    checked["tool_calls"] = [_checked_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return checked


def _text_of(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ChatError(f"{where}: a {type(content).__name__}; want a string, null or a list of text parts")
    for i, part in enumerate(content):
        is_text = isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        if not is_text:
            raise ChatError(
                f'{where}[{i}]: {part!r}; want {{"type": "text", "text": "..."}}: the model reads text only'
            )
    return "".join(part["text"] for part in content)


def _checked_call(call: object, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ChatError(f'{where}: {call!r}; want {{"function": {{"name": "...", "arguments": {{...}}}}}}')
    assert isinstance(call, Mapping)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise ChatError(f"{where}.arguments: {error}; want an object or its JSON text") from error
    if not isinstance(arguments, dict):
        raise ChatError(f"{where}.arguments: a {type(arguments).__name__}; want an object or its JSON text")
    return {**call, "function": {"name": function["name"], "arguments": arguments}}
