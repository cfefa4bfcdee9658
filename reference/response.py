"""A response back to reasoning, content and tool calls, while it streams.

Tool calls are Qwen3-Coder's XML; a response begins inside the think block that the prompt opened. Source: vLLM's
step3p5 parsers.

    reasoning            <- from the start, or from <think>, to </think>
    content              <- after </think>
    <tool_call>          <- ends neither; what follows belongs to what came before
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .tool_schema import Tool, parameter_types, typed


@dataclass(frozen=True)
class ToolCall:
    """One call of a function.

    Attributes:
        name: of the function; empty where the response was cut before its end.
        arguments: by parameter, typed by the tool's schema; where cut, those that were complete.
        truncated: the response was cut, or went astray, before the call ended; it must not be executed.
    """

    name: str
    arguments: dict[str, Any]
    truncated: bool = False


@dataclass(frozen=True)
class ReasoningText:
    """The next piece of the reasoning."""

    text: str


@dataclass(frozen=True)
class ContentText:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """A call begins; ``index`` counts the calls of this response from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """The next piece of the call's arguments; all pieces together are JSON unless the call is truncated."""

    index: int
    text: str


@dataclass(frozen=True)
class ToolCallEnd:
    """A call ends; ``call`` is all of it."""

    index: int
    call: ToolCall


Event = ReasoningText | ContentText | ToolCallStart | ToolCallArguments | ToolCallEnd


@dataclass(frozen=True)
class ParsedMessage:
    """A response in its parts."""

    reasoning: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()


def assemble(events: Iterable[Event]) -> ParsedMessage:
    """Put the events of one response together."""
    events = list(events)
    return ParsedMessage(
        reasoning="".join(event.text for event in events if isinstance(event, ReasoningText)),
        content="".join(event.text for event in events if isinstance(event, ContentText)),
        tool_calls=tuple(event.call for event in events if isinstance(event, ToolCallEnd)),
    )


def parse(text: str, tools: Sequence[Tool] | None = None) -> ParsedMessage:
    """Parse a whole response; the same as pushing it to a ``ResponseParser`` in any pieces.

    Raises:
        ChatError: a tool has the wrong shape. No response text is an error.
    """
    parser = ResponseParser(tools)
    return assemble([*parser.push(text), *parser.finish()])


def _beginning_of(literal: str) -> str:
    """Write the regular expression of every beginning of ``literal``, from none of it to all of it."""
    return functools.reduce(lambda rest, character: f"(?:{re.escape(character)}{rest})?", reversed(literal), "")


_NAME = r"[^<>\n]"
_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_TAG = re.compile("|".join(_TAGS))
_UNMISTAKABLE = 6  # characters: a response that ends in so much of a tag was cut inside it

_BEFORE_FUNCTION = re.compile(rf"\s*(?:<function=({_NAME}+)>|</tool_call>)")
_FUNCTION_CUT = rf"{_beginning_of('<function=')}|<function={_NAME}*|{_beginning_of('</tool_call>')}"
_BEFORE_FUNCTION_CUT = re.compile(rf"\s*(?:{_FUNCTION_CUT})")

_IN_CALL = re.compile(rf"<parameter=({_NAME}+)>|</function>|</tool_call>|<tool_call>")

# What must follow for </parameter> to end a value; before anything else it is part of the value.
_VALUE_END = "</parameter>"
_AFTER_VALUE = re.compile(
    rf"\s*(?:<parameter={_NAME}+>|</tool_call>|</function>\s*(?:</?tool_call>|<function={_NAME}+>))"
)
_AFTER_VALUE_CUT = re.compile(
    rf"\s*(?:{_beginning_of('<parameter=')}|<parameter={_NAME}*|{_beginning_of('</tool_call>')}"
    rf"|{_beginning_of('</function>')}|</function>\s*(?:{_FUNCTION_CUT}|{_beginning_of('<tool_call>')}))"
)


