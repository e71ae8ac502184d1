"""Embeddings, whoever answers them: one JSON value, turned into events in the order of the inputs."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from backends.core.events import Embedding, Event, Item, Started
from backends.core.request import EmbeddingRequest
from backends.core.usage import Usage
from backends.dialects.whole_answers import WholeDecoder
from backends.parsing import failures


class Vectors(msgspec.Struct):
    """What an answer says: packed vectors by input, the model's name, and its usage where it tells one."""

    by_input: dict[int, bytes]
    model: str = ""
    usage: Usage | None = None


def vector_decoder(job: EmbeddingRequest, read: Callable[[bytes], Vectors]) -> WholeDecoder:
    """A fresh decoder. `read`: the body's vectors; raises as `WholeDecoder` says."""
    return WholeDecoder("embeddings", lambda body: _events(read(body), len(job.inputs)))


def _events(vectors: Vectors, count: int) -> list[Event]:
    """Started, an Item for each input, Usage; or a Failure when inputs and vectors do not match."""
    found = vectors.by_input
    if sorted(found) != list(range(count)) or len({len(vector) for vector in found.values()}) != 1:
        return [failures.protocol(f"vectors {sorted(found)[:10]} for {count} inputs, or of differing lengths")]
    events: list[Event] = [Started(vectors.model)]
    events += [Item(Embedding(index, found[index])) for index in range(count)]
    return [*events, vectors.usage] if vectors.usage else events
