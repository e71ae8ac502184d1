"""Formosa Foundation Model on AFS (TWCC): `/models/conversation` and `/models/generate`.

Source: docs.twcc.ai, "AFS ModelSpace" (conversation and generation APIs, 2024). `base_url` ends before `/models`. The
user's role is `human`; the credential goes into `X-API-KEY`. The OpenAI-like routes of the same service are
`openai_compatible`.

Known limits: not tried against the service, whose stream framing and errors are documented only in part; tools are not
sent; one prompt and one choice a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError
from backends.core.events import FinishReason
from backends.core.request import GenerationRequest, Job, Prompt
from backends.dialects.plain_prompts import generation, one_prompt
from backends.dialects.text_answers import Form, Piece, TextDecoder
from backends.parsing import failures

CAPABILITIES: Capabilities = frozenset(
    {"chat", "completions", "max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "frequency_penalty"}
    | {"needs_output_cap"}
)
_HEADERS: Mapping[str, str] = {"content-type": "application/json", "x-api-host": "afs-inference"}
_NAMES = {
    "max_tokens": "max_new_tokens", "top_p": "top_p", "seed": "seed",
    "frequency_penalty": "frequence_penalty",  # the service's own spelling
}  # fmt: skip
_ROLES = {"user": "human", "developer": "system"}
_FINISH: Mapping[str, FinishReason] = {"length": "length", "eos_token": "stop", "stop_sequence": "stop", "stop": "stop"}


class _Record(msgspec.Struct, gc=False):
    generated_text: str | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    finish_reason: str | None = None


_read = msgspec.json.Decoder(_Record, strict=False).decode


class Ffm:
    """The dialect."""

    name = "ffm"
    needs_prompt = False
    capabilities = CAPABILITIES

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job.

        Raises:
            UnsupportedParameter: embeddings, several prompts or token ids.
        """
        job = generation(job)
        sampling = job.sampling
        parameters = {theirs: value for ours, theirs in _NAMES.items() if (value := getattr(sampling, ours)) is not None}
        if sampling.top_k:
            parameters["top_k"] = sampling.top_k
        if sampling.temperature == 0:  # must be above 0; one candidate is the same
            parameters["top_k"] = 1
        elif sampling.temperature is not None:
            parameters["temperature"] = sampling.temperature
        if sampling.stop:
            parameters["stop_sequences"] = list(sampling.stop)
        body: dict[str, object] = {"model": job.model, "parameters": parameters, "stream": job.stream}
        if prompts or job.prompts:
            body["inputs"] = one_prompt(job, prompts).text
        else:
            body["messages"] = [{"role": _ROLES.get(one.role, one.role), "content": one.text} for one in job.messages]
        path = "/models/generate" if "inputs" in body else "/models/conversation"
        return UpstreamRequest("POST", path, _HEADERS, msgspec.json.encode(body))

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        return TextDecoder(generation(job), _FORM)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)


def _event(data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
    record = _read(data)
    if record.generated_text is None:
        return None
    return [
        Piece(
            record.generated_text,
            finished=bool(record.finish_reason),
            reason=_FINISH.get(record.finish_reason or ""),
            input_tokens=record.prompt_tokens or 0,
            output_tokens=record.generated_tokens or 0,
        )
    ]


def _quick(data: bytes) -> str:
    record = _read(data)
    return "" if record.finish_reason or record.prompt_tokens or record.generated_tokens else record.generated_text or ""


def _answer(data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
    """The oldest answers have no finish reason."""
    pieces = _event(data, job)
    for piece in pieces or ():
        piece.finished = True
    return pieces


_FORM = Form(_event, _answer, terminator="finish", quick=_quick)