class ResponseParser:
    """Split a response into events while it arrives; the pieces that it arrives in make no difference.

    Whitespace of the frame is dropped: one newline after a think tag and before ``</think>``, one on each
    side of a value, and all of it around a tool call and before ``<think>``. Text is held back only while it
    may still become a tag or such whitespace.

    What is not quite the frame: ``</parameter>`` ends a value only where another parameter or the end of the
    call follows; a call may lack ``</think>`` before it, ``</function>`` or ``</tool_call>`` at its end; a
    ``<tool_call>`` without a function and a stray closing tag are dropped, and what surrounds them is text.
    """

    def __init__(self, tools: Sequence[Tool] | None = None) -> None:
        """Begin a response.

        Args:
            tools: OpenAI's tool definitions, whose schemas type the arguments; without, values stay strings.

        Raises:
            ChatError: a tool has the wrong shape.
        """
        self._types = parameter_types(tools)
        self._buffer = ""
        self._final = False
        self._state: Callable[[], bool] = self._in_text
        self._events: list[Event] = []
        self._in_reasoning = True
        self._drop_newline = False  # the text that comes next may begin with the frame's newline
        self._drop_whitespace = False  # or with all of the whitespace after a call
        self._before_call = ""  # whitespace before a <tool_call> whose function has not been read yet
        self._call_opened = False
        self._num_calls = 0
        self._name = ""
        self._key = ""
        self._value_scan = 0  # no end of the value begins before this position of the buffer
        self._arguments: dict[str, Any] = {}

    def push(self, text: str) -> list[Event]:
        """Take the next piece of the response; return what it settles."""
        self._buffer += text
        return self._drain()

    def finish(self) -> list[Event]:
        """End the response; return what was held back, and an open call as truncated."""
        self._final = True
        return self._drain()

    def _drain(self) -> list[Event]:
        while self._state():
            pass
        events, self._events = self._events, []
        return events

    # Each state reads from the front of the buffer and returns whether there is more to read now.

    def _in_text(self) -> bool:
        self._drop_leading()
        tag = _TAG.search(self._buffer)
        if tag is None:
            self._emit_settled_text()
            return False
        before, self._buffer = self._buffer[: tag.start()], self._buffer[tag.end() :]
        if tag[0] == "<tool_call>":
            self._open_call(before)
        elif tag[0] == "</tool_call>":
            self._emit_text(before)
        else:
            self._emit_text(before.removesuffix("\n") if tag[0] == "</think>" else before.rstrip())
            self._in_reasoning = tag[0] == "<think>"
            self._drop_newline = True
        return True

    def _before_function(self) -> bool:
        found = _BEFORE_FUNCTION.match(self._buffer)
        if found is None and _BEFORE_FUNCTION_CUT.fullmatch(self._buffer) is not None:
            if self._final and self._call_opened:
                self._start_call("")
                self._end_call(truncated=True)
            if self._final:
                self._buffer = ""
            return False
        if found is not None:
            self._buffer = self._buffer[found.end() :]
            if found[1] is not None:
                self._start_call(found[1])
                return True
        elif self._call_opened:
            self._emit_text(self._before_call)
        self._drop_whitespace = found is not None or not self._call_opened
        self._call_opened = False
        self._state = self._in_text
        return True

    def _in_call(self) -> bool:
        found = _IN_CALL.search(self._buffer)
        if found is None:
            start = self._buffer.rfind("<")  # nothing before it can become a tag
            self._buffer = self._buffer[start:] if start >= 0 else ""
            if self._final:
                self._end_call(truncated=True)
            return False
        self._buffer = self._buffer[found.end() :]
        if found[1] is not None:
            self._key, self._value_scan, self._state = found[1], 0, self._in_value
        elif found[0] == "<tool_call>":
            self._end_call(truncated=True)
            self._open_call("")
        else:
            self._end_call(truncated=False)
            if found[0] == "</tool_call>":
                self._drop_whitespace, self._state = True, self._in_text
        return True

    def _in_value(self) -> bool:
        while (end := self._buffer.find(_VALUE_END, self._value_scan)) >= 0:
            after = end + len(_VALUE_END)
            is_end = _AFTER_VALUE.match(self._buffer, after) is not None
            if not is_end and _AFTER_VALUE_CUT.fullmatch(self._buffer, after) is not None:
                if not self._final:
                    self._value_scan = end
                    return False
                is_end = self._buffer[after:].lstrip().startswith("</function>")  # all of a call but its last tag
            if is_end:
                self._add_argument(self._buffer[:end].removeprefix("\n").removesuffix("\n"))
                self._buffer, self._state = self._buffer[after:], self._in_call
                return True
            self._value_scan = after
        self._value_scan = max(self._value_scan, len(self._buffer) - len(_VALUE_END) + 1)
        if self._final:
            self._end_call(truncated=True)
        return False

    def _drop_leading(self) -> None:
        if self._drop_whitespace:
            self._buffer = self._buffer.lstrip()
            self._drop_whitespace = not self._buffer
        elif self._drop_newline and self._buffer:
            self._buffer = self._buffer.removeprefix("\n")
            self._drop_newline = False

    def _emit_settled_text(self) -> None:
        """Emit all but whitespace and a begun tag at the end; once the response has ended, those too."""
        start = self._buffer.rfind("<")
        if start < 0 or not any(tag.startswith(self._buffer[start:]) for tag in _TAGS):
            start = len(self._buffer)
        text, cut = self._buffer[:start], self._buffer[start:]
        if not self._final:
            text = text.rstrip()
            self._buffer = self._buffer[len(text) :]
            self._emit_text(text)
            return
        self._buffer = ""
        if len(cut) >= _UNMISTAKABLE and "<tool_call>".startswith(cut):
            self._emit_text(text.rstrip())
            self._start_call("")
            self._end_call(truncated=True)
        else:
            self._emit_text(text if len(cut) >= _UNMISTAKABLE else text + cut)

    def _emit_text(self, text: str) -> None:
        if text:
            self._events.append(ReasoningText(text) if self._in_reasoning else ContentText(text))

    def _open_call(self, before: str) -> None:
        text = before.rstrip()
        self._emit_text(text)
        self._before_call = before[len(text) :]
        self._call_opened = True
        self._state = self._before_function

    def _start_call(self, name: str) -> None:
        self._events.append(ToolCallStart(self._num_calls, name))
        self._name, self._arguments, self._call_opened, self._state = name, {}, False, self._in_call

    def _add_argument(self, text: str) -> None:
        value = typed(text, self._types.get(self._name, {}).get(self._key, frozenset()))
        opening = ", " if self._arguments else "{"
        pair = f"{json.dumps(self._key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
        self._events.append(ToolCallArguments(self._num_calls, opening + pair))
        self._arguments[self._key] = value

    def _end_call(self, *, truncated: bool) -> None:
        """Close the call; another function, or </tool_call>, may follow."""
        if truncated:
            self._buffer = "" if self._final else self._buffer
        else:
            self._events.append(ToolCallArguments(self._num_calls, "}" if self._arguments else "{}"))
        call = ToolCall(self._name, self._arguments, truncated)
        self._events.append(ToolCallEnd(self._num_calls, call))
        self._num_calls += 1
        self._state = self._before_function
