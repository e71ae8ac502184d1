"""Generations as OpenAI-like servers answer them, turned into events: the decoder of `openai_compatible`.

Rules, each with a fixture: one Finish per choice; role-only and empty deltas say nothing; running usage totals are
not summed and impossible ones are dropped, so that the gateway counts; an error in any envelope ends the stream, and
`[DONE]` after it is no success; a body that ends without the terminator that the quirks declare is `truncated`; what
comes after the end, or for a choice that has finished, is ignored. A body is read by its own first byte as events or
as JSON: some servers answer JSON to `stream: true`, and errors under 200.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from backends.core.events import (
    Event,
    Finish,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
)
from backends.core.request import GenerationRequest
from backends.core.usage import Usage
from backends.dialects.answers import UNREADABLE, AnswerDecoder
from backends.dialects.openai_details import add_usage, count_ids, read_arguments, read_logprobs, read_usage, tidied
from backends.parsing import failures, second_look
from backends.parsing.callpieces import CallIds, CallPieces
from backends.parsing.framing import EventsOrBody
from backends.parsing.sse import SseEvent
from backends.parsing.stops import StopCutter
from backends.wire.openai_chat import EMPTY, ChoicePiece, Chunk, Delta, ToolCallPiece

if TYPE_CHECKING:
    from backends.dialects.openai_compatible import Quirks

#: Finish reasons by backend. TGI: eos_token, stop_sequence; api_like_OAI: length_limit; LMDeploy: parse_error.
_FINISH: dict[str, FinishReason] = {
    "stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "eos": "stop", "end_turn": "stop", "length": "length",
    "length_limit": "length", "limit": "length", "max_tokens": "length", "model_length": "length", "tool_calls": "tool_calls",
    "function_call": "tool_calls", "tool_use": "tool_calls", "content_filter": "content_filter", "refusal": "content_filter",
}  # fmt: skip
#: Finish reasons of an answer that broke off; DeepSeek's API names its want of machines so.
_ABORTED = frozenset({"abort", "aborted", "error", "cancelled", "insufficient_system_resource"})
#: Events without content; llama.cpp begins each but the first group of several prompts' choices with `null`.
_NOTHING = frozenset({b"", b"null"})
_read = msgspec.json.Decoder(Chunk, strict=False).decode
_read_any = msgspec.json.Decoder().decode


class _Choice(msgspec.Struct):
    """What is known of one choice so far."""

    index: int
    cutter: StopCutter | None = None
    calls: CallPieces | None = None
    spoke: bool = False
    texts: int = 0
    reason: FinishReason | None = None


class GenerationDecoder(AnswerDecoder):
    """Chat and completion answers, streamed or whole."""

    _prompt_tokens = 0
    #: Of the calls, once there is one.
    _ids: CallIds | None = None

    def __init__(self, job: GenerationRequest, quirks: Quirks) -> None:
        super().__init__(EventsOrBody(by_line=quirks.by_line))
        self._job = job
        self._expected = job.choices
        self._quirks = quirks
        self._infer_length = quirks.infer_length == "always" or (quirks.infer_length == "completions" and bool(job.prompts))
        #: Text needs no second look before its choice's finish.
        self._plain = job.top_logprobs is None and not quirks.cut_stops and not quirks.token_chunks
        self._choices: dict[int, _Choice] = {}
        self._usages: list[tuple[int, msgspec.Raw]] = []

    def _stopped(self, out: list[Event], *, inside: bool) -> None:
        clean = self._quirks.terminator
        finished = self._choices and all(choice.reason for choice in self._choices.values())
        if clean == "close" or (clean == "finish" and finished and len(self._choices) >= self._expected):
            self._end(out)
        else:
            super()._stopped(out, inside=inside)

    def _again(self, data: bytes) -> Chunk | None:
        """What a second, more lenient reading gives; None = the data is no chunk even so."""
        try:
            return _read(second_look.encoded(tidied(self._values(data))))
        except UNREADABLE:
            return None

    def _event(self, event: SseEvent, out: list[Event], *, cut: bool = False) -> None:
        data = event.data
        try:
            chunk = _read(data)
        except UNREADABLE:
            if data.lstrip().startswith(b"[DONE]"):
                self._end(out)
                return
            if data in _NOTHING or event.name == "ping":
                return
            again = self._again(data)
            if again is None:
                if not self._apart(event, out, cut=cut):
                    self._unreadable(event, out, cut=cut)
                return
            chunk = again
        if event.name == "error":
            self._error(data, out)
        elif chunk.choices is None or chunk.error is not EMPTY:
            self._odd(chunk, data, out)
        else:
            self._chunk(chunk, out)

    def _whole(self, body: bytes, out: list[Event]) -> None:
        """A unary body: one chunk with everything in it."""
        try:
            chunk = _read(body)
        except UNREADABLE:
            again = self._again(body)
            if again is None:
                self._unreadable(SseEvent(body), out, cut=False)
                return
            chunk = again
        if chunk.choices is None or chunk.error is not EMPTY:
            self._odd(chunk, body, out)
        else:
            self._chunk(chunk, out)
        if not self._ended:
            self._end(out)

    def _unreadable(self, event: SseEvent, out: list[Event], *, cut: bool) -> None:
        """Not a chunk: an error with a strange neighbour, in a list or in plain words, or garbage."""
        data = event.data
        try:
            value = _read_any(data)
        except UNREADABLE:
            value = None
        said = value[0] if isinstance(value, list) and value else value
        if isinstance(said, dict) and said.get("error"):
            self._error(data, out)
        elif event.name == "error" and value is None and data.strip():
            self._fail(failures.event(failures.stream_failure(data, begun=self._begun)), out)
        elif cut:
            self._fail(failures.truncated("the body ended inside an event"), out)
        else:
            self._fail(failures.protocol("not a chunk", data), out)

    def _odd(self, chunk: Chunk, data: bytes, out: list[Event]) -> None:
        """No choices, or an `error` key: an error in some envelope, or something to pass over (a ping)."""
        said = bytes(chunk.error)
        if said not in (b"", b"null", b'""', b"false") and (said != b"{}" or chunk.choices is None):
            self._error(data, out)
        elif chunk.choices is not None:
            self._chunk(chunk, out)
        elif chunk.usage is not EMPTY:
            self._tell(chunk)
        elif failures.envelope(data).message:
            self._error(data, out)

    def _chunk(self, chunk: Chunk, out: list[Event]) -> None:
        if not self._started:
            self._started = True
            out.append(Started(chunk.model or ""))
        if chunk.usage is not EMPTY and bytes(chunk.usage) != b"null":
            self._tell(chunk)
        for piece in chunk.choices or ():
            choice = self._choices.get(piece.index)
            if choice is None:
                choice = self._open(piece.index, out)
                if choice is None:
                    return
            if choice.reason is not None:
                continue
            delta = piece.delta
            if (  # nearly all chunks of nearly all answers
                delta is not None
                and delta.content
                and self._plain
                and piece.finish_reason is None
                and not (delta.reasoning or delta.reasoning_content or delta.thinking or delta.refusal or delta.tool_calls)
            ):
                choice.spoke = self._begun = True
                out.append(TextDelta(delta.content, piece.index))
                continue
            self._piece(choice, piece, out)
            if self._ended:
                return

    def _tell(self, chunk: Chunk) -> None:
        """Keep the usage told: the latest that can be true, or with `usage_per_choice` one for each choice."""
        if self._usages and (not self._quirks.usage_per_choice or self._expected == 1):
            if read_usage(chunk.usage, spoke=self._begun, prompt=self._prompt_tokens) is None:
                return
            self._usages.clear()
        self._usages.append((chunk.choices[0].index // self._job.n if chunk.choices else 0, chunk.usage))
        if chunk.prompt_token is not EMPTY:
            self._prompt_tokens = count_ids(chunk.prompt_token)

    def _usage(self) -> Usage | None:
        wanted = self._expected if self._quirks.usage_per_choice else 1
        if len(self._usages) != wanted:
            return None
        told = [(prompt, read_usage(raw, spoke=self._begun, prompt=self._prompt_tokens)) for prompt, raw in self._usages]
        return add_usage(told)

    def _open(self, index: int, out: list[Event]) -> _Choice | None:
        if not 0 <= index < self._expected:
            self._fail(failures.protocol(f"choice {index} of {self._expected}"), out)
            return None
        cutter = StopCutter(self._job.sampling.stop) if self._quirks.cut_stops and self._job.sampling.stop else None
        choice = self._choices[index] = _Choice(index, cutter)
        return choice

    def _piece(self, choice: _Choice, piece: ChoicePiece, out: list[Event]) -> None:
        delta = piece.delta if piece.delta is not None else piece.message
        text = piece.text
        if delta is not None:
            text = delta.content
            if reasoning := delta.reasoning_content or delta.reasoning or delta.thinking:
                choice.spoke = self._begun = True
                out.append(ReasoningDelta(reasoning, choice.index))
        choice.texts += bool(text)
        if piece.logprobs is not EMPTY and self._job.top_logprobs is not None:
            self._text(choice, text or "", piece, out)
        elif text:
            if choice.cutter is None and piece.finish_reason != "eos_token":
                choice.spoke = self._begun = True
                out.append(TextDelta(text, choice.index))
            else:
                self._text(choice, text, piece, out)
        if delta is not None and (delta.refusal or delta.tool_calls or delta.function_call):
            self._others(choice, delta, piece.message is not None, out)
        if piece.finish_reason:
            if piece.usage is not EMPTY and not self._usages:
                self._usages.append((0, piece.usage))
            self._reason(choice, piece.finish_reason, out)

    def _text(self, choice: _Choice, text: str, piece: ChoicePiece, out: list[Event]) -> None:
        """Text that needs a second look: before the token that ends all, with logprobs, or with stop strings to be cut."""
        if piece.finish_reason == "eos_token":
            for special in self._quirks.eos_texts:
                text = text.removesuffix(special)
        if choice.cutter is not None:
            text, _ = choice.cutter.feed(text)
        tokens: tuple[TokenLogprob, ...] = ()
        if piece.logprobs is not EMPTY and self._job.top_logprobs is not None:
            try:
                tokens = read_logprobs(piece.logprobs, self._job.top_logprobs)
            except UNREADABLE:
                self._fail(failures.protocol("unreadable logprobs", bytes(piece.logprobs)), out)
                return
        if text or tokens:
            choice.spoke = self._begun = True
            out.append(TextDelta(text, choice.index, tokens))

    def _others(self, choice: _Choice, delta: Delta, whole: bool, out: list[Event]) -> None:
        """A refusal, and tool calls."""
        choice.spoke = self._begun = True
        if delta.refusal:
            out.append(RefusalDelta(delta.refusal, choice.index))
        calls = delta.tool_calls or ([ToolCallPiece(function=delta.function_call)] if delta.function_call else ())
        for piece in calls:
            function = piece.function
            try:
                arguments = read_arguments(function.arguments) if function else ""
            except UNREADABLE:
                self._fail(failures.protocol("unreadable tool arguments"), out)
                return
            name = (function.name or "") if function else ""
            if choice.calls is None:
                self._ids = self._ids or CallIds()
                choice.calls = CallPieces(choice.index, self._ids)
            call = choice.calls.feed(
                piece.index, piece.id or "", name, arguments, whole=whole or (self._quirks.whole_calls and bool(name))
            )
            if call is not None:
                out.append(call)

    def _reason(self, choice: _Choice, said: str, out: list[Event]) -> None:
        if self._ended or said == "null":  # as a text: DashScope, on each chunk before the last
            return
        said = said.lower()
        if said in _ABORTED or (said == "parse_error" and not choice.spoke):
            self._fail(
                failures.event(failures.verdict(500, failures.Envelope("The backend aborted the answer.", raw=said), None)), out
            )
            return
        if choice.cutter is not None and (rest := choice.cutter.close()):
            choice.spoke = self._begun = True
            out.append(TextDelta(rest, choice.index))
        reason = _FINISH.get(said, "stop")
        calls = choice.calls
        if calls is None or not calls.count:
            if reason == "tool_calls":
                reason = "stop"  # there is nothing that the client could call
        elif reason == "stop" and not self._forced():
            reason = "tool_calls"
        if calls is not None and reason != "length":
            if calls.nameless:
                self._fail(failures.protocol("a tool call without a name"), out)
                return
            out += calls.close()
        choice.reason = reason
        if not self._infer_length:
            out.append(Finish(reason, choice.index))

    def _forced(self) -> bool:
        choice = self._job.tool_choice
        return choice is not None and choice.mode == "function"

    def _full(self, choice: _Choice, usage: Usage | None) -> bool:
        """Whether a choice has as many tokens as it may have, as far as they were told or can be counted."""
        most = self._job.sampling.max_tokens
        if most is None:
            return False
        if usage is not None and self._expected == 1:
            return usage.output_tokens >= most
        return self._quirks.token_chunks and choice.texts >= most

    def _end(self, out: list[Event]) -> None:
        """The clean end: what the backend left unsaid is settled."""
        usage = self._usage()
        if self._choices and len(self._choices) < self._expected:
            self._fail(failures.protocol(f"{len(self._choices)} choices instead of {self._expected}"), out)
            return
        if not self._choices:
            self._fail(failures.truncated("an answer without any choice"), out)
            return
        for choice in self._choices.values():
            if choice.reason is None:
                called = choice.calls is not None and choice.calls.count
                self._reason(choice, "length" if not called and self._full(choice, usage) else "stop", out)
            if self._infer_length and choice.reason:
                full = choice.reason == "stop" and self._full(choice, usage)
                out.append(Finish("length" if full else choice.reason, choice.index))
        if usage is not None:
            out.append(usage)
        self._ended = True
