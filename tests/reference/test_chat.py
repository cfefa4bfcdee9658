"""Chat turns: the rendered frame is exact, and a response parses alike however it is cut into pieces."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from reference.chat import load_chat, render
from reference.response import (
    Event,
    ParsedMessage,
    ResponseParser,
    ToolCall,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    assemble,
    parse,
)
from reference.tool_schema import ChatError

TEMPLATE = (Path(__file__).parents[2] / "reference/nano/chat_template.jinja").read_text(encoding="utf-8")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def function(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "$defs": {"Unit": {"enum": ["C", None]}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    function(
        "set",
        text={"type": "string"},
        count={"type": "integer"},
        ratio={"type": "number"},
        on={"type": "boolean"},
        where={"type": "object"},
        tags={"type": "array"},
        gone={"type": "null"},
        maybe={"anyOf": [{"type": "integer"}, {"type": "null"}]},
        either={"type": ["string", "number"]},
        unit={"$ref": "#/$defs/Unit"},
    ),
    function("now"),
]


def call_text(name: str, **values: str) -> str:
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def stream(pieces: list[str]) -> list[Event]:
    parser = ResponseParser(TOOLS)
    events = [event for piece in pieces for event in parser.push(piece)]
    return events + parser.finish()


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


USER = {"role": "user", "content": "hi"}
CALL = {"type": "function", "id": "1", "function": {"name": "now", "arguments": '{"zone": "é", "n": [1, null]}'}}


def test_a_conversation_renders_into_the_frame() -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER]
    want = "[BOS]" + turn("system", "Be brief.") + turn("user", "hi") + "<|im_start|>assistant\n<think>\n"
    assert render(TEMPLATE, messages, bos_token="[BOS]") == want
    assert render(TEMPLATE, [USER], add_generation_prompt=False) == turn("user", "hi")


def test_tools_keep_their_key_order_and_their_characters() -> None:
    tool = {"type": "function", "function": {"name": "zürich", "description": "a<b & 'c'", "alpha": 1}}
    text = render(TEMPLATE, [{"role": "system", "content": "Be brief."}, USER], [tool])
    line = '{"type": "function", "function": {"name": "zürich", "description": "a<b & \'c\'", "alpha": 1}}'
    assert f"<tools>\n{line}\n</tools>" in text
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# ")
    assert text.count("<|im_start|>system") == 1
    assert text.endswith("as JSON.<|im_end|>\n" + turn("user", "hi") + "<|im_start|>assistant\n<think>\n")


def test_tool_calls_and_results_render_as_turns() -> None:
    assistant = {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}
    results = [{"role": "tool", "content": "one"}, {"role": "tool", "content": "two"}]
    text = render(TEMPLATE, [USER, assistant, *results], add_generation_prompt=False)
    call = call_text("now", zone="é", n="[1, null]")
    answers = "<tool_response>one</tool_response><tool_response>two</tool_response>"
    assert text == turn("user", "hi") + turn("assistant", call + call) + turn("tool_response", answers)


def test_reasoning_is_kept_only_after_the_last_user_query() -> None:
    thought = {"role": "assistant", "content": "a", "reasoning_content": "r"}
    inline = {"role": "assistant", "content": "<think>\nr\n</think>\na"}
    renamed = {"role": "assistant", "content": "a", "reasoning": "r"}
    result_by_user = {"role": "user", "content": "<tool_response>x</tool_response>"}
    for message in (thought, inline, renamed):
        text = render(TEMPLATE, [USER, message, USER, message, result_by_user], add_generation_prompt=False)
        forgotten, kept = turn("assistant", "a"), turn("assistant", "<think>\nr\n</think>\na")
        asked = turn("user", "hi")
        assert text == asked + forgotten + asked + kept + turn("user", result_by_user["content"])


def test_what_the_template_shows_of_a_response_parses_back() -> None:
    values = {"text": "5\n</parameter>!", "count": 3, "ratio": 0.5, "on": True, "where": {"a": ["é"]}, "gone": None}
    call = {"function": {"name": "set", "arguments": values}}
    message = {"role": "assistant", "content": "text", "reasoning_content": "why", "tool_calls": [call]}
    text = render(TEMPLATE, [USER, message], add_generation_prompt=False)
    response = text.removeprefix(render(TEMPLATE, [USER])).removesuffix("<|im_end|>\n")
    assert parse(response, TOOLS) == ParsedMessage("why", "text", (ToolCall("set", values),))


@pytest.mark.parametrize("content", [None, "", [], [{"type": "text", "text": ""}]])
def test_empty_content_renders_as_an_empty_turn(content: object) -> None:
    assert render(TEMPLATE, [{"role": "user", "content": content}], add_generation_prompt=False) == turn("user", "")
    assert render(TEMPLATE, [{"role": "user"}], add_generation_prompt=False) == turn("user", "")


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    message = {"role": "user", "content": parts}
    assert render(TEMPLATE, [message], add_generation_prompt=False) == turn("user", "a b")


def test_the_nano_template_needs_no_help_from_render() -> None:
    """Under transformers' settings, where messages arrive as the user wrote them."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(TEMPLATE)
    call = {"function": {"name": "now", "arguments": {"n": 1}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "reasoning_content": None, "tool_calls": [call]},
        {"role": "tool", "content": "noon"},
    ]
    raw = template.render(messages=messages, tools=TOOLS, add_generation_prompt=True, bos_token="[BOS]")
    assert raw == render(TEMPLATE, messages, TOOLS, bos_token="[BOS]")
    for bad in ({"role": "judge"}, {"role": "user", "content": 5}, {"role": "user", "content": [{"type": "image"}]}):
        with pytest.raises(jinja2.TemplateError, match="want"):
            template.render(messages=[bad])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        (["hi"], r"messages\[0\]: a str; want an object"),
        ([USER, {"role": "judge"}], r"messages\[1\]: role is 'judge'; want one of system, user, assistant, tool"),
        ([{"content": "hi"}], "role is None"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content: a int; want a string"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\]: .*image_url.*reads text only"),
        ([{"role": "user", "tool_calls": [CALL]}], "in assistant messages only"),
        ([{"role": "assistant", "tool_calls": {}}, {"role": "assistant", "tool_calls": CALL}], "want a list"),
        ([{"role": "assistant", "tool_calls": [{"name": 1}]}], r"tool_calls\[0\]: .*want"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}], r"arguments: .*want an object"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}], "arguments: a list"),
    ],
)
def test_a_bad_message_is_refused_by_its_place(messages: list[Any], message: str) -> None:
    with pytest.raises(ChatError, match=message):
        render(TEMPLATE, messages)


