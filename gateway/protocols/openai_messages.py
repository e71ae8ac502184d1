"""OpenAI's messages and tools to neutral ones. Source: openai-openapi `ChatCompletionRequestMessage`, `ChatCompletionTool`."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import msgspec
from msgspec import UNSET

from backends.core.errors import BadRequest
from backends.core.request import ImageInput, Message, Part, Text, Tool, ToolCall, ToolChoice
from gateway.protocols.decoding import MAX_SCHEMA_BYTES, checked_schema, stated
from gateway.protocols.openai_shared import size
from gateway.protocols.openai_wire import (
    AllowedChoice,
    ChatBody,
    ChatMessage,
    ContentPart,
    CustomChoice,
    CustomTool,
    FunctionChoice,
    ImagePart,
    RefusalPart,
    TextPart,
)


class Conversation(msgspec.Struct, gc=False):
    """Messages and the UTF-8 bytes of their text (images do not count)."""

    messages: tuple[Message, ...]
    text_bytes: int


def conversation(messages: Sequence[ChatMessage]) -> Conversation:
    """The neutral conversation.

    Raises:
        BadRequest: names the message's field.
    """
    total = 0
    out: list[Message] = []
    for number, message in enumerate(messages):
        content = message.content
        if type(content) is str and _plain(message):
            total += len(content) if content.isascii() else size(content)
            out.append(Message(message.role, (Text(content),)))  # type: ignore[arg-type]  # `function` is not plain
            continue
        one = _message(message, number)
        total += size(one.text) + size(one.refusal) + size(one.reasoning) + len(one.name)
        total += sum(size(call.name) + size(call.arguments) for call in one.tool_calls)
        out.append(one)
    return Conversation(tuple(out), total)


def tools(body: ChatBody) -> tuple[Tool, ...]:
    """The functions that may be called, only the allowed ones when `tool_choice` says so.

    Raises:
        BadRequest: a kind of tool that is not supported, a bad schema, or an allowed tool that does not exist.
    """
    out: list[Tool] = []
    schema_bytes = 0
    for number, tool in enumerate(body.tools or ()):
        if isinstance(tool, CustomTool):
            raise _unsupported(f"tools[{number}].type", "Custom tools are not supported; use a function tool.")
        function = tool.function
        schema = stated(function.parameters)
        schema_bytes += 0 if schema is None else len(bytes(schema))
        if schema_bytes > MAX_SCHEMA_BYTES:
            raise BadRequest(f"The schemas of 'tools' are longer than {MAX_SCHEMA_BYTES} bytes.", param="tools")
        parameters = _NO_PARAMETERS if schema is None else checked_schema(schema, f"tools[{number}].function.parameters")
        out.append(Tool(function.name, function.description or "", parameters, function.strict))
    choice = body.tool_choice
    if isinstance(choice, AllowedChoice):
        allowed = {tool.function.name for tool in choice.allowed_tools.tools}
        if unknown := sorted(allowed - {tool.name for tool in out}):
            raise BadRequest(f"Tool choice {unknown[0]!r} is not in 'tools'.", param="tool_choice.allowed_tools.tools")
        out = [tool for tool in out if tool.name in allowed]
    return tuple(out)


_NO_PARAMETERS = msgspec.Raw(b"{}")


def tool_choice(body: ChatBody) -> ToolChoice | None:
    """How tools are chosen; None when not stated.

    Raises:
        BadRequest: a choice without tools, or of a tool that is not there.
    """
    choice = body.tool_choice
    if choice is None:
        return None
    if isinstance(choice, CustomChoice):
        raise _unsupported("tool_choice.type", "Custom tools are not supported; use a function tool.")
    if choice == "none":
        return ToolChoice("none")
    if not body.tools:
        raise BadRequest("'tool_choice' is only allowed when 'tools' are given.", param="tool_choice")
    if isinstance(choice, FunctionChoice):
        name = choice.function.name
        if all(isinstance(tool, CustomTool) or tool.function.name != name for tool in body.tools):
            raise BadRequest(f"Tool choice {name!r} is not in 'tools'.", param="tool_choice.function.name")
        return ToolChoice("function", name)
    return ToolChoice(choice.allowed_tools.mode if isinstance(choice, AllowedChoice) else choice)


def _plain(message: ChatMessage) -> bool:
    """Whether a message has a role and content alone: nearly all have, so they are not examined field by field."""
    return message.role in _PLAIN_ROLES and _beside(message) == _NOTHING_BESIDE


_beside = attrgetter(
    "name", "tool_calls", "tool_call_id", "refusal", "reasoning_content", "reasoning", "function_call", "audio"
)
_NOTHING_BESIDE = (None,) * 6 + (UNSET,) * 2
_PLAIN_ROLES = frozenset({"user", "assistant", "system", "developer"})


def _message(message: ChatMessage, number: int) -> Message:
    """One message whose fields fit its role."""
    at = f"messages[{number}]"
    role = message.role
    if role == "function":
        raise _unsupported(f"{at}.role", "The role 'function' is not supported; use 'tool'.")
    _only(message, number)
    parts, refusal = _parts(message.content, at, role)
    calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ())
    if message.content is None and not (role == "assistant" and (calls or message.refusal)):
        raise BadRequest(
            f"Invalid value for '{at}.content': a message of the role {role} needs content.",
            param=f"{at}.content",
            code="missing_required_parameter",
        )
    if role == "tool" and message.tool_call_id is None:
        raise BadRequest(
            f"Missing required parameter: '{at}.tool_call_id'.",
            param=f"{at}.tool_call_id",
            code="missing_required_parameter",
        )
    return Message(
        role,
        parts,
        message.name or "",
        calls,
        message.tool_call_id or "",
        message.reasoning_content or message.reasoning or "",
        (message.refusal or "") + refusal,
    )


def _only(message: ChatMessage, number: int) -> None:
    """Refuse fields that this role cannot have; null is always fine.

    Raises:
        BadRequest: names the field.
    """
    at = f"messages[{number}]"
    if message.role != "assistant":
        for name in ("tool_calls", "refusal", "reasoning_content", "reasoning"):
            if getattr(message, name):
                raise BadRequest(f"Only an assistant message may have '{name}'.", param=f"{at}.{name}")
    if message.tool_call_id is not None and message.role != "tool":
        raise BadRequest("Only a tool message may have 'tool_call_id'.", param=f"{at}.tool_call_id")
    if stated(message.function_call) is not None:
        raise _unsupported(f"{at}.function_call", "'function_call' is not supported; use 'tool_calls'.")
    if stated(message.audio) is not None:
        raise _unsupported(f"{at}.audio", "Audio is not supported.")


def _parts(content: str | list[ContentPart] | None, at: str, role: str) -> tuple[tuple[Part, ...], str]:
    """Neutral parts, and the text of refusal parts."""
    if content is None:
        return (), ""
    if isinstance(content, str):
        return (Text(content),), ""
    out: list[Part] = []
    refusal = ""
    for number, part in enumerate(content):
        here = f"{at}.content[{number}]"
        if isinstance(part, TextPart):
            out.append(Text(part.text))
        elif isinstance(part, RefusalPart):
            if role != "assistant":
                raise BadRequest("Only an assistant message may have refusal parts.", param=f"{here}.type")
            refusal += part.refusal
        elif isinstance(part, ImagePart):
            if role != "user":
                raise BadRequest("Only a user message may have images.", param=f"{here}.type")
            out.append(_image(part, here))
        else:
            raise _unsupported(f"{here}.type", "Audio and file content is not supported.")
    return tuple(out), refusal


def _image(part: ImagePart, here: str) -> ImageInput:
    url = part.image_url.url
    if not url[:11].lower().startswith("data:image/"):
        raise BadRequest("An image must be given as a 'data:image/...' URL: nothing is fetched.", param=f"{here}.image_url.url")
    return ImageInput(url, part.image_url.detail or "auto")


def _unsupported(param: str, message: str) -> BadRequest:
    return BadRequest(message, param=param, code="unsupported_parameter")
