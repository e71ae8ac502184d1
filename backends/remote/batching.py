"""Embeddings of more inputs than a server takes at once: in pieces, one after the other, their results in one stream."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from backends.core.contracts import Backend, Batches
from backends.core.events import Embedding, Event, Failure, Item, Started
from backends.core.request import EmbeddingRequest, Job
from backends.core.usage import Usage
from backends.remote.held import HeldAnswer


class Batching:
    """A `Backend` over another one. `size`: inputs that the other takes at once."""

    def __init__(self, inner: Backend, size: int) -> None:
        self._inner = inner
        self._size = size

    def open(self, job: Job) -> AbstractAsyncContextManager[Batches]:
        """See `Backend.open`. A failure of a piece ends all."""
        if not isinstance(job, EmbeddingRequest) or len(job.inputs) <= self._size:
            return self._inner.open(job)
        starts = range(0, len(job.inputs), self._size)
        return _Pieces(
            self._inner,
            [msgspec.structs.replace(job, inputs=job.inputs[start : start + self._size]) for start in starts],
        )

    async def aclose(self) -> None:
        """Close the inner backend."""
        await self._inner.aclose()


class _Pieces(HeldAnswer):
    """The pieces of one job."""

    def __init__(self, inner: Backend, pieces: Sequence[EmbeddingRequest]) -> None:
        super().__init__(inner)
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
                    out.append(Item(Embedding(first + event.value.index, event.value.vector)))
                elif not isinstance(event, Started) or not out:
                    out.append(event)
            first += len(piece.inputs)
        if len(usages) == len(self._pieces):
            out.append(Usage(sum(one.input_tokens for one in usages), 0, source=usages[0].source))
        return out
