"""POST /v1/completions (legacy): body to `Call`, events to `text_completion`, streamed and whole.

`echo` repeats text prompts; with token prompts or logprobs it is refused. What a backend set apart as reasoning or
refusal is part of a plain completion's text. Source: openai-openapi `CreateCompletionRequest`, `CreateCompletionResponse`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from backends.core.errors import BadRequest, GatewayError, UpstreamProtocol, UpstreamTruncated
from backends.core.events import Event, Finish, ReasoningDelta, RefusalDelta, TextDelta, TokenLogprob
from backends.core.request import GenerationRequest, Prompt
from backends.core.usage import Usage
from gateway.protocols.contract import Call, Encoder, Identity
from gateway.protocols.decoding import decoded
from gateway.protocols.json_text import quoted
from gateway.protocols.openai_chat_encoder import DONE, choices_of, finite, usage_end, usage_json
from gateway.protocols.openai_errors import render
from gateway.protocols.openai_forms import output
from gateway.protocols.openai_shared import options, output_cap, sampling, size
from gateway.protocols.openai_wire import MAX_PROMPTS, CompletionBody

_decoder = msgspec.json.Decoder(CompletionBody)
_encode = msgspec.json.Encoder().encode


class OpenAICompletions:
    """The plain completions protocol."""

    name = "openai_completions"
    id_prefix = "cmpl-"

    def parse(self, body: bytes, /) -> Call:
        """The call that a body stands for.

        Raises:
            BadRequest: names the parameter.
        """
        plain = decoded(_decoder, body)
        prompts = _prompts(plain.prompt)
        n = plain.n or 1
        if len(prompts) * n > MAX_PROMPTS:
            raise BadRequest(f"More than {MAX_PROMPTS} choices (prompts times n) were asked for.", param="prompt")
        if plain.best_of not in (None, n):
            raise BadRequest("'best_of' must equal 'n'.", param="best_of", code="unsupported_parameter")
        if plain.echo:
            _can_echo(plain, prompts)
        cap = output_cap(plain.max_tokens, plain.n_predict)
        text_bytes = sum(size(prompt.text) for prompt in prompts) + size(plain.suffix or "")
        form = output(plain)
        job = GenerationRequest(
            model=plain.model,
            prompts=prompts,
            sampling=sampling(plain, cap),
            output=form,
            n=n,
            top_logprobs=plain.logprobs,
            suffix=plain.suffix or "",
            stream=bool(plain.stream),
        )
        return Call(
            job=job,
            options=options(plain, stated_cap=cap is not None, echo=bool(plain.echo)),
            text_bytes=text_bytes + len(bytes(form.schema)) + size(form.grammar),
            token_count=sum(len(prompt.tokens) for prompt in prompts if prompt.tokens is not None),
            items=len(prompts),
        )

    def encoder(self, call: Call, identity: Identity) -> Encoder:
        """A fresh encoder for one answer."""
        return CompletionStream(call, identity) if call.options.stream else CompletionUnary(call, identity)

    def error(self, error: GatewayError, /, *, in_stream: bool) -> bytes:
        """OpenAI's error envelope."""
        return render(error, in_stream=in_stream)


def _prompts(prompt: str | list[str | int | list[int]] | None) -> tuple[Prompt, ...]:
    if prompt is None or isinstance(prompt, str):
        return (Prompt(prompt or ""),)
    kinds = {type(one) for one in prompt}
    if len(kinds) > 1:
        raise BadRequest("'prompt' mixes texts and token ids.", param="prompt", code="invalid_type")
    if kinds == {int}:
        return (Prompt(tokens=tuple(prompt)),)  # type: ignore[arg-type]  # all are int
    if len(prompt) > MAX_PROMPTS:
        raise BadRequest(f"More than {MAX_PROMPTS} prompts were given.", param="prompt")
    out: list[Prompt] = []
    for number, one in enumerate(prompt):
        if isinstance(one, str):
            out.append(Prompt(one))
        elif isinstance(one, list) and one:
            out.append(Prompt(tokens=tuple(one)))
        else:
            raise BadRequest("A prompt of token ids must not be empty.", param=f"prompt[{number}]")
    return tuple(out)


def _can_echo(plain: CompletionBody, prompts: Sequence[Prompt]) -> None:
    if plain.logprobs is not None:
        raise BadRequest("'echo' with 'logprobs' is not supported.", param="echo", code="unsupported_parameter")
    if any(prompt.tokens is not None for prompt in prompts):
        raise BadRequest("'echo' with token ids is not supported.", param="echo", code="unsupported_parameter")


class _LogprobLog:
    """Legacy logprobs of one choice: parallel lists; `text_offset` counts characters of the choice's text."""

    def __init__(self) -> None:
        self._offset = 0

    def take(self, tokens: Sequence[TokenLogprob]) -> dict[str, object]:
        """The next tokens in legacy form."""
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.token)
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": [{one.token: finite(one.logprob) for one in token.top} for token in tokens],
            "text_offset": offsets,
        }


