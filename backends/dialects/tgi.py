"""Text Generation Inference in its own words: `/generate` and `/generate_stream`, `/info` and `/tokenize`.

Source: text-generation-inference db931fc (3.x, 2026-01), router/src/{lib,server,infer}.rs. `base_url` is the server's
root. `details` is always asked: without it there is no finish reason. A whole answer tells the prompt's tokens only in
the header `x-prompt-tokens`, a stream only in its last event.

Known limits: one prompt and one choice a request (`best_of` is not `n`); token ids are not taken; presence_penalty and
logit_bias have no place; `json_object` would need a schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError, UpstreamProtocol
from backends.core.events import Candidate, FinishReason, TokenLogprob
from backends.core.facts import Facts
from backends.core.request import GenerationRequest, Job, Prompt
from backends.dialects.plain_prompts import generation, one_prompt, post
from backends.dialects.text_answers import Form, Piece, TextDecoder
from backends.parsing import failures

CAPABILITIES: Capabilities = frozenset({
    *("chat", "completions", "max_tokens", "temperature", "top_p", "stop", "seed", "frequency_penalty", "top_k"),
    *("typical_p", "repetition_penalty", "logprobs", "regex", "response_format.json_schema", "needs_output_cap"),
})  # fmt: skip
_NAMES = {
    "max_tokens": "max_new_tokens", "seed": "seed", "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
}  # fmt: skip
_FINISH: Mapping[str, FinishReason] = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


class _Token(msgspec.Struct, gc=False):
    text: str = ""
    logprob: float | None = None
    special: bool = False


class _Details(msgspec.Struct, gc=False):
    finish_reason: str = ""
    generated_tokens: int = 0
    input_length: int = 0
    tokens: list[_Token] = []
    top_tokens: list[list[_Token]] = []


class _Event(msgspec.Struct, gc=False):
    """`index` counts tokens: it is not a choice."""

    token: _Token | None = None
    top_tokens: list[_Token] = []
    generated_text: str | None = None
    details: _Details | None = None


class _Answer(msgspec.Struct, gc=False):
    generated_text: str | None = None
    details: _Details | None = None


class _Info(msgspec.Struct, gc=False):
    model_id: str = ""
    version: str = ""
    max_total_tokens: int = 0
    max_concurrent_requests: int = 0
    max_client_batch_size: int = 0


class _Id(msgspec.Struct, gc=False):
    id: int


_read_info = msgspec.json.Decoder(_Info, strict=False).decode
_read_tokens = msgspec.json.Decoder(list[_Id | list[_Id]]).decode
_read_event = msgspec.json.Decoder(_Event, strict=False).decode
_read_answer = msgspec.json.Decoder(_Answer | list[_Answer], strict=False).decode


class Tgi:
    """The dialect. `needs_prompt`: conversations are rendered by a chat template first."""

    name = "tgi"
    needs_prompt = True
    capabilities = CAPABILITIES

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job.

        Raises:
            UnsupportedParameter: embeddings, several prompts or token ids.
            ValueError: a conversation without its rendered prompt.
        """
        job = generation(job)
        sampling = job.sampling
        parameters: dict[str, object] = {"details": True}
        for ours, theirs in _NAMES.items():
            if (value := getattr(sampling, ours)) is not None:
                parameters[theirs] = value
        if sampling.temperature is not None:  # 0 is refused; greedy is what `do_sample` says
            parameters["do_sample"] = sampling.temperature > 0
            if sampling.temperature > 0:
                parameters["temperature"] = sampling.temperature
        for name in ("top_p", "typical_p"):  # strictly between 0 and 1
            if (share := getattr(sampling, name)) is not None and share < 1:
                parameters[name] = share
        if sampling.top_k:
            parameters["top_k"] = sampling.top_k
        if sampling.stop:
            parameters["stop"] = list(sampling.stop)
        if job.top_logprobs:
            parameters["top_n_tokens"] = job.top_logprobs
        if job.output.kind == "json_schema":
            parameters["grammar"] = {"type": "json", "value": job.output.schema}
        elif job.output.kind == "regex":
            parameters["grammar"] = {"type": "regex", "value": job.output.grammar}
        path = "/generate_stream" if job.stream else "/generate"
        return post(path, {"inputs": one_prompt(job, prompts).text, "parameters": parameters})

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        prompt, output = (_number(headers.get(name, "")) for name in ("x-prompt-tokens", "x-generated-tokens"))
        return TextDecoder(generation(job), _FORM, input_tokens=prompt, output_tokens=output)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)


#: Where a server tells of itself.
FACTS = ("/info",)


def facts(bodies: Sequence[bytes]) -> Facts:
    """What `/info` tells."""
    found = Facts()
    for body in bodies:
        try:
            info = _read_info(body)
        except (ValueError, RecursionError):
            continue
        found = Facts(
            info.model_id, info.version, info.max_total_tokens, info.max_concurrent_requests, batch=info.max_client_batch_size
        )
    return found


def tokenize_request(text: str) -> UpstreamRequest:
    """Ask for a text's token ids, without the BOS that the server adds to a prompt."""
    return post("/tokenize", {"inputs": text, "parameters": {"add_special_tokens": False}})


def tokens_of(body: bytes) -> tuple[int, ...]:
    """The ids out of `/tokenize`'s answer: a list of tokens, in some versions one list an input.

    Raises:
        UpstreamProtocol: it is none.
    """
    try:
        found = _read_tokens(body)
        return tuple(one.id for item in found for one in (item if isinstance(item, list) else [item]))
    except (ValueError, RecursionError) as error:
        raise UpstreamProtocol("The backend's answer could not be understood.", detail=f"/tokenize: {error}") from None


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _event(data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
    event = _read_event(data)
    token = event.token
    finished = event.generated_text is not None
    if token is None:
        if not finished and b'"token"' not in data:
            return None
        token = _Token()
    details = event.details or _Details()
    reason = _FINISH.get(details.finish_reason)
    if finished and reason is None and token.special:
        reason = "stop"
    return [
        Piece(
            "" if token.special else token.text,
            finished=finished,
            reason=reason,
            input_tokens=details.input_length,
            output_tokens=details.generated_tokens,
            logprobs=_logprobs([token], [event.top_tokens], job),
        )
    ]


def _quick(data: bytes) -> str:
    event = _read_event(data)
    token = event.token
    if token is None or token.special or event.generated_text is not None or event.details is not None:
        return ""
    return token.text


def _answer(data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
    """One object; the compatibility route `/` wraps it into an array of one."""
    value = _read_answer(data)
    answer = (value[0] if value else _Answer()) if isinstance(value, list) else value
    if answer.generated_text is None:
        return None
    details = answer.details or _Details()
    return [
        Piece(
            answer.generated_text,
            finished=True,
            reason=_FINISH.get(details.finish_reason),
            input_tokens=details.input_length,
            output_tokens=details.generated_tokens,
            logprobs=_logprobs(details.tokens, details.top_tokens, job),
        )
    ]


def _logprobs(tokens: list[_Token], tops: list[list[_Token]], job: GenerationRequest) -> tuple[TokenLogprob, ...]:
    if job.top_logprobs is None:
        return ()
    return tuple(
        TokenLogprob(
            token.text,
            token.text.encode(),
            token.logprob,
            tuple(
                Candidate(one.text, one.text.encode(), one.logprob)
                for one in (tops[place] if place < len(tops) else [])[: job.top_logprobs]
                if one.logprob is not None
            ),
        )
        for place, token in enumerate(tokens)
        if token.logprob is not None and not token.special
    )


_FORM = Form(_event, _answer, terminator="finish", counted_by="event", quick=_quick)
