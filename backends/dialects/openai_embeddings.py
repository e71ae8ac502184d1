"""Embeddings as OpenAI-like servers answer them, turned into events."""

from __future__ import annotations

import msgspec

from backends.core.events import Embedding, Event, Item, Started
from backends.core.request import EmbeddingRequest
from backends.core.usage import Usage
from backends.dialects.openai_details import read_usage
from backends.parsing import failures
from backends.parsing.framing import MAX_BODY_BYTES
from backends.parsing.vectors import pack, unpack_base64
from backends.wire.openai_chat import EmbeddingList

_read_embeddings = msgspec.json.Decoder(EmbeddingList).decode


class EmbeddingDecoder:
    """The answer of `/embeddings`, floats or base64."""

    def __init__(self, job: EmbeddingRequest) -> None:
        self._job = job
        self._body = bytearray()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the answer is over: nothing that may still come adds an event."""
        return self._ended

    def feed(self, data: bytes, /) -> list[Event]:
        """Nothing yet: the body is one JSON value."""
        if self._ended:
            return []
        self._body += data
        if len(self._body) <= MAX_BODY_BYTES:
            return []
        self._ended = True
        self._body.clear()
        return [failures.protocol(f"a body of more than {MAX_BODY_BYTES} bytes")]

    def close(self) -> list[Event]:
        """All of it, in the order of the inputs."""
        if self._ended:
            return []
        self._ended = True
        body = bytes(self._body)
        self._body.clear()
        try:
            answer = _read_embeddings(body)
        except (ValueError, RecursionError):
            return [failures.protocol("not an embedding list", body)]
        if answer.data is None:
            return [failures.event(failures.stream_failure(body, begun=False))]
        try:
            vectors = {
                piece.index: unpack_base64(piece.embedding) if isinstance(piece.embedding, str) else pack(piece.embedding)
                for piece in answer.data
            }
        except ValueError as error:
            return [failures.protocol(str(error))]
        return embedding_events(vectors, self._job, answer.model or "", read_usage(answer.usage, spoke=False))


def embedding_events(vectors: dict[int, bytes], job: EmbeddingRequest, model: str, usage: Usage | None) -> list[Event]:
    """Started, an Item for each input in order, Usage; or a Failure when inputs and vectors do not match."""
    count = len(job.inputs)
    if sorted(vectors) != list(range(count)) or len({len(vector) for vector in vectors.values()}) != 1:
        return [failures.protocol(f"vectors {sorted(vectors)[:10]} for {count} inputs, or of differing lengths")]
    events: list[Event] = [Started(model)]
    events += [Item(Embedding(index, vectors[index])) for index in range(count)]
    return [*events, usage] if usage else events
