"""Text Embeddings Inference in its own words: `/embed`.

Source: huggingface text-embeddings-inference router/src/http (2026). `base_url` is the server's root. The answer is a
bare array of vectors in the order of the inputs; it tells no usage.

Known limits: a server takes 32 inputs at once unless told otherwise, and refuses more; it serves one model, so the
model's name is not sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError, UnsupportedParameter
from backends.core.events import Event
from backends.core.request import EmbeddingRequest, Job, Prompt
from backends.dialects.openai_embeddings import embedding_events
from backends.dialects.plain_prompts import post
from backends.parsing import failures
from backends.parsing.framing import EventsOrBody
from backends.parsing.vectors import pack

CAPABILITIES: Capabilities = frozenset({"embeddings", "dimensions", "token_input"})
_read = msgspec.json.Decoder(list[list[float]]).decode


class Tei:
    """The dialect."""

    name = "tei"
    needs_prompt = False
    capabilities = CAPABILITIES

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job.

        Raises:
            UnsupportedParameter: text is to be generated.
        """
        job = _embedding(job)
        inputs = [list(one.tokens) if one.tokens is not None else one.text for one in job.inputs]
        body: dict[str, object] = {"inputs": inputs}
        if job.dimensions is not None:
            body["dimensions"] = job.dimensions
        return post("/embed", body)

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        return _Vectors(_embedding(job))

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)


def _embedding(job: Job) -> EmbeddingRequest:
    if not isinstance(job, EmbeddingRequest):
        raise UnsupportedParameter(f"The model {job.model!r} only makes embeddings here.", param="model")
    return job


class _Vectors:
    """An array of vectors."""

    def __init__(self, job: EmbeddingRequest) -> None:
        self._job = job
        self._framing = EventsOrBody()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the answer is over: nothing that may still come adds an event."""
        return self._ended

    def feed(self, data: bytes, /) -> list[Event]:
        """Nothing yet: the body is one JSON value."""
        if not self._ended:
            self._framing.feed(data)
            if self._framing.broken:
                self._ended = True
                return [failures.protocol(self._framing.broken)]
        return []

    def close(self) -> list[Event]:
        """All of it, in the order of the inputs."""
        if self._ended:
            return []
        self._ended = True
        body = self._framing.take_body()
        try:
            vectors = {index: pack(vector) for index, vector in enumerate(_read(body))}
        except (ValueError, RecursionError) as error:
            if failures.envelope(body).message:
                return [failures.event(failures.stream_failure(body, begun=False))]
            return [failures.protocol(f"no vectors ({error})", body)]
        return embedding_events(vectors, self._job, "", None)
