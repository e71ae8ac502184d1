"""Embeddings, whoever answers them: one JSON value, turned into events in the order of the inputs."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from backends.core.events import Embedding, Event, Item, Started
from backends.core.request import EmbeddingRequest
from backends.core.usage import Usage
from backends.parsing import failures
from backends.parsing.framing import MAX_BODY_BYTES


class Vectors(msgspec.Struct):
    """What an answer says: packed vectors by input, the model's name, and its usage where it tells one."""

    by_input: dict[int, bytes]
    model: str = ""
    usage: Usage | None = None


class VectorDecoder:
    """A body that `read` understands. Single use.

    Args:
        job: what was asked.
        read: the body's vectors. Raises ValueError or RecursionError for anything else; an error in one of the usual
            envelopes is told as that.
    """

    def __init__(self, job: EmbeddingRequest, read: Callable[[bytes], Vectors]) -> None:
        self._job = job
        self._read = read
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
            vectors = self._read(body)
        except (ValueError, RecursionError) as error:
            said = failures.envelope(body)
            if said.message and body.lstrip()[:1] == b"{":
                return [failures.event(failures.told(said, begun=False))]
            return [failures.protocol(f"no embeddings ({error})", body)]
        return self._events(vectors)

    def _events(self, vectors: Vectors) -> list[Event]:
        """Started, an Item for each input, Usage; or a Failure when inputs and vectors do not match."""
        found, count = vectors.by_input, len(self._job.inputs)
        if sorted(found) != list(range(count)) or len({len(vector) for vector in found.values()}) != 1:
            return [failures.protocol(f"vectors {sorted(found)[:10]} for {count} inputs, or of differing lengths")]
        events: list[Event] = [Started(vectors.model)]
        events += [Item(Embedding(index, found[index])) for index in range(count)]
        return [*events, vectors.usage] if vectors.usage else events
