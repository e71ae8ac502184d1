"""The demo server of Chinese-LLaMA-Alpaca: `/chat/completions` and `/completions` in a shape of its own.

Source: ymcui/Chinese-LLaMA-Alpaca scripts/openai_server_demo (2023). `base_url` ends in `/v1`. A message's text stands
under `message`, not `content`; the answer's choices repeat the conversation, the last one is the answer. It renders
conversations itself, never streams, and tells neither a finish reason nor usage; stop strings are cut here.

Known limits: one prompt and one choice a request; text only; embeddings are not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError
from backends.core.request import GenerationRequest, Job, Prompt
from backends.dialects.plain_prompts import generation, one_prompt, post
from backends.dialects.text_answers import Form, Piece, TextDecoder
from backends.parsing import failures

CAPABILITIES: Capabilities = frozenset(
    {"chat", "completions", "max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "stop", "needs_output_cap"}
)
_END_MARK = re.compile(r"\s*<[/\\]s>\s*\Z")


class AlpacaOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked of the demo server beside the client's wishes. `num_beams`: 0 = its default."""

    num_beams: int = 0


class _Message(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    message: _Message | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    model: str = ""


_read = msgspec.json.Decoder(_Answer, strict=False).decode


class ChineseAlpaca:
    """The dialect."""

    name = "chinese_alpaca"
    needs_prompt = False
    capabilities = CAPABILITIES

    def __init__(self, options: AlpacaOptions | None = None) -> None:
        self._options = options or AlpacaOptions()

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job.

        Raises:
            UnsupportedParameter: embeddings, several prompts or token ids.
        """
        job = generation(job)
        sampling = job.sampling
        body: dict[str, object] = {"model": job.model}
        if prompts or job.prompts:
            body["prompt"] = one_prompt(job, prompts).text
        else:
            body["messages"] = [
                {"role": "system" if one.role == "developer" else one.role, "message": one.text} for one in job.messages
            ]
        for name in ("max_tokens", "top_p", "repetition_penalty"):
            if (value := getattr(sampling, name)) is not None:
                body[name] = value
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if sampling.temperature == 0:
            body["do_sample"] = False
        elif sampling.temperature is not None:
            body["temperature"] = sampling.temperature
        if self._options.num_beams:
            body["num_beams"] = self._options.num_beams
        return post("/completions" if "prompt" in body else "/chat/completions", body)

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        return TextDecoder(generation(job), _FORM)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)


def _answer(data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
    answer = _read(data)
    if not answer.choices:
        return None
    last = answer.choices[-1]
    text = last.text if last.message is None else last.message.content
    return None if text is None else [Piece(_END_MARK.sub("", text), finished=True, model=answer.model)]


_FORM = Form(_answer, _answer, terminator="finish")
