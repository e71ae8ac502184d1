"""Answers of Anthropic's Messages API, streamed or whole, turned into events.

Source: PyPI anthropic 2.12.0 (types/raw_message_stream_event.py, message.py, usage.py). A stream is `message_start`,
blocks (`content_block_start`, deltas, `content_block_stop`), `message_delta` with the reason, `message_stop`; `ping`
at any time. Only `message_stop` is its clean end. Blocks of kinds that we never asked for say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from backends.core.events import Event, Finish, FinishReason, ReasoningDelta, Started, TextDelta
from backends.core.usage import ABSURD, Usage
from backends.dialects.answers import UNREADABLE, AnswerDecoder
from backends.parsing import failures, second_look
from backends.parsing.callpieces import CallIds, CallPieces
from backends.parsing.framing import EventsOrBody
from backends.parsing.sse import SseEvent

_EMPTY = msgspec.Raw(b"")
_FINISH: Mapping[str, FinishReason] = {
    "end_turn": "stop", "stop_sequence": "stop", "pause_turn": "stop", "max_tokens": "length",
    "model_context_window_exceeded": "length", "tool_use": "tool_calls", "refusal": "content_filter",
}  # fmt: skip


class _OutputDetails(msgspec.Struct, gc=False):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    """`input_tokens` are those that were neither read from the cache nor written to it."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = _EMPTY


class _Delta(msgspec.Struct, gc=False):
    """Of a block, or (`stop_reason`) of the message."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Message(msgspec.Struct, gc=False):
    model: str = ""
    content: list[_Block] = []
    stop_reason: str | None = None
    usage: _Usage | None = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None


_read_event = msgspec.json.Decoder(_Event, strict=False).decode
_read_type = msgspec.json.Decoder(_Block, strict=False).decode
_read_message = msgspec.json.Decoder(_Message, strict=False).decode


class MessagesDecoder(AnswerDecoder):
    """One message: always one choice."""

    def __init__(self) -> None:
        super().__init__(EventsOrBody())
        self._calls = CallPieces(0, CallIds())
        self._silent: set[int] = set()  # tool calls that have told no arguments yet, by block
        self._usage = _Usage()
        self._reason: FinishReason | None = None

    def _event(self, wire: SseEvent, out: list[Event], *, cut: bool = False) -> None:
        data = wire.data
        try:
            event = _read_event(data)
        except UNREADABLE:
            try:
                event = _read_event(second_look.encoded(self._values(data)))
            except UNREADABLE:
                if self._apart(wire, out, cut=cut):
                    return
                odd = "the body ended inside an event"
                self._fail(failures.truncated(odd) if cut else failures.protocol("not an event", data), out)
                return
        kind = event.type or wire.name
        if kind == "error":
            self._error(data, out)
        elif kind == "message_start" and event.message is not None:
            self._start(event.message, out)
        elif kind == "content_block_start" and event.content_block is not None:
            self._open(event.index, event.content_block, out)
        elif kind == "content_block_delta" and event.delta is not None:
            self._delta(event.index, event.delta, out)
        elif kind == "content_block_stop":
            self._stop(event.index, out)
        elif kind == "message_delta":
            self._tell(event.usage)
            if event.delta is not None and event.delta.stop_reason:
                self._finish(event.delta.stop_reason, out)
        elif kind == "message_stop":
            self._end(out)

    def _whole(self, body: bytes, out: list[Event]) -> None:
        """A unary body: the message with everything in it, or an error."""
        try:
            kind = _read_type(body).type
            message = _read_message(body)
        except UNREADABLE:
            try:
                mended = second_look.encoded(self._values(body))
                kind, message = _read_type(mended).type, _read_message(mended)
            except UNREADABLE:
                self._fail(failures.protocol("not a message", body), out)
                return
        if kind != "message":
            if failures.envelope(body).message:
                self._error(body, out)
            else:
                self._fail(failures.protocol("not a message", body), out)
            return
        self._start(message, out)
        for index, block in enumerate(message.content):
            self._open(index, block, out)
            self._stop(index, out)
        if message.stop_reason:
            self._finish(message.stop_reason, out)
        self._end(out)

    def _start(self, message: _Message, out: list[Event]) -> None:
        if not self._started:
            self._started = True
            out.append(Started(message.model))
        self._tell(message.usage)

    def _open(self, index: int, block: _Block, out: list[Event]) -> None:
        if self._reason is not None:
            return
        if block.type == "tool_use":
            self._begun = True
            told = bytes(block.input) if block.input is not _EMPTY else b""
            arguments = "" if told in (b"", b"{}", b"null") else told.decode()
            if not arguments:
                self._silent.add(index)
            if piece := self._calls.feed(index, block.id, block.name, arguments, whole=True):
                out.append(piece)
        elif block.type in ("text", "thinking"):
            self._say(block.text, block.thinking, block.signature, out)

    def _delta(self, index: int, delta: _Delta, out: list[Event]) -> None:
        if self._reason is not None:
            return
        if delta.type == "input_json_delta":
            if delta.partial_json and (piece := self._calls.feed(index, "", "", delta.partial_json)):
                self._silent.discard(index)
                out.append(piece)
        elif delta.type in ("text_delta", "thinking_delta", "signature_delta"):
            self._say(delta.text, delta.thinking, delta.signature, out)

    def _say(self, text: str, thinking: str, signature: str, out: list[Event]) -> None:
        if thinking or signature:
            self._begun = True
            out.append(ReasoningDelta(thinking, signature=signature))
        if text:
            self._begun = True
            out.append(TextDelta(text))

    def _stop(self, index: int, out: list[Event]) -> None:
        """The end of a block: a call without any arguments has an empty object of them."""
        if index in self._silent and self._reason is None:
            self._silent.discard(index)
            if piece := self._calls.feed(index, "", "", "{}"):
                out.append(piece)

    def _tell(self, usage: _Usage | None) -> None:
        """Counts are totals so far: the latest of each holds."""
        for name in _Usage.__struct_fields__ if usage is not None else ():
            if (value := getattr(usage, name)) is not None:
                setattr(self._usage, name, value)

    def _finish(self, said: str, out: list[Event]) -> None:
        if self._reason is None:
            for index in sorted(self._silent):
                self._stop(index, out)
            self._reason = _FINISH.get(said, "stop")
            out.append(Finish(self._reason))

    def _end(self, out: list[Event]) -> None:
        if self._reason is None:
            self._fail(failures.truncated("the message ended without a stop_reason"), out)
            return
        self._ended = True
        if usage := self._counted():
            out.append(usage)

    def _counted(self) -> Usage | None:
        told = self._usage
        parts = (told.input_tokens, told.cache_read_input_tokens or 0, told.cache_creation_input_tokens or 0)
        if parts[0] is None or told.output_tokens is None or min(parts[0], *parts[1:], told.output_tokens) < 0:
            return None
        prompt = parts[0] + parts[1] + parts[2]
        if not 0 < prompt < ABSURD or not told.output_tokens < ABSURD or (self._begun and not told.output_tokens):
            return None
        details = told.output_tokens_details
        thought = details.thinking_tokens if details is not None else 0
        return Usage(prompt, told.output_tokens, parts[1], thought if thought and 0 < thought <= told.output_tokens else 0)
