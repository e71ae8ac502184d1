"""Embeddings as OpenAI-like servers answer them: floats or base64."""

from __future__ import annotations

import msgspec

from backends.core.request import EmbeddingRequest
from backends.dialects.openai_details import read_usage
from backends.dialects.vector_answers import Vectors, vector_decoder
from backends.dialects.whole_answers import WholeDecoder
from backends.parsing.vectors import pack, unpack_base64
from backends.wire.openai_chat import EmbeddingList

_read_embeddings = msgspec.json.Decoder(EmbeddingList, strict=False).decode


def embedding_decoder(job: EmbeddingRequest) -> WholeDecoder:
    """A fresh decoder of the answer of `/embeddings`."""
    return vector_decoder(job, _read)


def _read(body: bytes) -> Vectors:
    answer = _read_embeddings(body)
    if answer.data is None:
        raise ValueError("no `data`")
    vectors = {
        piece.index: unpack_base64(piece.embedding) if isinstance(piece.embedding, str) else pack(piece.embedding)
        for piece in answer.data
    }
    return Vectors(vectors, answer.model or "", read_usage(answer.usage, spoke=False))
