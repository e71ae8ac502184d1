"""What each family's calls look like, what stays text, and what is bounded."""

from __future__ import annotations

import json

import pytest

from backends.core.events import Finish, TextDelta, ToolCallDelta
from backends.core.fold import fold
from backends.parsing.callpieces import CallIds
from backends.parsing.toolcalls.families import TOOL_SYNTAXES
from backends.parsing.toolcalls.llama3 import BareObject
from backends.parsing.toolcalls.machine import HOLD, ToolCallParser
from backends.parsing.toolcalls.reading import MAX_HELD

NAMES = frozenset({"get_weather", "add", "now"})
PARIS = '{"city": "Paris"}'
DS = {
    letter: f"<\uff5ctool\u2581{word}\uff5c>"
    for letter, word in {
        "B": "calls\u2581begin",
        "E": "calls\u2581end",
        "b": "call\u2581begin",
        "e": "call\u2581end",
        "s": "sep",
    }.items()
}

#: (family, the model's text, the text that stays, the calls)
SOUND = [
    (
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        "",
        [("get_weather", PARIS)],
    ),
    (
        "hermes",
        'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n<tool_call>'
        '{"arguments": {"a": 1, "b": [1, {"c": "}</tool_call>"}]}, "name": "add"}</tool_call>\nDone.',
        "I look.\n\nDone.",
        [("get_weather", PARIS), ("add", '{"a": 1, "b": [1, {"c": "}</tool_call>"}]}')],
    ),
    ("hermes", '\n\n<tool_call>{"name": "now"}', "", [("now", "{}")]),
    ("qwen", '<tool_call>{"name": "now", "arguments": null}</tool_', "", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("add", '{"a": 1}')]),
    (
        "hermes",
        '<tool_call>{"type":"function","function":{"name":"add","arguments":{"a":1}}}</tool_call>',
        "",
        [("add", '{"a":1}')],
    ),
    ("hermes", '<tool_call>{"name":"add","arguments":{"a":"é\\"😀\\\\"}}</tool_call>', "", [("add", '{"a":"é\\"😀\\\\"}')]),
    (
        "mistral",
        'Sure.[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}, '
        '{"name": "add", "arguments": {"a": 1}}]',
        "Sure.",
        [("get_weather", PARIS), ("add", '{"a": 1}')],
    ),
    (
        "mistral",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]add[CALL_ID]x1[ARGS]{"a": 1}[TOOL_CALLS]now{}',
        "",
        [("get_weather", PARIS), ("add", '{"a": 1}'), ("now", "{}")],
    ),
    ("mistral", '[{"name": "now", "arguments": {}}]', "", [("now", "{}")]),
    ("llama3", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [("get_weather", PARIS)]),
    (
        "llama3",
        ' {"type": "function", "name": "add", "parameters": {"a": 1}}; {"name": "now", "parameters": {}}',
        "",
        [("add", '{"a": 1}'), ("now", "{}")],
    ),
    ("llama3", '{"name": "now", "parameters": {}} Done; {x', " Done; {x", [("now", "{}")]),
    ("llama3", 'So: <function=add>{"a": 1}</function>', "So: ", [("add", '{"a": 1}')]),
    (
        "pythonic",
        '[get_weather(city="Paris"), add(a=-1.5, b=[True, None, {"x": (1, 2)}], c=\'it\\\'s [")]\')]',
        "",
        [("get_weather", PARIS), ("add", '{"a": -1.5, "b": [true, null, {"x": [1, 2]}], "c": "it\'s [\\")]"}')],
    ),
    ("pythonic", "<|python_start|>[now()]<|python_end|>", "", [("now", "{}")]),
    ("pythonic", '[add(a="", b="""x"y""")]\nDone', "\nDone", [("add", '{"a": "", "b": "x\\"y"}')]),
    (
        "deepseek",
        "Let me.\n{B}{b}function{s}get_weather\n```json\n{{c}}\n```{e}\n{b}function{s}now\n```json\n{}\n```{e}{E}".replace(
            "{{c}}", PARIS
        ),
        "Let me.\n",
        [("get_weather", PARIS), ("now", "{}")],
    ),
    (
        "deepseek",
        "{B}{b}get_weather{s}{{c}}{e}{b}now{s}{}{e}{E}".replace("{{c}}", PARIS),
        "",
        [("get_weather", PARIS), ("now", "{}")],
    ),
]
SOUND = [
    (family, text if family != "deepseek" else text.replace("{B}", DS["B"]).replace("{E}", DS["E"]).replace("{b}", DS["b"])
     .replace("{e}", DS["e"]).replace("{s}", DS["s"]), rest, calls)
    for family, text, rest, calls in SOUND
]  # fmt: skip

