"""Chat templates: the Jinja source that a model carries, rendered in a sandbox.

Source: Hugging Face transformers 5.x `utils/chat_template_utils.py` (trim_blocks, lstrip_blocks, loop controls, the
`generation` block, `raise_exception`, `strftime_now`, `tojson` without HTML escaping), which is what templates are
written against. The source comes from a model file, so it is bounded in time and size; see `sandbox`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import msgspec
from jinja2.exceptions import SecurityError

from backends.core.errors import BadRequest
from backends.core.request import Message, Text, Tool
from backends.parsing.sanitise import public
from backends.templates.conversation import Marker, Shape, conversation, plain, tool_list
from backends.templates.sandbox import MAX_OUTPUT, Sandbox, TooSlow

#: Longest template source, in characters.
MAX_SOURCE = 1024 * 1024
#: How long one rendering may take.
RENDER_S = 2.0
_MAX_INDENT = 64
_PROBE = Text("a probing sentence")
_TOOL = Tool("a_probing_tool", "probes", msgspec.Raw(b'{"type": "object", "properties": {}}'))


class Segment(msgspec.Struct, frozen=True, gc=False):
    """A piece of a rendered prompt. `trusted`: the template's own text; otherwise it came from the client."""

    text: str
    trusted: bool


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= indent <= _MAX_INDENT:
        raise SecurityError("an indentation that is too large")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise BadRequest(public(str(message)) or "The model's chat template refuses these messages.", param="messages")


class ChatTemplate:
    """A model's chat template. Rendering is pure and may be repeated."""

    def __init__(
        self,
        source: str,
        bos_token: str = "",
        eos_token: str = "",
        *,
        clock: Callable[[], datetime] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Compile a template.

        Args:
            source: Jinja source.
            bos_token, eos_token: the texts of these tokens. Give "" for `bos_token` where the tokeniser adds it.
            clock: for templates that write the date; without it `strftime_now` is undefined, which templates test.
            extra: further variables (`enable_thinking` ...).

        Raises:
            ValueError: the source is too long or no template; the line is named.
        """
        if len(source) > MAX_SOURCE:
            raise ValueError(f"a chat template of {len(source)} characters; at most {MAX_SOURCE} are allowed")
        environment = self._environment = Sandbox()
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        if clock is not None:
            environment.globals["strftime_now"] = lambda form: clock().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template is broken in line {error.lineno}: {error.message}") from None
        except (jinja2.TemplateError, RecursionError) as error:
            raise ValueError(f"the chat template is broken: {error}") from None
        self._variables = {**(extra or {}), "bos_token": bos_token, "eos_token": eos_token}
        self._shape = self._probe()

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation.

        Raises:
            BadRequest: the template refuses these messages (its own words), cannot render them, or the prompt is too
                long.
        """
        return self._render(messages, tools, add_generation_prompt, plain)[0]

    def render_segments(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), add_generation_prompt: bool = True
    ) -> tuple[Segment, ...]:
        """The same prompt, the client's text kept apart, so that it never becomes control tokens.

        Tokenise untrusted segments as plain text (llama.cpp: `parse_special=False`). That may give other tokens at the
        seams than tokenising the joined string; so, where `conversation.holds` finds no special-token text in what
        the client sent, callers should tokenise `render()` whole instead.

        Raises:
            BadRequest: as `render`; or the template changes the text so that it cannot be followed.
        """
        whole, shape = self._render(messages, tools, add_generation_prompt, plain)
        marker = Marker.absent_from(whole)
        marked = self._one(messages, tools, add_generation_prompt, marker.around, shape)
        segments: list[Segment] = []
        outer = marked.split(marker.begin)
        joined = [(outer[0], True)]
        for piece in outer[1:]:
            inside, found, after = piece.partition(marker.end)
            joined += [(inside, not found), (after, True)]
        for text, trusted in joined:
            if text:
                segments.append(Segment(text, trusted))
        balanced = marked.count(marker.begin) == marked.count(marker.end) == sum(not piece.trusted for piece in segments)
        if not balanced or "".join(piece.text for piece in segments) != whole:
            raise BadRequest("These messages hold text that this model's chat template cannot carry safely.", param="messages")
        return tuple(segments)

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows tools to the model."""
        try:
            return _TOOL.name in self.render((Message("user", (_PROBE,)),), (_TOOL,))
        except BadRequest:
            return False

    @property
    def tail(self) -> str:
        """How a conversation's prompt ends: at most 64 characters, "" when a plain question is refused."""
        try:
            return self.render((Message("user", (_PROBE,)),))[-64:]
        except BadRequest:
            return ""

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Tool], prompt: bool, mark: Callable[[str], str]
    ) -> tuple[str, Shape]:
        """The prompt, and the shape of messages that the template took."""
        calls = any(message.tool_calls for message in messages)
        shapes = self._shape.variants() if calls else (self._shape,)
        for shape in shapes[:-1]:
            try:
                return self._one(messages, tools, prompt, mark, shape), shape
            except _Unsuitable:
                continue
        return self._one(messages, tools, prompt, mark, shapes[-1]), shapes[-1]

    def _one(
        self, messages: Sequence[Message], tools: Sequence[Tool], prompt: bool, mark: Callable[[str], str], shape: Shape
    ) -> str:
        turns = conversation(messages, shape, mark)
        out: list[str] = []
        size = 0
        pieces = self._template.generate(
            messages=turns, tools=tool_list(tools, mark) or None, add_generation_prompt=prompt, **self._variables
        )
        try:
            with self._environment.within(RENDER_S):
                for piece in pieces:
                    size += len(piece)
                    if size > MAX_OUTPUT:
                        raise BadRequest(f"The rendered prompt is longer than {MAX_OUTPUT} characters.", param="messages")
                    out.append(piece)
        except BadRequest:
            raise
        except TooSlow:
            raise Overlong(
                f"The model's chat template did not render these messages within {RENDER_S:g} s.", param="messages"
            ) from None
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            MemoryError,
        ) as error:
            raise _Unsuitable(
                "The model's chat template cannot render these messages.",
                param="messages",
                detail=f"{type(error).__name__}: {error}",
            ) from None
        return "".join(out)

    def _probe(self) -> Shape:
        """Whether message text must be a list of parts: a few templates show nothing of a plain string."""
        turn = (Message("user", (_PROBE,)),)
        shown = []
        for shape in (Shape(), Shape(parts=True)):
            try:
                shown.append(_PROBE.text in self._one(turn, (), False, plain, shape))
            except BadRequest:
                shown.append(False)
        return Shape(parts=True) if shown == [False, True] else Shape()


class Overlong(BadRequest):
    """The template did not render these messages in time."""


class _Unsuitable(BadRequest):
    """The template failed on this shape of messages; another may do."""