@pytest.mark.parametrize(
    "tools", [{}, "set", [5], [{"function": {}}], [{"name": "f", "parameters": {"properties": 1}}]]
)
def test_a_bad_tool_is_refused(tools: Any) -> None:
    with pytest.raises(ChatError, match="tools"):
        render(TEMPLATE, [USER], tools)


def test_a_failing_template_is_an_error_with_its_reason() -> None:
    for template, message in [
        ("{% if %}", "line 1"),
        ("{{ raise_exception('no system') }}", "no system"),
        ("{{ messages.append(1) }}", "unsafe"),
    ]:
        with pytest.raises(ChatError, match=message):
            render(template, [USER])


def test_a_chat_file_is_a_list_or_an_object(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([USER]), encoding="utf-8")
    assert render(TEMPLATE, load_chat(path).messages) == render(TEMPLATE, [USER])
    assert load_chat(path).tools is None
    path.write_text(json.dumps({"messages": [USER], "tools": TOOLS}), encoding="utf-8")
    assert load_chat(path).tools == TOOLS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "want a JSON file"),
        ("5", "a int; want a list of messages"),
        ("{}", "want a list of messages"),
        ('{"messages": [{"role": "user"}], "temperature": 1}', "temperature: not used"),
        ('{"messages": [{"role": "judge"}]}', r"chat\.json: messages\[0\]: role is 'judge'"),
        ('{"messages": [{"role": "user"}], "tools": [{}]}', r"chat\.json: tools\[0\]"),
    ],
)
def test_a_bad_chat_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ChatError, match=message):
        load_chat(path)
    with pytest.raises(ChatError, match=r"absent\.json"):
        load_chat(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("why\n</think>\nyes", "why", "yes"),
        ("<think>\nwhy\n</think>\nyes", "why", "yes"),
        ("\n<think>why</think>yes", "why", "yes"),
        ("\n</think>\nyes", "", "yes"),
        ("</think>", "", ""),
        ("cut off", "cut off", ""),
        ("a\n\n</think>\n\nb\n", "a\n", "\nb\n"),
        ("why\n</think>\n1 < 2 and <b> and </thin air", "why", "1 < 2 and <b> and </thin air"),
        ("a\n</think>\nb\n<think>\nc\n</think>\nd", "ac", "bd"),
        ("I call <tool_call> soon</think>no", "I call  soon", "no"),
        ("</think>a</tool_call>b</think>c", "", "abc"),
        ("</think>ends with <", "", "ends with <"),
        ("reasons</thin", "reasons", ""),
    ],
)
def test_reasoning_and_content_are_separated(text: str, reasoning: str, content: str) -> None:
    assert parse(text) == ParsedMessage(reasoning, content)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("r\n</think>\nc\n\n{call}\n", "r", "c"),
        ("r\n</think>\n{call}", "r", ""),
        ("r\n{call}\n</think>\nc", "r", "c"),
        ("{call}", "", ""),
        ("r {call} s", "rs", ""),
    ],
)
def test_a_call_before_after_or_without_the_end_of_reasoning_is_delivered(
    text: str, reasoning: str, content: str
) -> None:
    parsed = parse(text.replace("{call}", call_text("set", count="5")), TOOLS)
    assert parsed == ParsedMessage(reasoning, content, (ToolCall("set", {"count": 5}),))


