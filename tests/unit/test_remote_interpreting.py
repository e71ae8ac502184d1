"""The wrapper around a backend of text: what it asks of it, and what it makes of the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import jsonschema
import msgspec
import pytest

from backends.core.errors import UnsupportedParameter
from backends.core.events import Event, Finish, Started, TextDelta
from backends.core.fold import fold
from backends.core.request import GenerationRequest, Job, Message, Output, Prompt, Text, Tool, ToolCall, ToolChoice
from backends.parsing.think import THINK_TAGS
from backends.parsing.toolcalls.families import TOOL_SYNTAXES
from backends.remote.forcing import forced_call
from backends.remote.interpreting import Interpreting, gives

TOOLS = (
    Tool("f", parameters=msgspec.Raw(b'{"type":"object","properties":{"a":{"$ref":"#/$defs/A"}},"$defs":{"A":{}}}')),
    Tool("g"),
)
CHAT = GenerationRequest("m", (Message("user", (Text("?"),)),), tools=TOOLS)


class Speaker:
    """Says a text, letter by letter; keeps the job."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.job: Job | None = None
        self.closed = False

    @asynccontextmanager
    async def open(self, job: Job, leaving: object = None) -> AsyncIterator[AsyncIterator[Sequence[Event]]]:
        self.job = job
        yield self._batches()

    async def _batches(self) -> AsyncIterator[Sequence[Event]]:
        yield [Started("m")]
        for letter in self.text:
            yield [TextDelta(letter)]
        yield [Finish("stop")]

    async def aclose(self) -> None:
        self.closed = True


async def asked(text: str, job: Job, *, opened: bool = False, thinking: str = "") -> tuple[GenerationRequest, list[Event]]:
    speaker = Speaker(text)
    tags = THINK_TAGS[thinking] if thinking else None
    backend = Interpreting(speaker, syntax=TOOL_SYNTAXES["hermes"], tags=tags, opened=lambda: opened)
    async with backend.open(job) as batches:
        events = [event async for batch in batches for event in batch if batch]
    assert isinstance(speaker.job, GenerationRequest)
    return speaker.job, events


async def test_calls_are_read_and_the_choice_of_tools_is_ours() -> None:
    job, events = await asked(
        '<tool_call>{"name": "g"}</tool_call>',
        msgspec.structs.replace(CHAT, tool_choice=ToolChoice("auto"), parallel_tool_calls=True),
    )
    assert (job.tools, job.tool_choice, job.parallel_tool_calls) == (TOOLS, None, None)
    choice = fold(events).choices[0]
    assert choice.tool_calls() == (ToolCall("call_0", "g", "{}"),)
    assert choice.finish == "tool_calls"


async def test_none_hides_the_tools_from_the_model() -> None:
    job, events = await asked("<tool_call>x", msgspec.structs.replace(CHAT, tool_choice=ToolChoice("none")))
    assert job.tools == ()
    assert "".join(fold(events).choices[0].text) == "<tool_call>x"


@pytest.mark.parametrize("choice", [ToolChoice("required"), ToolChoice("function", "f")])
async def test_a_forced_call_is_asked_by_schema(choice: ToolChoice) -> None:
    job, events = await asked(
        '{"name": "f", "arguments": {"a": 1}}', msgspec.structs.replace(CHAT, tool_choice=choice), thinking="opened"
    )
    assert job.output.kind == "json_schema"
    schema = msgspec.json.decode(job.output.schema)
    assert schema["$defs"] == {"A": {}}
    names = [one["properties"]["name"]["const"] for one in schema.get("anyOf", [schema])]
    assert names == (["f", "g"] if choice.mode == "required" else ["f"])
    assert [(call.name, call.arguments) for call in fold(events).choices[0].tool_calls()] == [("f", '{"a": 1}')]


async def test_thoughts_that_the_template_began() -> None:
    plain = msgspec.structs.replace(CHAT, tools=())
    _, events = await asked("Hm.</think>Yes.", plain, opened=True, thinking="qwen")
    choice = fold(events).choices[0]
    assert ("".join(choice.reasoning), "".join(choice.text)) == ("Hm.", "Yes.")


async def test_ids_go_on_where_earlier_turns_ended() -> None:
    turns = (
        *CHAT.messages,
        Message("assistant", tool_calls=(ToolCall("call_0", "g", "{}"),)),
        Message("tool", tool_call_id="call_0"),
    )
    _, events = await asked('<tool_call>{"name": "g"}</tool_call>', msgspec.structs.replace(CHAT, messages=turns))
    assert [call.id for call in fold(events).choices[0].tool_calls()] == ["call_1"]


async def test_plain_completions_are_left_alone() -> None:
    _, events = await asked("<think>x</think>", GenerationRequest("m", prompts=(Prompt("x"),)), thinking="qwen")
    assert "".join(fold(events).choices[0].text) == "<think>x</think>"


async def test_tools_and_a_stated_form_do_not_go_together() -> None:
    with pytest.raises(UnsupportedParameter) as error:
        await asked("", msgspec.structs.replace(CHAT, output=Output("json_object")))
    assert error.value.param == "response_format"


def test_what_it_gives_and_closes() -> None:
    assert gives(frozenset(), None) == frozenset()
    assert gives(frozenset({"chat"}), TOOL_SYNTAXES["hermes"]) == {"tools", "parallel_tool_calls"}
    assert "tool_choice" in gives(frozenset({"response_format.json_schema"}), TOOL_SYNTAXES["hermes"])
    assert msgspec.json.decode(forced_call([TOOLS[1]]))["properties"]["arguments"] == {"type": "object"}


def test_definitions_of_two_tools_with_one_name_stay_apart() -> None:
    def tool(name: str, kind: str) -> Tool:
        place = {"type": "object", "properties": {"in": {"$ref": "#/$defs/Place"}, "v": {"type": kind}}}
        parameters = {
            "type": "object",
            "properties": {
                "at": {"$ref": "#/$defs/Place"},
                "same": {"$ref": "#/properties/at"},
                "$ref": {"const": {"$ref": "#"}},
            },
            "$defs": {"Place": place},
        }
        return Tool(name, parameters=msgspec.Raw(msgspec.json.encode(parameters)))

    schema = msgspec.json.decode(forced_call([tool("f", "string"), tool("g", "integer")]))
    validator = jsonschema.Draft202012Validator(schema)
    for name, good, bad in (("f", "x", 1), ("g", 1, "x")):
        for key in ("at", "same"):
            for value, fits in ((good, True), (bad, False)):
                call = {"name": name, "arguments": {key: {"v": value, "in": {"v": value}}}}
                assert validator.is_valid(call) is fits, call
    assert validator.is_valid({"name": "f", "arguments": {"$ref": {"$ref": "#"}}})
