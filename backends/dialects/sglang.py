"""SGLang in its own words, and LMDeploy in the same: `/generate`.

Source: SGLang 0.5.23 wheel (srt/entrypoints/http_server.py, managers/tokenizer_manager.py), LMDeploy 0.18.0 wheel
(serve/openai/endpoints/generate.py). The keys are the same, the text is not: SGLang's streams carry all text so far
unless the server runs with `--incremental-streaming-output`, LMDeploy's carry what is new. `base_url` is the root.

Known limits: tool calls are not taken out (their OpenAI routes do); LMDeploy makes one choice a request, and its logprobs
name tokens by id only, so they are not asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError
from backends.core.events import Candidate, FinishReason, TokenLogprob
from backends.core.request import GenerationRequest, Job, Prompt
from backends.dialects.plain_prompts import generation, post
from backends.dialects.text_answers import Form, Piece, TextDecoder
from backends.parsing import failures
from backends.parsing.failures import Envelope

_SHARED = frozenset(
    {"chat", "completions", "token_input", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "repetition_penalty"}
) | {"ignore_eos", "min_tokens", "needs_output_cap"}
CAPABILITIES: Capabilities = _SHARED | {
    *("n", "seed", "logit_bias", "frequency_penalty", "presence_penalty", "grammar", "regex", "logprobs"),
    *("response_format.json_object", "response_format.json_schema"),
}
_SGLANG = {
    "max_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
    "repetition_penalty": "repetition_penalty", "ignore_eos": "ignore_eos", "min_tokens": "min_new_tokens",
    "seed": "sampling_seed", "frequency_penalty": "frequency_penalty", "presence_penalty": "presence_penalty",
}  # fmt: skip
_LMDEPLOY = {
    "max_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
    "repetition_penalty": "repetition_penalty", "ignore_eos": "ignore_eos", "min_tokens": "min_new_tokens",
}  # fmt: skip
_FINISH: Mapping[str, FinishReason] = {"stop": "stop", "length": "length", "parse_error": "stop"}
_ABORTED = frozenset({"abort", "error", "cancelled"})
_BARE = re.compile(rb'"error"\s*:\s*\{')
_ANY_OBJECT = '{"type": "object"}'


class _Why(msgspec.Struct, gc=False):
    type: str = ""
    message: str | None = None
    status_code: int | None = None
    err_type: str | None = None


#: Logprob, token id, and its text where it was asked.
_Token = tuple[float | None, int, str | None]


class _Meta(msgspec.Struct, gc=False):
    finish_reason: _Why | str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    output_token_logprobs: list[_Token] | None = None
    output_top_logprobs: list[list[_Token] | None] | None = None


class _Record(msgspec.Struct, gc=False):
    text: str | None = None
    index: int | None = None
    meta_info: _Meta = msgspec.field(default_factory=_Meta)


_read = msgspec.json.Decoder(_Record, strict=False).decode
_read_answer = msgspec.json.Decoder(_Record | list[_Record], strict=False).decode


class SglangOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must be known of an SGLang server. `incremental_streaming_output`: its streams carry only what is new."""

    incremental_streaming_output: bool = False


class Sglang:
    """The dialect of SGLang. `needs_prompt`: conversations are rendered by a chat template first."""

    name = "sglang"
    needs_prompt = True
    capabilities = CAPABILITIES

    def __init__(self, options: SglangOptions | None = None) -> None:
        options = options or SglangOptions()
        self._form = Form(_event, _answer, terminator="done", cumulative=not options.incremental_streaming_output, quick=_quick)

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job.

        Raises:
            UnsupportedParameter: embeddings are asked.
            ValueError: a conversation without its rendered prompt.
        """
        job = generation(job)
        sampling = job.sampling
        params = _sampling(job, _SGLANG)
        if sampling.stop:
            params["stop"] = list(sampling.stop)
        if sampling.logit_bias:
            params["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
        if job.n > 1:
            params["n"] = job.n
        if job.output.kind == "json_schema":  # a text, not an object
            params["json_schema"] = bytes(job.output.schema).decode()
        elif job.output.kind == "json_object":
            params["json_schema"] = _ANY_OBJECT
        elif job.output.kind == "grammar":
            params["ebnf"] = job.output.grammar
        elif job.output.kind == "regex":
            params["regex"] = job.output.grammar
        prompts = _given(job, prompts)
        tokens = [list(one.tokens) for one in prompts if one.tokens is not None]
        inputs: list[object] = [*tokens] if tokens else [one.text for one in prompts]
        name = "input_ids" if tokens else "text"
        body = {name: inputs[0] if len(inputs) == 1 else inputs, "sampling_params": params, "stream": job.stream}
        if job.top_logprobs is not None:
            body |= {"return_logprob": True, "top_logprobs_num": job.top_logprobs, "return_text_in_logprobs": True}
        return post("/generate", body)

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        return TextDecoder(generation(job), self._form)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)


class LmDeploy:
    """The dialect of LMDeploy. `needs_prompt`: conversations are rendered by a chat template first."""

    name = "lmdeploy"
    needs_prompt = True
    capabilities = _SHARED

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job; see `Sglang.encode`."""
        job = generation(job)
        (prompt, *_) = _given(job, prompts)
        given: tuple[str, object] = ("prompt", prompt.text) if prompt.tokens is None else ("input_ids", list(prompt.tokens))
        body = {given[0]: given[1], **_sampling(job, _LMDEPLOY), "stream": job.stream}
        if job.sampling.stop:
            body["stop"] = list(job.sampling.stop)
        return post("/generate", body)

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        return TextDecoder(generation(job), _DELTAS)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)


