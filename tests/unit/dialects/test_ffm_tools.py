"""Tools of AFS, as functions and as tools: what goes to the service and what comes back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backends.core.fold import fold
from backends.core.request import GenerationRequest, Message, Text, Tool, ToolCall, ToolChoice
from backends.registry import dialect

TOOL = Tool("add", "sums", msgspec.Raw(b'{"type":"object"}'))
TURNS = (
    Message("user", (Text("1+1?"),)),
    Message("assistant", (Text("so"),), tool_calls=(ToolCall("c1", "add", '{"a":1}'), ToolCall("c2", "add", "{}"))),
    Message("tool", (Text("2"),), tool_call_id="c1"),
)
ASKED = GenerationRequest("m", messages=TURNS, tools=(TOOL,), stream=True)


def sent(job: GenerationRequest, **options: object) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(dialect("ffm", "", options).encode(job).body)
    return body


def test_as_functions() -> None:
    body = sent(ASKED)
    assert body["functions"] == [{"name": "add", "description": "sums", "parameters": {"type": "object"}}]
    assert "tools" not in body
    call = {"name": "add", "arguments": '{"a":1}'}
    assert body["messages"] == [
        {"role": "human", "content": "1+1?"},
        {"role": "assistant", "content": "so", "function_call": call},
        {"role": "assistant", "content": "so", "function_call": {"name": "add", "arguments": "{}"}},
        {"role": "function", "name": "add", "content": "2"},
    ]


def test_as_tools() -> None:
    body = sent(ASKED, tool_form="tools")
    function = {"name": "add", "description": "sums", "parameters": {"type": "object"}}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert "functions" not in body
    assert body["messages"][1]["tool_calls"][1] == {
        "id": "c2",
        "type": "function",
        "function": {"name": "add", "arguments": "{}"},
    }
    assert body["messages"][2] == {"role": "tool", "content": "2", "tool_call_id": "c1"}


def test_none_of_them_where_the_client_wants_none() -> None:
    assert not {"tools", "functions"} & set(sent(msgspec.structs.replace(ASKED, tool_choice=ToolChoice("none"))))


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="tool_form"):
        dialect("ffm", "", {"tool_form": "calls"})


@pytest.mark.parametrize(
    ("told", "calls"),
    [
        ({"function_call": {"name": "add", "arguments": {"a": 1}}}, [("call_0", "add", '{"a":1}')]),
        ({"function_call": {"name": "add", "arguments": '{"a":1}'}, "generated_text": None}, [("call_0", "add", '{"a":1}')]),
        ({"function_call": {"name": "add", "arguments": None}}, [("call_0", "add", "{}")]),
        (
            {"tool_calls": [{"id": "x", "type": "function", "function": {"name": "add", "arguments": "{}"}},
                            {"id": "y", "function": {"name": "sub", "arguments": {}}}], "function_call": None},
            [("x", "add", "{}"), ("y", "sub", "{}")],
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("reason", ["function_call", "tool_calls", "stop_sequence"])
def test_calls_come_back(told: dict[str, object], calls: list[tuple[str, str, str]], reason: str) -> None:
    record = {"generated_text": "", "prompt_tokens": 5, "generated_tokens": 2, "finish_reason": reason, **told}
    for body in (msgspec.json.encode(record), b"data: " + msgspec.json.encode(record) + b"\n\n"):
        decoder = dialect("ffm").decoder(ASKED)
        answer = fold([*decoder.feed(body), *decoder.close()])
        found = [(call.id, call.name, call.arguments) for call in answer.choices[0].tool_calls()]
        assert found == calls
        assert answer.choices[0].finish == "tool_calls"
        assert answer.usage is not None and answer.usage.total_tokens == 7
