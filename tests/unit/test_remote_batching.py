"""Embeddings in pieces of what a server takes at once."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.core.errors import UpstreamUnavailable
from backends.core.events import Embedding, Event, EventGrammar, Item, Score, Started
from backends.core.request import EmbeddingRequest, Prompt, RerankRequest
from backends.core.usage import Usage
from backends.registry import batch, dialect
from backends.remote.batching import Batching


class Embedder:
    """Answers each input with its own text as the vector."""

    def __init__(self, *, usage: bool = True, fails_at: int = 0) -> None:
        self.sizes: list[int] = []
        self.open_now = 0
        self._usage = usage
        self._fails_at = fails_at

    @asynccontextmanager
    async def open(self, job: Any, leaving: Any = None) -> AsyncIterator[AsyncIterator[Sequence[Event]]]:
        self.sizes.append(len(job.inputs))
        if len(self.sizes) == self._fails_at:
            raise UpstreamUnavailable("down")
        self.open_now += 1

        async def batches() -> AsyncIterator[Sequence[Event]]:
            yield [Started("up")]
            yield [Item(Embedding(n, one.text.encode())) for n, one in enumerate(job.inputs)]
            if self._usage:
                yield [Usage(len(job.inputs), 0)]

        try:
            yield batches()
        finally:
            self.open_now -= 1

    async def aclose(self) -> None:
        pass


def job(count: int) -> EmbeddingRequest:
    return EmbeddingRequest("m", tuple(Prompt(str(n)) for n in range(count)))


async def run(inner: Embedder, count: int, size: int = 3) -> list[Event]:
    grammar = EventGrammar()
    async with Batching(inner, size).open(job(count)) as batches:
        events = [event async for one in batches for event in grammar.feed(one)]
    grammar.close()
    assert inner.open_now == 0
    return events


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [3]), (4, [3, 1]), (9, [3, 3, 3])])
async def test_results_come_in_the_order_of_the_inputs(count: int, sizes: list[int]) -> None:
    inner = Embedder()
    events = await run(inner, count)
    assert inner.sizes == sizes
    assert [event.value for event in events if isinstance(event, Item)] == [Embedding(n, str(n).encode()) for n in range(count)]
    assert events[0] == Started("up")
    assert events[-1] == Usage(count, 0)


async def test_usage_is_told_only_when_every_piece_told_it() -> None:
    assert not any(isinstance(event, Usage) for event in await run(Embedder(usage=False), 4))


async def test_a_piece_that_fails_fails_all() -> None:
    inner = Embedder(fails_at=2)
    with pytest.raises(UpstreamUnavailable):
        await run(inner, 7)
    assert inner.open_now == 0
    assert inner.sizes == [3, 3]


def test_who_needs_it() -> None:
    assert batch(dialect("tei")) == 32
    assert batch(dialect("tei", options={"max_client_batch_size": 4})) == 4
    assert batch(dialect("openai_compatible")) == 0
    with pytest.raises(ValueError, match="at least 1"):
        dialect("tei", options={"max_client_batch_size": 0})


async def test_documents_go_in_pieces_too() -> None:
    sizes: list[int] = []

    class Ranker:
        @asynccontextmanager
        async def open(self, job: Any, leaving: Any = None) -> AsyncIterator[AsyncIterator[Sequence[Event]]]:
            sizes.append(len(job.documents))

            async def batches() -> AsyncIterator[Sequence[Event]]:
                yield [Started("up"), *(Item(Score(n, float(one))) for n, one in reversed(list(enumerate(job.documents))))]

            yield batches()

        async def aclose(self) -> None:
            pass

    asked = RerankRequest("m", "q", tuple(map(str, range(5))))
    async with Batching(Ranker(), 2).open(asked) as batches:
        events = [event async for one in batches for event in one]
    assert sizes == [2, 2, 1]
    assert sorted((one.value.index, one.value.relevance) for one in events if isinstance(one, Item)) == [
        (n, float(n)) for n in range(5)
    ]
