"""Events to `chat.completion.chunk` events, or to one `chat.completion`.

Per choice: the role chunk once and first, then deltas, then one chunk with the finish reason; `usage: null` on every
chunk and one more with empty `choices` only when `stream_options.include_usage` asked; `[DONE]` last. A tool call's
id, type and name go out once. Everything constant of a chunk is encoded once per choice: a text delta costs one JSON
string and a join. Source: openai-openapi `CreateChatCompletionStreamResponse`, `CreateChatCompletionResponse`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import msgspec

from backends.core.errors import UpstreamProtocol, UpstreamTruncated
from backends.core.events import (
    Event,
    Finish,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from backends.core.fold import Choice, Fold
from backends.core.request import GenerationRequest
from backends.core.usage import Usage
from gateway.protocols.contract import Call, Identity
from gateway.protocols.json_text import quoted

DONE = b"data: [DONE]\n\n"
#: OpenAI's own stand-in for the logarithm of (nearly) nothing; JSON has no infinity.
LOWEST_LOGPROB = -9999.0

_encode = msgspec.json.Encoder().encode
_REASONS: Mapping[str, bytes] = {reason: quoted(reason) for reason in get_args(FinishReason)}
_ROLE = b'{"role":"assistant","content":"","refusal":null}'
_ROLE_BEFORE_TOOLS = b'{"role":"assistant","content":null,"refusal":null}'


def choices_of(call: Call) -> int:
    """How many choices the answer must have."""
    return call.job.choices if isinstance(call.job, GenerationRequest) else 0


def usage_json(usage: Usage) -> bytes:
    """OpenAI's `CompletionUsage`."""
    return _encode(
        {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        }
    )


def usage_end(usage: Usage | None) -> bytes:
    """The end of a chunk that has a choice, with the usage when it is known."""
    return b"]}\n\n" if usage is None else b'],"usage":' + usage_json(usage) + b"}\n\n"


def call_id(identity: Identity, choice: int, call: int) -> str:
    """The id of a tool call whose backend gave it none: unique in the answer, the same streamed and whole."""
    return f"call_{identity.id.rpartition('-')[2]}_{choice}_{call}"