@pytest.mark.parametrize(
    ("key", "value", "want"),
    [
        ("text", "5", "5"),
        ("text", "null", "null"),
        ("text", " two\n lines \n", " two\n lines \n"),
        ("text", "", ""),
        ("text", "a < b <b> é \U0001f600 <tool_call> <think>", "a < b <b> é \U0001f600 <tool_call> <think>"),
        ("text", "x</parameter>y </function>", "x</parameter>y </function>"),
        ("text", "</parameter>\n</function>\nrest", "</parameter>\n</function>\nrest"),
        ("text", "</parameter>\n<parameter=>", "</parameter>\n<parameter=>"),
        ("count", "5", 5),
        ("count", " 5.0 ", 5),
        ("count", "five", "five"),
        ("count", "5.5", "5.5"),
        ("count", "true", "true"),
        ("ratio", "5", 5),
        ("ratio", "-1e3", -1000.0),
        ("ratio", "NaN", "NaN"),
        ("ratio", "1e999", "1e999"),
        ("on", "false", False),
        ("on", "True", True),
        ("on", "1", "1"),
        ("where", '{"a": {"b": [1, "<"]}}', {"a": {"b": [1, "<"]}}),
        ("where", "[1]", "[1]"),
        ("tags", "[1, [true], null]", [1, [True], None]),
        ("tags", "[" * 100_000, "[" * 100_000),
        ("tags", '["\\ud800"]', '["\\ud800"]'),
        ("gone", "null", None),
        ("gone", "None", None),
        ("maybe", "7", 7),
        ("maybe", "null", None),
        ("either", "7", 7),
        ("either", "seven", "seven"),
        ("unit", "C", "C"),
        ("unit", "null", None),
        ("unknown", "5", "5"),
    ],
)
def test_a_value_is_typed_by_its_schema_or_stays_a_string(key: str, value: str, want: object) -> None:
    (call,) = parse(call_text("set", **{key: value}), TOOLS).tool_calls
    assert call == ToolCall("set", {key: want})
    assert type(call.arguments[key]) is type(want)


def test_without_tools_values_stay_strings() -> None:
    assert parse(call_text("set", count="5")).tool_calls == (ToolCall("set", {"count": "5"}),)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call><function=set><parameter=count>5</parameter></function></tool_call>" + call_text("now"),
        call_text("set", count="5") + "\n\n" + call_text("now"),
        call_text("set", count="5").removesuffix("</tool_call>") + call_text("now"),
        call_text("set", count="5").removesuffix("</tool_call>") + call_text("now").removeprefix("<tool_call>"),
        call_text("set", count="5").replace("</function>", "") + call_text("now").removesuffix("\n</tool_call>"),
    ],
)
def test_several_calls_are_delivered_even_if_an_end_is_missing(text: str) -> None:
    want = ParsedMessage("", "", (ToolCall("set", {"count": 5}), ToolCall("now", {})))
    assert parse(text, TOOLS) == want


