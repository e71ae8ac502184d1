"""Embeddings and scores of more inputs than a server takes at once: in pieces, one by one, their results in one stream."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from backends.core.contracts import Backend, Batches
from backends.core.events import Event, Failure, Item, Started
from backends.core.leaving import Leaving
from backends.core.request import EmbeddingRequest, GenerationRequest, Job, RerankRequest
from backends.core.usage import Usage
from backends.remote.held import HeldAnswer


class Batching:
    """A `Backend` over another one. `size`: inputs, or documents, that the other takes at once."""

    def __init__(self, inner: Backend, size: int) -> None:
        self._inner = inner
        self._size = size

    def open(self, job: Job, leaving: Leaving | None = None) -> AbstractAsyncContextManager[Batches]:
        """See `Backend.open`. A failure of a piece ends all."""
        if isinstance(job, GenerationRequest) or _count(job) <= self._size:
            return self._inner.open(job, leaving)
        pieces = [_piece(job, start, self._size) for start in range(0, _count(job), self._size)]
        return _Pieces(self._inner, pieces, leaving)

    async def aclose(self) -> None:
        """Close the inner backend."""
        await self._inner.aclose()


class _Pieces(HeldAnswer):
    """The pieces of one job."""

    def __init__(self, inner: Backend, pieces: Sequence[EmbeddingRequest | RerankRequest], leaving: Leaving | None) -> None:
        super().__init__(inner, leaving)
        self._pieces = pieces

    async def _answer(self) -> Sequence[Event]:
        out: list[Event] = []
        usages: list[Usage] = []
        first = 0
        for piece in self._pieces:
            for event in await self._events(piece):
                if isinstance(event, Failure):
                    return [event]
                if isinstance(event, Usage):
                    usages.append(event)
                elif isinstance(event, Item):
                    out.append(Item(msgspec.structs.replace(event.value, index=first + event.value.index)))
                elif not isinstance(event, Started) or not out:
                    out.append(event)
            first += _count(piece)
        if len(usages) == len(self._pieces):
            out.append(Usage(sum(one.input_tokens for one in usages), 0, source=usages[0].source))
        return out


def _count(job: EmbeddingRequest | RerankRequest) -> int:
    return len(job.inputs if isinstance(job, EmbeddingRequest) else job.documents)


def _piece(job: EmbeddingRequest | RerankRequest, start: int, size: int) -> EmbeddingRequest | RerankRequest:
    if isinstance(job, EmbeddingRequest):
        return msgspec.structs.replace(job, inputs=job.inputs[start : start + size])
    return msgspec.structs.replace(job, documents=job.documents[start : start + size])