class _Echo:
    """The text that a choice begins with."""

    def __init__(self, call: Call) -> None:
        job = call.job
        self._on = call.options.echo and isinstance(job, GenerationRequest)
        self._prompts = job.prompts if isinstance(job, GenerationRequest) else ()
        self._n = job.n if isinstance(job, GenerationRequest) else 1

    def of(self, choice: int) -> str:
        """The prompt of a choice when `echo` asked for it."""
        return self._prompts[choice // self._n].text if self._on else ""


class CompletionStream:
    """Streamed completion. Single use."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, call: Call, identity: Identity) -> None:
        self._expected = choices_of(call)
        self._usage_on_finish = call.options.usage_on_finish
        self._include_usage = call.options.include_usage and not self._usage_on_finish
        self._last: bytes | None = None
        self._with_logprobs = isinstance(call.job, GenerationRequest) and call.job.top_logprobs is not None
        self._head = b"data: " + _opening(identity)
        self._end = b'],"usage":null}\n\n' if self._include_usage else b"]}\n\n"
        self._echo = _Echo(call)
        self._open: dict[int, _LogprobLog] = {}
        self._finished: set[int] = set()
        self._usage: Usage | None = None

    def feed(self, events: Sequence[Event], /) -> bytes:
        """The chunks for these events, in one piece.

        Raises:
            UpstreamProtocol: a choice that was not asked, or more of one that is finished.
        """
        out: list[bytes] = []
        for event in events:
            match event:
                case TextDelta(text=text, choice=choice, logprobs=logprobs):
                    log = self._choice(choice, out)
                    if logprobs and self._with_logprobs:
                        self._chunk(choice, quoted(text), _encode(log.take(logprobs)), out)
                    elif text:
                        self._chunk(choice, quoted(text), b"null", out)
                case ReasoningDelta(text=text, choice=choice) | RefusalDelta(text=text, choice=choice) if text:
                    self._choice(choice, out)
                    self._chunk(choice, quoted(text), b"null", out)
                case Finish(reason=reason, choice=choice):
                    self._choice(choice, out)
                    self._finished.add(choice)
                    del self._open[choice]
                    last: list[bytes] = []
                    self._chunk(choice, b'""', b"null", last, _reason(reason))
                    if self._usage_on_finish and len(self._finished) == self._expected:
                        self._last = b"".join(last[:-1])  # waits for the usage, which comes after it
                    else:
                        out += last
                case Usage():
                    self._usage = event
                case _:
                    pass
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

    def _chunk(self, choice: int, text: bytes, logprobs: bytes, out: list[bytes], finish: bytes = b"null") -> None:
        piece = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}' % (choice, text, logprobs, finish)
        out += (self._head, piece, self._end)

    def _choice(self, choice: int, out: list[bytes]) -> _LogprobLog:
        log = self._open.get(choice)
        if log is None:
            if choice in self._finished or not 0 <= choice < self._expected:
                raise UpstreamProtocol("The model's answer has a choice that was not asked for, or more of a finished one.")
            log = self._open[choice] = _LogprobLog()
            if prompt := self._echo.of(choice):
                self._chunk(choice, quoted(prompt), b"null", out)
        return log


class CompletionUnary:
    """Whole completion: the fold of the stream. Single use.

    Its own accumulation keeps the order of text, reasoning and refusal, which are all text here.
    """

    content_type = "application/json"

    def __init__(self, call: Call, identity: Identity) -> None:
        self._identity = identity
        self._expected = choices_of(call)
        self._with_logprobs = isinstance(call.job, GenerationRequest) and call.job.top_logprobs is not None
        self._echo = _Echo(call)
        self._texts: dict[int, list[str]] = {}
        self._logprobs: dict[int, list[TokenLogprob]] = {}
        self._finish: dict[int, bytes] = {}
        self._usage: Usage | None = None

    def feed(self, events: Sequence[Event], /) -> bytes:
        """Take events; nothing comes out before `close`."""
        for event in events:
            match event:
                case TextDelta(text=text, choice=choice, logprobs=logprobs):
                    self._texts.setdefault(choice, []).append(text)
                    if logprobs:
                        self._logprobs.setdefault(choice, []).extend(logprobs)
                case ReasoningDelta(text=text, choice=choice) | RefusalDelta(text=text, choice=choice):
                    self._texts.setdefault(choice, []).append(text)
                case Finish(reason=reason, choice=choice):
                    self._finish[choice] = _reason(reason)
                case Usage():
                    self._usage = event
                case _:
                    pass
        return b""

    def close(self) -> bytes:
        """The whole body.

        Raises:
            UpstreamTruncated: a choice was never finished.
            UpstreamProtocol: a choice that was not asked.
        """
        if any(not 0 <= index < self._expected for index in (*self._texts, *self._finish)):
            raise UpstreamProtocol("The model's answer has a choice that was not asked for.")
        if len(self._finish) < self._expected:
            raise UpstreamTruncated("The answer ended before all of its choices were finished.")
        choices = b",".join(self._choice(index) for index in range(self._expected))
        usage = b"" if self._usage is None else b',"usage":' + usage_json(self._usage)
        return b"%b%b]%b}" % (_opening(self._identity), choices, usage)

    def _choice(self, index: int) -> bytes:
        text = self._echo.of(index) + "".join(self._texts.get(index, ()))
        tokens = self._logprobs.get(index)
        logprobs = _encode(_LogprobLog().take(tokens)) if tokens and self._with_logprobs else b"null"
        return b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}' % (index, quoted(text), logprobs, self._finish[index])


def _opening(identity: Identity) -> bytes:
    return b'{"id":%b,"object":"text_completion","created":%d,"model":%b,"choices":[' % (
        quoted(identity.id),
        identity.created_s,
        quoted(identity.model),
    )


def _reason(reason: str) -> bytes:
    """A plain completion cannot end in `tool_calls`: OpenAI's schema knows stop, length and content_filter."""
    return quoted("stop" if reason == "tool_calls" else reason)
