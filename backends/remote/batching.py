"""Embeddings of more inputs than a server takes at once: in pieces, one after the other, their results in one stream."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import msgspec

from backends.core.contracts import Backend, Batches
from backends.core.events import Embedding, Event, Failure, Item, Started
from backends.core.request import EmbeddingRequest, Job
from backends.core.usage import Usage


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
        return _Opened(
            self._inner,
            [msgspec.structs.replace(job, inputs=job.inputs[start : start + self._size]) for start in starts],
        )

    async def aclose(self) -> None:
        """Close the inner backend."""
        await self._inner.aclose()


class _Opened(AbstractAsyncContextManager[Batches]):
    """The pieces of one job. Nothing is handed out before the last one: an error of any is then still a status."""

    def __init__(self, inner: Backend, pieces: Sequence[EmbeddingRequest]) -> None:
        self._inner = inner
        self._pieces = pieces
        self._done = False
        self._call: AbstractAsyncContextManager[Batches] | None = None

    async def __aenter__(self) -> Batches:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        call, self._call = self._call, None
        if call is not None:
            await call.__aexit__(kind, error, trace)

    def __aiter__(self) -> _Opened:
        return self

    async def __anext__(self) -> Sequence[Event]:
        if self._done:
            raise StopAsyncIteration
        self._done = True
        out: list[Event] = []
        usages: list[Usage] = []
        first = 0
        for piece in self._pieces:
            call = self._inner.open(piece)
            batches = await call.__aenter__()
            self._call = call
            async for batch in batches:
                for event in batch:
                    if isinstance(event, Failure):
                        return [event]
                    if isinstance(event, Usage):
                        usages.append(event)
                    elif isinstance(event, Item):
                        out.append(Item(Embedding(first + event.value.index, event.value.vector)))
                    elif not isinstance(event, Started) or not out:
                        out.append(event)
            await self.__aexit__(None, None, None)
            first += len(piece.inputs)
        if len(usages) == len(self._pieces):
            out.append(Usage(sum(one.input_tokens for one in usages), 0, source=usages[0].source))
        return out
