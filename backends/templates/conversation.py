"""Conversations as chat templates expect them, and marks around the client's text.

Templates want `developer` as `system`, text as a plain string (a few: a list of parts), the arguments of tool calls as
objects (a few: as JSON text), and null content beside tool calls (a few: "").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from backends.core.request import Message, Text, Tool, ToolCall
from backends.templates.special import parsed, texts

#: What templates look for in an assistant's earlier turn to leave its thoughts out. These tags stay unmarked there.
_THOUGHTS = re.compile(r"(</?(?:think|thinking|thought|reasoning)>)")
_CORE = re.compile(r"\A(\s*)(.*?)(\s*)\Z", re.DOTALL)
#: Every special token that is known has one of these; other strings are left alone, as templates compare them.
_SUSPICIOUS = re.compile("[<\\[{|\uff5c\u2581]")


class Shape(msgspec.Struct, frozen=True):
    """How a template wants its messages."""

    parts: bool = False
    null_content: bool = True
    object_arguments: bool = True

    def variants(self) -> tuple[Shape, ...]:
        """What to try for tool calls, most usual first."""
        return tuple(
            Shape(self.parts, null_content=null, object_arguments=objects)
            for null, objects in ((True, True), (False, True), (True, False), (False, False))
        )


class Marker(msgspec.Struct, frozen=True):
    """Two characters, absent from a text, that are put around the client's part of it."""

    begin: str
    end: str

    @classmethod
    def absent_from(cls, text: str) -> Marker:
        """Private-use characters that the text does not hold.

        Raises:
            ValueError: it holds all of them.
        """
        free = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
        begin, end = next(free, ""), next(free, "")
        if not end:
            raise ValueError("a text that holds every private-use character")
        return cls(begin, end)

    def around(self, text: str) -> str:
        """The text with its core marked; white space at its ends stays outside, for templates that trim."""
        match = _CORE.match(text)
        if match is None or not match[2]:
            return text
        return f"{match[1]}{self.begin}{match[2]}{self.end}{match[3]}"


def plain(text: str) -> str:
    """No mark."""
    return text


def holds(messages: Sequence[Message], tools: Sequence[Tool], special: Collection[str]) -> bool:
    """Whether anything that the client sent holds one of these special-token texts."""
    return any(token in text for text in texts(messages, tools) for token in special if token)


def conversation(messages: Sequence[Message], shape: Shape, mark: Callable[[str], str]) -> list[dict[str, Any]]:
    """The `messages` of a template."""
    return [_turn(message, shape, mark) for message in messages]


def _turn(message: Message, shape: Shape, mark: Callable[[str], str]) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    if message.role == "assistant":
        text = "".join(piece if n % 2 else mark(piece) for n, piece in enumerate(_THOUGHTS.split(message.text)))
    else:
        text = mark(message.text)
    if message.tool_calls and not text and shape.null_content:
        turn["content"] = None
    elif shape.parts:
        turn["content"] = [{"type": "text", "text": mark(part.text)} for part in message.parts if isinstance(part, Text)]
    else:
        turn["content"] = text
    for name in ("name", "tool_call_id"):
        if value := getattr(message, name):
            turn[name] = _marked(value, mark)
    if message.reasoning:
        turn["reasoning_content"] = mark(message.reasoning)
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, shape, mark) for call in message.tool_calls]
    return turn


def _call(call: ToolCall, shape: Shape, mark: Callable[[str], str]) -> dict[str, Any]:
    arguments: Any = _object(call.arguments) if shape.object_arguments else call.arguments
    function = {"name": _marked(call.name, mark), "arguments": _marked(arguments, mark)}
    return {"id": _marked(call.id, mark), "type": "function", "function": function}


def _object(arguments: str) -> Any:
    """Arguments as an object; as text when they are none."""
    value = parsed(arguments)
    return value if isinstance(value, dict) else arguments


def tool_list(tools: Sequence[Tool], mark: Callable[[str], str]) -> list[dict[str, Any]]:
    """The `tools` of a template."""
    return [
        {
            "type": "function",
            "function": {
                "name": _marked(tool.name, mark),
                "description": _marked(tool.description, mark),
                "parameters": _marked(msgspec.json.decode(tool.parameters), mark),
            },
        }
        for tool in tools
    ]


def _marked(value: Any, mark: Callable[[str], str]) -> Any:
    """Every string within, keys too, that could hold a special token, marked."""
    if isinstance(value, str):
        return mark(value) if _SUSPICIOUS.search(value) else value
    if isinstance(value, dict):
        return {_marked(key, mark): _marked(one, mark) for key, one in value.items()}
    if isinstance(value, list):
        return [_marked(one, mark) for one in value]
    return value
