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
from backends.core.request import EmbeddingRequest, Job, Prompt
from backends.dialects.plain_prompts import post
from backends.dialects.vector_answers import VectorDecoder, Vectors
from backends.parsing import failures
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
        return VectorDecoder(_embedding(job), _vectors)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)


def _embedding(job: Job) -> EmbeddingRequest:
    if not isinstance(job, EmbeddingRequest):
        raise UnsupportedParameter(f"The model {job.model!r} only makes embeddings here.", param="model")
    return job


def _vectors(body: bytes) -> Vectors:
    """A bare array of vectors."""
    return Vectors({index: pack(vector) for index, vector in enumerate(_read(body))})
