"""lightllm in its own words: `/generate` and `/generate_stream`.

Source: lightllm fc72ffa (2025-07), lightllm/server/api_http.py, api_lightllm.py. `base_url` is the server's root.
`parameters` must be there; the default of `max_new_tokens` is 16, so the gateway always states a cap. Any error is
`{"message"}` under 417.

Known limits: one prompt and one choice a request, no token ids; logprobs of the chosen tokens only, without alternatives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError, UnsupportedParameter
from backends.core.events import FinishReason, TokenLogprob
from backends.core.request import GenerationRequest, Job, Prompt
from backends.dialects.plain_prompts import generation, one_prompt, post
from backends.dialects.text_answers import Form, Piece, TextDecoder
from backends.parsing import failures

CAPABILITIES: Capabilities = frozenset({
    *("chat", "completions", "max_tokens", "temperature", "top_p", "top_k", "stop", "presence_penalty"),
    *("frequency_penalty", "repetition_penalty", "ignore_eos", "needs_output_cap", "response_format.json_schema"),
    *("grammar", "regex", "logprobs"),
})  # fmt: skip
_NAMES = {
    "max_tokens": "max_new_tokens", "top_p": "top_p", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty", "repetition_penalty": "repetition_penalty", "ignore_eos": "ignore_eos",
}  # fmt: skip
_FINISH: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}
#: What a refused parameter sounds like, under a status that says nothing.
_REFUSED = re.compile(r"(?i)\bmust\b|\binvalid\b|\btoo (?:long|large|big)\b|not support")
_TOO_LONG = re.compile(r"(?i)too long|max_req_(?:total|input)_len|max_total_token_num|exceeds? .{0,40}(?:len|tokens)")


class _Token(msgspec.Struct, gc=False):
    text: str = ""
    logprob: float | None = None
    special: bool = False
    count_output_tokens: int = 0
    prompt_tokens: int = 0


class _Event(msgspec.Struct, gc=False):
    token: _Token | None = None
    finished: bool = False
    finish_reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    generated_text: list[str] | str | None = None
    count_output_tokens: int | list[int] = 0
    finish_reason: str | list[str] | None = None
    prompt_tokens: int = 0
    tokens: list[_Token] | None = None


_read_event = msgspec.json.Decoder(_Event, strict=False).decode
_read_answer = msgspec.json.Decoder(_Answer, strict=False).decode


class LightLlm:
    """The dialect. `needs_prompt`: conversations are rendered by a chat template first."""

    name = "lightllm"
    needs_prompt = True
    capabilities = CAPABILITIES

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job.

        Raises:
            UnsupportedParameter: embeddings, several prompts, token ids, or alternatives to tokens.
            ValueError: a conversation without its rendered prompt.
        """
        job = generation(job)
        sampling = job.sampling
        parameters = {theirs: value for ours, theirs in _NAMES.items() if (value := getattr(sampling, ours)) is not None}
        if sampling.temperature is not None:  # 0 is refused
            parameters["do_sample"] = sampling.temperature > 0
            if sampling.temperature > 0:
                parameters["temperature"] = sampling.temperature
        if sampling.top_k:
            parameters["top_k"] = sampling.top_k
        if sampling.stop:
            parameters["stop_sequences"] = list(sampling.stop)
        if job.output.kind == "json_schema":
            parameters["guided_json"] = job.output.schema
        elif job.output.kind == "grammar":
            parameters["guided_grammar"] = job.output.grammar
        elif job.output.kind == "regex":
            parameters["regular_constraint"] = job.output.grammar
        if job.top_logprobs is not None:
            parameters["return_details"] = True
        if job.top_logprobs:
            raise UnsupportedParameter(
                f"The model {job.model!r} tells no alternatives to its tokens here.",
                param="top_logprobs" if job.messages else "logprobs",
            )
        path = "/generate_stream" if job.stream else "/generate"
        return post(path, {"inputs": one_prompt(job, prompts).text, "parameters": parameters})

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        return TextDecoder(generation(job), _FORM)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        said = failures.envelope(body)
        if status == 417 and _TOO_LONG.search(said.message[:4096]):
            status, said = 400, msgspec.structs.replace(said, code="context_length_exceeded")
        elif status == 417 and _REFUSED.search(said.message[:4096]):
            status = 400
        return failures.verdict(status, said, failures.retry_after_ms(headers))


def _event(data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
    event = _read_event(data)
    token = event.token
    if token is None:
        return None
    return [
        Piece(
            "" if token.special else token.text,
            finished=event.finished,
            reason=_FINISH.get(event.finish_reason or ""),
            input_tokens=token.prompt_tokens,
            output_tokens=token.count_output_tokens,
            logprobs=_logprobs([token]) if job.top_logprobs is not None else (),
        )
    ]


def _quick(data: bytes) -> str:
    event = _read_event(data)
    token = event.token
    return "" if token is None or token.special or event.finished else token.text


def _answer(data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
    """Texts are a list also for one; counts and reasons are one value or a list."""
    answer = _read_answer(data)
    if answer.generated_text is None:
        return None
    texts = answer.generated_text if isinstance(answer.generated_text, list) else [answer.generated_text]
    counts = answer.count_output_tokens if isinstance(answer.count_output_tokens, list) else [answer.count_output_tokens]
    reasons = answer.finish_reason if isinstance(answer.finish_reason, list) else [answer.finish_reason or ""]
    return [
        Piece(
            text,
            choice,
            finished=True,
            reason=_FINISH.get(reasons[choice]) if choice < len(reasons) else None,
            input_tokens=answer.prompt_tokens,
            output_tokens=counts[choice] if choice < len(counts) else 0,
            logprobs=_logprobs(answer.tokens or ()) if job.top_logprobs is not None else (),
        )
        for choice, text in enumerate(texts)
    ]


def _logprobs(tokens: Sequence[_Token]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(one.text, one.text.encode(), one.logprob) for one in tokens if one.logprob is not None and not one.special
    )


_FORM = Form(_event, _answer, terminator="finish", counted_by="event", quick=_quick)
