"""transformers-openai-api by jquesnelle: `/completions` only, never streamed.

Source: jquesnelle/transformers-openai-api (2023). `base_url` ends in `/v1`. Causal models repeat the prompt before
each text and count it into `completion_tokens`; every choice of a prompt bears the same index; there is no finish
reason. Stop strings are cut here.

Its `max_tokens` is Hugging Face's `max_length`, which includes the prompt: the prompt's tokens are added to the cap, as
counted by the model's tokenizer where the deployment's model names it.

Known limits: without a tokenizer a prompt counts for a token every four bytes, which is rarely too much, so an answer may
end before its cap; no conversations, unless they are rendered by a chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError, UnsupportedParameter
from backends.core.request import GenerationRequest, Job, Prompt
from backends.dialects.plain_prompts import generation, post
from backends.dialects.text_answers import Form, Piece, TextDecoder
from backends.parsing import failures

CAPABILITIES: Capabilities = frozenset(
    {"chat", "completions", "max_tokens", "temperature", "top_p", "top_k", "n", "stop", "needs_output_cap"}
)
#: Of the usual tokenizers on English text; other texts have fewer.
_BYTES_PER_TOKEN = 4


class _Choice(msgspec.Struct, gc=False):
    text: str = ""


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    model: str = ""


_read = msgspec.json.Decoder(_Answer, strict=False).decode


class Jquesnelle:
    """The dialect. `needs_prompt`: conversations are rendered by a chat template first."""

    name = "jquesnelle"
    needs_prompt = True
    capabilities = CAPABILITIES

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job.

        Raises:
            UnsupportedParameter: embeddings or token ids.
            ValueError: a conversation without its rendered prompt.
        """
        job = generation(job)
        given = prompts or job.prompts
        if not given:
            raise ValueError("a conversation must be rendered by a chat template first")
        if any(one.tokens is not None for one in given):
            raise UnsupportedParameter(f"The model {job.model!r} takes prompts as text here.", param="prompt")
        texts = [one.text for one in given]
        body: dict[str, object] = {"model": job.model, "prompt": texts[0] if len(texts) == 1 else texts}
        if job.sampling.max_tokens is not None:
            body["max_tokens"] = job.sampling.max_tokens + max(map(_tokens, given))
        for name in ("temperature", "top_p"):
            if (value := getattr(job.sampling, name)) is not None:
                body[name] = value
        if job.sampling.top_k:
            body["top_k"] = job.sampling.top_k
        if job.n > 1:
            body["n"] = job.n
        return post("/completions", body)

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        job = generation(job)
        given = [one.text for one in prompts or job.prompts]
        reader = _Reader(given)
        return TextDecoder(job, Form(reader.answer, reader.answer, terminator="finish"))

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)


def _tokens(prompt: Prompt) -> int:
    return prompt.count or -(-len(prompt.text.encode()) // _BYTES_PER_TOKEN)


class _Reader:
    """Answers to these prompts: choices by their place, each without its prompt."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self._prompts = prompts

    def answer(self, data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
        """All choices, each finished."""
        answer = _read(data)
        if not answer.choices:
            return None
        inputs, outputs = self._counts(answer, job)
        pieces = []
        for place, choice in enumerate(answer.choices):
            number = place // job.n
            prompt = self._prompts[number] if number < len(self._prompts) else ""
            piece = Piece(choice.text.removeprefix(prompt), place, finished=True, model=answer.model)
            if inputs:
                piece.input_tokens, piece.output_tokens = inputs, outputs[place]
            pieces.append(piece)
        return pieces

    def _counts(self, answer: _Answer, job: GenerationRequest) -> tuple[int, list[int]]:
        """The prompt's tokens and each choice's share of the new ones; told only for one prompt that was repeated."""
        told, count = answer.usage, len(answer.choices or ())
        if told is None or len(self._prompts) > 1 or told.prompt_tokens <= 0:
            return 0, []
        fresh = told.completion_tokens - count * told.prompt_tokens
        if fresh < count:  # also where the prompt was not repeated: then the counts mean something else
            return 0, []
        return told.prompt_tokens, [fresh // count + (place < fresh % count) for place in range(count)]
