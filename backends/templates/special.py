"""Texts that some model's tokenizer reads as control tokens, where a client wrote them.

Where a server takes token ids and somebody can tokenise plain text as plain text, such texts stay as they are. Elsewhere
each is broken: a zero-width space (U+200B) goes behind its first character, so that it is read as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from backends.core.errors import BadRequest
from backends.core.request import Message, Text, Tool, ToolCall

#: What special tokens look like in the vocabularies of the known model families: ChatML, Llama 2 to 4, Mistral, Gemma,
#: Phi, DeepSeek, GLM, Command, fill-in-the-middle and media marks.
_SPECIAL = re.compile(
    r"<\|[^|>\s]{1,64}\|>|<\|[A-Za-z_]{1,64}>|<\uff5c[^\uff5c>]{1,64}\uff5c>"
    r"|</?s>|<(?:bos|eos|pad|unk|cls|sep|mask|sop|eop)>|<(?:start|end)_of_\w{1,32}>|<(?:unused|extra_id_|reserved_)\w{1,32}>"
    r"|<(?:fim|file|repo|image|audio|video|vision|img)[\w-]{0,32}>|</?(?:image|audio|video|img)>"
    r"|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|SYSTEM_PROMPT|IMG|IMG_BREAK|IMG_END|ARGS|CALL_ID"
    r"|PREFIX|SUFFIX|MIDDLE|THINK|MODEL_SETTINGS|gMASK|sMASK|MASK|CLS|SEP|PAD|UNK)\]|<</?SYS>>"
)
_BREAK = "\u200b"
#: How deep the arguments of a tool call may be nested.
MAX_DEPTH = 64
_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_BRACKETS = re.compile(r"[\[\]{}]")


def looks_special(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> bool:
    """Whether anything that the client sent holds what could become a control token of some model."""
    return any(_SPECIAL.search(text) for text in texts(messages, tools))


def broken(text: str) -> str:
    """The text with every special one in it broken."""
    while True:
        mended = _SPECIAL.sub(lambda found: found[0][0] + _BREAK + found[0][1:], text)
        if mended == text:
            return text
        text = mended


def broken_messages(messages: Sequence[Message], *, contents: bool) -> tuple[Message, ...]:
    """The messages with broken names, ids, thoughts and calls; with `contents` their text too."""
    return tuple(
        msgspec.structs.replace(
            one,
            parts=tuple(Text(broken(part.text)) if contents and isinstance(part, Text) else part for part in one.parts),
            name=broken(one.name),
            tool_call_id=broken(one.tool_call_id),
            reasoning=broken(one.reasoning),
            tool_calls=tuple(ToolCall(broken(c.id), broken(c.name), _broken_json(c.arguments)) for c in one.tool_calls),
        )
        for one in messages
    )


def broken_tools(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """The tools, with every text in them broken."""
    return tuple(
        msgspec.structs.replace(
            one,
            name=broken(one.name),
            description=broken(one.description),
            parameters=msgspec.Raw(_broken_json(bytes(one.parameters).decode()).encode()),
        )
        for one in tools
    )


def texts(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Iterator[str]:
    """Every text that the client sent and that a template may show."""
    for message in messages:
        yield message.text
        if message.reasoning or message.name or message.tool_call_id or message.tool_calls:
            yield from (message.reasoning, message.name, message.tool_call_id)
            for call in message.tool_calls:
                yield from (call.id, call.name, call.arguments)
                yield from _escaped(call.arguments)
    for tool in tools:
        parameters = bytes(tool.parameters).decode()
        yield from (tool.name, tool.description, parameters)
        yield from _escaped(parameters)


def _escaped(text: str) -> Iterator[str]:
    """The strings in a JSON text, where its own spelling may hide what they hold."""
    return _leaves(parsed(text)) if "\\" in text else iter(())


def _broken_json(text: str) -> str:
    """A JSON text with every string in it broken."""
    if not any(_SPECIAL.search(one) for one in (text, *_escaped(text))):
        return text
    value = parsed(text)
    return broken(text) if value is None else msgspec.json.encode(_map(value)).decode()


def _map(value: Any) -> Any:
    if isinstance(value, str):
        return broken(value)
    if isinstance(value, dict):
        return {broken(key): _map(one) for key, one in value.items()}
    return [_map(one) for one in value] if isinstance(value, list) else value


def parsed(text: str) -> Any:
    """The value of a JSON text; None for what is none.

    Raises:
        BadRequest: it is nested too deeply.
    """
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise BadRequest(f"The arguments of a tool call are nested more than {MAX_DEPTH} levels deep.", param="messages")
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None


def _depth(text: str) -> int:
    """How deep brackets are nested, those in strings not counted."""
    deepest = depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _leaves(one)
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one)