def test_a_call_that_another_interrupts_is_truncated() -> None:
    text = "<tool_call>\n<function=set>\noops " + call_text("now")
    assert parse(text).tool_calls == (ToolCall("set", {}, truncated=True), ToolCall("now", {}))


def test_a_call_cut_anywhere_is_truncated_and_never_leaks() -> None:
    whole = "r\n</think>\nc\n" + call_text("set", count="5", text="</parameter> x")
    complete = whole.index("</function>") + len("</function>")
    opened = whole.index("<tool_call>") + len("<tool_")
    for cut in range(opened, len(whole) + 1):
        parsed = parse(whole[:cut], TOOLS)
        (call,) = parsed.tool_calls
        assert (parsed.reasoning, parsed.content) == ("r", "c")
        assert call.truncated == (cut < complete)
        assert call.arguments.items() <= {"count": 5, "text": "</parameter> x"}.items()
        assert call.name in ("", "set")
    assert parse(whole, TOOLS).tool_calls == (ToolCall("set", {"count": 5, "text": "</parameter> x"}),)


def test_text_is_not_held_back_without_need() -> None:
    parser = ResponseParser()
    shown = [assemble(parser.push(piece)) for piece in ("why", "\n</th", "ink>\nye", "s", " <", "b")]
    assert [message.reasoning for message in shown] == ["why", "", "", "", "", ""]
    assert [message.content for message in shown] == ["", "", "ye", "s", "", " <b"]


def test_arguments_stream_as_json_one_parameter_at_a_time() -> None:
    events = stream(list(call_text("set", count="5", text="é") + call_text("now")))
    assert events == [
        ToolCallStart(0, "set"),
        ToolCallArguments(0, '{"count": 5'),
        ToolCallArguments(0, ', "text": "é"'),
        ToolCallArguments(0, "}"),
        ToolCallEnd(0, ToolCall("set", {"count": 5, "text": "é"})),
        ToolCallStart(1, "now"),
        ToolCallArguments(1, "{}"),
        ToolCallEnd(1, ToolCall("now", {})),
    ]


FRAGMENTS = st.sampled_from(
    [
        *(*TAGS, "<function=set>", "<function=now>", "</function>", "<parameter=text>", "<parameter=count>"),
        *("</parameter>", "\n", "\n", " ", "5", "é\U0001f600", "<", "</", "<thi", "ink>", "<tool_", "a", "=x>"),
        *(call_text("set", count="5", text="x"), call_text("now"), "</parameter>\n</function>\n"),
    ]
)
RESPONSES = st.lists(FRAGMENTS, max_size=24).map("".join)


def arguments_json(events: list[Event], index: int) -> str:
    return "".join(event.text for event in events if isinstance(event, ToolCallArguments) and event.index == index)


@given(RESPONSES, st.data())
def test_any_pieces_give_the_same_message(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = stream([text])
    for other in (stream(pieces), stream(list(text))):
        assert assemble(other) == assemble(whole)
        calls = len(assemble(whole).tool_calls)
        assert [arguments_json(other, i) for i in range(calls)] == [arguments_json(whole, i) for i in range(calls)]


@given(RESPONSES)
def test_every_call_starts_and_ends_once_and_its_pieces_are_its_arguments(text: str) -> None:
    events = stream(list(text))
    calls = assemble(events).tool_calls
    assert [event.index for event in events if isinstance(event, ToolCallStart)] == list(range(len(calls)))
    assert [event.index for event in events if isinstance(event, ToolCallEnd)] == list(range(len(calls)))
    for i, call in enumerate(calls):
        written = arguments_json(events, i)
        assert json.loads(written + "}" * (call.truncated and written != "") or "{}") == call.arguments


@given(st.lists(st.sampled_from([*TAGS, "\n", "a ", "1 < 2", "é", call_text("now")]), max_size=16).map("".join))
def test_no_tag_leaks(text: str) -> None:
    parsed = parse(text, TOOLS)
    assert not any(tag in shown for tag in TAGS for shown in (parsed.reasoning, parsed.content))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=30))
def test_plain_text_and_values_come_through_unchanged(text: str) -> None:
    assert parse(text).reasoning == text
    assert parse(f"\n</think>\n{text}") == ParsedMessage("", text)
    assert parse(call_text("set", text=text), TOOLS).tool_calls == (ToolCall("set", {"text": text}),)