class ChatStream:
    """Streamed chat completion. Single use."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, call: Call, identity: Identity) -> None:
        self._identity = identity
        self._expected = choices_of(call)
        self._usage_on_finish = call.options.usage_on_finish
        self._include_usage = call.options.include_usage and not self._usage_on_finish
        self._last: bytes | None = None
        self._logprobs = isinstance(call.job, GenerationRequest) and call.job.top_logprobs is not None
        self._head = b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":[' % (
            quoted(identity.id),
            identity.created_s,
            quoted(identity.model),
        )
        self._end = b'],"usage":null}\n\n' if self._include_usage else b"]}\n\n"
        self._plain_tail = b'},"logprobs":null,"finish_reason":null}' + self._end
        self._text_prefix: dict[int, bytes] = {}
        self._named: set[tuple[int, int]] = set()
        self._finished: set[int] = set()
        self._usage: Usage | None = None

    def feed(self, events: Sequence[Event], /) -> bytes:
        """The chunks for these events, in one piece.

        Raises:
            UpstreamProtocol: a choice that was not asked, or more of one that is finished.
        """
        out: list[bytes] = []
        for event in events:
            kind = type(event)
            if kind is TextDelta:
                text: str = event.text  # type: ignore[union-attr]
                prefix = self._text_prefix.get(event.choice)  # type: ignore[union-attr]
                if prefix is None:
                    prefix = self._begin(event.choice, out)  # type: ignore[union-attr]
                if event.logprobs and self._logprobs:  # type: ignore[union-attr]
                    out += (prefix, quoted(text), b'},"logprobs":', _logprobs(event.logprobs))  # type: ignore[union-attr]
                    out += (b',"finish_reason":null}', self._end)
                elif text:
                    out += (prefix, quoted(text), self._plain_tail)
            else:
                self._other(event, out)
        return b"".join(out)

    def close(self) -> bytes:
        """The usage chunk when asked, and `[DONE]`.

        Raises:
            UpstreamTruncated: a choice was never finished.
        """
        if len(self._finished) < self._expected:
            raise UpstreamTruncated("The answer ended before all of its choices were finished.")
        if self._last is not None:
            return self._last + usage_end(self._usage) + DONE
        if not self._include_usage or self._usage is None:
            return DONE
        return self._head + b'],"usage":' + usage_json(self._usage) + b"}\n\n" + DONE

    def _other(self, event: Event, out: list[bytes]) -> None:
        match event:
            case ReasoningDelta(text=text, choice=choice) if text:
                self._started(choice, out)
                self._delta(choice, b'{"reasoning_content":%b' % quoted(text), out)
            case RefusalDelta(text=text, choice=choice) if text:
                self._started(choice, out)
                self._delta(choice, b'{"refusal":%b' % quoted(text), out)
            case ToolCallDelta():
                self._tool(event, out)
            case Finish(reason=reason, choice=choice):
                self._started(choice, out)
                self._finished.add(choice)
                del self._text_prefix[choice]
                chunk = b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}' % (choice, _REASONS[reason])
                if self._usage_on_finish and len(self._finished) == self._expected:
                    self._last = self._head + chunk  # waits for the usage, which comes after it
                else:
                    out += (self._head, chunk, self._end)
            case Usage():
                self._usage = event
            case _:
                pass

    def _tool(self, event: ToolCallDelta, out: list[bytes]) -> None:
        if event.choice not in self._text_prefix:
            self._begin(event.choice, out, _ROLE_BEFORE_TOOLS)
        key = (event.choice, event.call)
        arguments = quoted(event.arguments)
        if key in self._named:
            if event.arguments:
                piece = b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]' % (event.call, arguments)
                self._delta(event.choice, piece, out)
            return
        self._named.add(key)
        piece = b'{"tool_calls":[{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":%b}}]' % (
            event.call,
            quoted(event.id or call_id(self._identity, *key)),
            quoted(event.name),
            arguments,
        )
        self._delta(event.choice, piece, out)

    def _delta(self, choice: int, opened: bytes, out: list[bytes]) -> None:
        """A chunk of one delta object, given without its closing brace."""
        out += (self._head, b'{"index":%d,"delta":' % choice, opened, self._plain_tail)

    def _started(self, choice: int, out: list[bytes]) -> None:
        if choice not in self._text_prefix:
            self._begin(choice, out)

    def _begin(self, choice: int, out: list[bytes], role: bytes = _ROLE) -> bytes:
        """The role chunk of a choice; its text prefix."""
        if choice in self._finished or not 0 <= choice < self._expected:
            raise UpstreamProtocol("The model's answer has a choice that was not asked for, or more of a finished one.")
        index = b'{"index":%d,"delta":' % choice
        out += (self._head, index, role, b',"logprobs":null,"finish_reason":null}', self._end)
        prefix = self._text_prefix[choice] = self._head + index + b'{"content":'
        return prefix


class ChatUnary:
    """Whole chat completion: the fold of the stream. Single use."""

    content_type = "application/json"

    def __init__(self, call: Call, identity: Identity) -> None:
        self._identity = identity
        self._expected = choices_of(call)
        self._logprobs = isinstance(call.job, GenerationRequest) and call.job.top_logprobs is not None
        self._fold = Fold()

    def feed(self, events: Sequence[Event], /) -> bytes:
        """Take events; nothing comes out before `close`."""
        self._fold.feed(events)
        return b""

    def close(self) -> bytes:
        """The whole body.

        Raises:
            UpstreamTruncated: a choice was never finished.
            UpstreamProtocol: a choice that was not asked.
        """
        answer = self._fold.answer
        choices = b",".join(map(self._choice, finished_choices(answer.choices, self._expected)))
        usage = b"" if answer.usage is None else b',"usage":' + usage_json(answer.usage)
        return b'{"id":%b,"object":"chat.completion","created":%d,"model":%b,"choices":[%b]%b}' % (
            quoted(self._identity.id),
            self._identity.created_s,
            quoted(self._identity.model),
            choices,
            usage,
        )

    def _choice(self, choice: Choice) -> bytes:
        text, refusal = "".join(choice.text), "".join(choice.refusal)
        return b'{"index":%d,"message":{"role":"assistant","content":%b,"refusal":%b%b},"logprobs":%b,"finish_reason":%b}' % (
            choice.index,
            quoted(text) if text or not (choice.calls or refusal) else b"null",
            quoted(refusal) if refusal else b"null",
            self._more(choice) if choice.calls or choice.reasoning else b"",
            _logprobs(choice.logprobs) if choice.logprobs and self._logprobs else b"null",
            _REASONS[choice.finish or "stop"],
        )

    def _more(self, choice: Choice) -> bytes:
        """What few messages have: reasoning, calls."""
        message: list[bytes] = []
        if reasoning := "".join(choice.reasoning):
            message += (b',"reasoning_content":', quoted(reasoning))
        if calls := choice.tool_calls():
            pieces = (
                b'{"id":%b,"type":"function","function":{"name":%b,"arguments":%b}}'
                % (quoted(call.id or call_id(self._identity, choice.index, n)), quoted(call.name), quoted(call.arguments))
                for n, call in zip(sorted(choice.calls), calls, strict=True)
            )
            message += (b',"tool_calls":[', b",".join(pieces), b"]")
        return b"".join(message)


def finished_choices(choices: dict[int, Choice], expected: int) -> list[Choice]:
    """The choices of a whole answer in order.

    Raises:
        UpstreamTruncated: one was never finished.
        UpstreamProtocol: one was not asked.
    """
    found: list[Choice] = []
    for index in range(expected):
        choice = choices.get(index)
        if choice is None or choice.finish is None:
            break
        found.append(choice)
    if len(found) == len(choices) == expected:
        return found
    if any(not 0 <= index < expected for index in choices):
        raise UpstreamProtocol("The model's answer has a choice that was not asked for.")
    raise UpstreamTruncated("The answer ended before all of its choices were finished.")


def _logprobs(tokens: Sequence[TokenLogprob]) -> bytes:
    content = [
        {
            "token": token.token,
            "logprob": finite(token.logprob),
            "bytes": list(token.bytes),
            "top_logprobs": [
                {"token": one.token, "logprob": finite(one.logprob), "bytes": list(one.bytes)} for one in token.top
            ],
        }
        for token in tokens
    ]
    return b'{"content":' + _encode(content) + b',"refusal":null}'


def finite(logprob: float) -> float:
    """A log probability that JSON can carry."""
    return logprob if logprob > LOWEST_LOGPROB else LOWEST_LOGPROB