#: (family, a text without any call)
PLAIN = [
    ("hermes", "2 < 3 and <tool> and <tool_cal"),
    ("hermes", "<tool_call>nothing</tool_call>"),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": }}</tool_call>'),
    ("hermes", ' \n <tool_call>{"name": "add", "arguments": {"a": 1}'),
    ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": 5}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "arguments": ' + '{"a":' * 100 + "1" + "}" * 101),
    ("mistral", "[TOOL_CALLS] what"),
    ("mistral", "[1, 2, 3] are numbers"),
    ("mistral", "[TOOL_CALLS]" + "a" * 200),
    ("llama3", '{"name": "Ada", "born": 1815}'),
    ("llama3", 'The object {"name": "now", "parameters": {}}'),
    ("llama3", '{"name": "now"}'),
    ("llama3", "<|python_tag|>import os"),
    ("pythonic", "[a link](somewhere)"),
    ("pythonic", "[now(1)]"),
    ("pythonic", "[now(**x)]"),
    ("pythonic", "[now(a=f'{x}')]"),
    ("pythonic", "[now(a=open('x'))]"),
    ("pythonic", "[now(a=" + "-" * 5000 + "1)]"),
    ("pythonic", "[now(a=1e999)]"),
    ("deepseek", DS["B"] + "text"),
    ("deepseek", DS["b"] + "now" + DS["s"] + "{]"),
    ("hermes", "  \n"),
    ("hermes", ""),
]


def events(family: str, pieces: list[str], hold: int = HOLD) -> list[TextDelta | ToolCallDelta]:
    parser = ToolCallParser(TOOL_SYNTAXES[family], CallIds(), names=NAMES, hold=hold)
    out = [event for piece in pieces for event in parser.feed(piece)]
    return [*out, *parser.close()]


def folded(family: str, pieces: list[str], hold: int = HOLD) -> tuple[str, list[tuple[str, str]]]:
    choice = fold([*events(family, pieces, hold), Finish("stop")]).choices[0]
    return "".join(choice.text), [(call.name, call.arguments) for call in choice.tool_calls()]


@pytest.mark.parametrize(("family", "text", "rest", "calls"), SOUND)
@pytest.mark.parametrize("hold", [0, 4, HOLD])
def test_calls_whole_and_letter_by_letter(family: str, text: str, rest: str, calls: list[tuple[str, str]], hold: int) -> None:
    assert folded(family, [text], hold) == (rest, calls)
    assert folded(family, list(text), hold) == (rest, calls)
    for _, arguments in calls:
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize(("family", "text"), PLAIN)
def test_what_is_no_call_stays_text(family: str, text: str) -> None:
    assert folded(family, [text]) == (text, [])
    assert folded(family, list(text)) == (text, [])


def test_ids_and_names_come_once_and_first_and_ids_differ() -> None:
    text = '[TOOL_CALLS][{"name":"add","arguments":{"a":1},"id":"x"},{"name":"now","arguments":{},"id":"x"}]'
    found = [event for event in events("mistral", list(text)) if isinstance(event, ToolCallDelta)]
    heads = [(event.call, event.id, event.name) for event in found if event.id]
    assert heads == [(0, "x", "add"), (1, "call_1", "now")]
    for number in (0, 1):
        of_call = [event for event in found if event.call == number]
        assert of_call[0].name
        assert not any(event.name or event.id for event in of_call[1:])


def test_long_arguments_are_streamed_and_the_buffer_stays_small() -> None:
    parser = ToolCallParser(TOOL_SYNTAXES["hermes"], CallIds(), names=NAMES)
    out = parser.feed('<tool_call>{"name": "add", "arguments": {"a": "')
    for _ in range(2000):
        out += parser.feed("x" * 100)
    assert len(out) > 1000
    assert isinstance(out[0], ToolCallDelta)
    assert out[0].name == "add"
    out += parser.feed('"}}</tool_call>') + parser.close()
    [call] = fold([*out, Finish("stop")]).choices[0].tool_calls()
    assert json.loads(call.arguments) == {"a": "x" * 200_000}


def test_a_call_that_cannot_be_streamed_and_is_too_long_is_text() -> None:
    text = '<tool_call>{"arguments": {"a": "' + "x" * MAX_HELD + '"}, "name": "add"}</tool_call>'
    assert folded("hermes", [text[i : i + 1000] for i in range(0, len(text), 1000)]) == (text, [])


def test_a_streamed_call_that_breaks_off_keeps_what_there_was() -> None:
    text, calls = folded("hermes", list('<tool_call>{"name": "add", "arguments": {"a": "bcd'), hold=0)
    assert (text, calls) == ("", [("add", '{"a": "bcd')])


def test_text_before_a_call_is_not_held_back() -> None:
    parser = ToolCallParser(TOOL_SYNTAXES["hermes"], CallIds())
    assert parser.feed("Hello ") == [TextDelta("Hello ")]
    assert parser.feed("<b>") == [TextDelta("<b>")]
    assert parser.feed("<tool") == []


def test_a_second_call_after_a_malformed_one_is_found() -> None:
    text = '<tool_call>oh</tool_call><tool_call>{"name": "now"}</tool_call>'
    assert folded("hermes", [text]) == ("<tool_call>oh</tool_call>", [("now", "{}")])


def test_a_forced_object_is_a_call() -> None:
    parser = ToolCallParser(BareObject(), CallIds(), names=NAMES)
    out = parser.feed('{"name": "add", "arguments": {"a": 1}}') + parser.close()
    assert out == [ToolCallDelta(0, "call_0", "add", '{"a": 1}')]