def _given(job: GenerationRequest, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    prompts = prompts or job.prompts
    if not prompts:
        raise ValueError("a conversation must be rendered by a chat template first")
    return prompts


def _sampling(job: GenerationRequest, names: Mapping[str, str]) -> dict[str, object]:
    found = {theirs: value for ours, theirs in names.items() if (value := getattr(job.sampling, ours)) is not None}
    if found.get("top_k") == 0:  # 0 means all; they write -1, which is also their default
        del found["top_k"]
    return found


def _event(data: bytes, job: GenerationRequest) -> Sequence[Piece] | Envelope | None:
    return _piece(_read(data), 0, data, job)


def _quick(data: bytes) -> str:
    record = _read(data)
    return "" if record.index or record.meta_info.finish_reason is not None else record.text or ""


def _answer(data: bytes, job: GenerationRequest) -> Sequence[Piece] | Envelope | None:
    """One object, or an array of them for several prompts or choices."""
    value = _read_answer(data)
    pieces: list[Piece] = []
    for place, record in enumerate(value if isinstance(value, list) else [value]):
        read = _piece(record, place, data, job)
        if not isinstance(read, list):
            return read
        for piece in read:
            piece.finished = True
        pieces += read
    return pieces or None


def _piece(record: _Record, place: int, data: bytes, job: GenerationRequest) -> list[Piece] | Envelope | None:
    if record.text is None:
        said = failures.envelope(data)
        # SGLang's older releases name neither type nor code: only a refused request comes in this form.
        bare = said.message and _BARE.search(data) and not (said.status or said.type or said.code)
        return msgspec.structs.replace(said, status=400) if bare else None
    meta = record.meta_info
    why = _Why(meta.finish_reason) if isinstance(meta.finish_reason, str) else meta.finish_reason
    if why is not None and (why.type in _ABORTED or (why.type == "parse_error" and not record.text)):
        said = Envelope(
            why.message or "The backend aborted the answer.", why.err_type or "", raw=data[:4096].decode("utf-8", "replace")
        )
        return msgspec.structs.replace(
            said, status=why.status_code if why.status_code and 400 <= why.status_code < 600 else 500
        )
    return [
        Piece(
            record.text,
            record.index if record.index is not None else place,
            finished=why is not None,
            reason=_FINISH.get(why.type, "stop") if why is not None else None,
            input_tokens=meta.prompt_tokens,
            output_tokens=meta.completion_tokens,
            cached_tokens=meta.cached_tokens,
            logprobs=_logprobs(meta) if job.top_logprobs is not None else (),
            all_logprobs=len(meta.output_token_logprobs or ()) >= meta.completion_tokens,
        )
    ]


def _logprobs(meta: _Meta) -> tuple[TokenLogprob, ...]:
    """Of all tokens so far, or of the new ones where the server streams only those."""
    tops = meta.output_top_logprobs or []
    return tuple(
        TokenLogprob(
            text or "",
            (text or "").encode(),
            logprob,
            tuple(
                Candidate(other or "", (other or "").encode(), value)
                for value, _, other in (tops[place] or () if place < len(tops) else ())
                if value is not None
            ),
        )
        for place, (logprob, _, text) in enumerate(meta.output_token_logprobs or ())
        if logprob is not None
    )


_DELTAS = Form(_event, _answer, terminator="done", quick=_quick)
