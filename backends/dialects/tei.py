"""Text Embeddings Inference in its own words: `/embed`, and `/rerank` for a server whose model is a reranker.

Source: huggingface text-embeddings-inference router/src/http (2026). `base_url` is the server's root. The answer is a
bare array of vectors in the order of the inputs, or of `{index, score}`, the best first; it tells no usage.

A server takes 32 inputs at once unless told otherwise, and refuses more: longer lists are sent in pieces. It serves one model,
so the model's name is not sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError, UnsupportedParameter
from backends.core.facts import Facts
from backends.core.request import EmbeddingRequest, Job, Prompt, RerankRequest
from backends.dialects.plain_prompts import post
from backends.dialects.rerank_answers import rerank_decoder
from backends.dialects.vector_answers import Vectors, vector_decoder
from backends.parsing import failures
from backends.parsing.vectors import pack

CAPABILITIES: Capabilities = frozenset({"embeddings", "dimensions", "token_input", "rerank"})


class _Info(msgspec.Struct, gc=False):
    model_id: str = ""
    version: str = ""
    max_input_length: int = 0
    max_client_batch_size: int = 0


_read_info = msgspec.json.Decoder(_Info, strict=False).decode
_read = msgspec.json.Decoder(list[list[float]]).decode


class TeiOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must be known of a server. `max_client_batch_size`: inputs that it takes at once, as its flag of that name says."""

    max_client_batch_size: int = 32

    def __post_init__(self) -> None:
        if self.max_client_batch_size < 1:
            raise ValueError("max_client_batch_size must be at least 1")


class Tei:
    """The dialect. `batch`: inputs that one request may have."""

    name = "tei"
    needs_prompt = False
    capabilities = CAPABILITIES

    def __init__(self, options: TeiOptions | None = None) -> None:
        self.batch = (options or TeiOptions()).max_client_batch_size

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job.

        Raises:
            UnsupportedParameter: text is to be generated.
        """
        if isinstance(job, RerankRequest):
            return post("/rerank", {"query": job.query, "texts": list(job.documents)})
        job = _embedding(job)
        inputs = [list(one.tokens) if one.tokens is not None else one.text for one in job.inputs]
        body: dict[str, object] = {"inputs": inputs}
        if job.dimensions is not None:
            body["dimensions"] = job.dimensions
        return post("/embed", body)

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        return rerank_decoder(job) if isinstance(job, RerankRequest) else vector_decoder(_embedding(job), _vectors)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)


#: Where a server tells of itself.
FACTS = ("/info",)


def facts(bodies: Sequence[bytes]) -> Facts:
    """What `/info` tells."""
    for body in bodies:
        try:
            info = _read_info(body)
        except (ValueError, RecursionError):
            continue
        return Facts(info.model_id, info.version, info.max_input_length, batch=info.max_client_batch_size)
    return Facts()


def _embedding(job: Job) -> EmbeddingRequest:
    if not isinstance(job, EmbeddingRequest):
        raise UnsupportedParameter(f"The model {job.model!r} only makes embeddings or scores here.", param="model")
    return job


def _vectors(body: bytes) -> Vectors:
    """A bare array of vectors."""
    return Vectors({index: pack(vector) for index, vector in enumerate(_read(body))})
