"""One job as many: numbering, usage, the first failure, and leaving early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from backends.core.contracts import Batches
from backends.core.errors import UpstreamTruncated, UpstreamUnavailable
from backends.core.events import Event, EventGrammar, Failure, Finish, Started, TextDelta
from backends.core.fold import fold
from backends.core.request import EmbeddingRequest, GenerationRequest, Job, Prompt, Sampling
from backends.core.usage import Usage
from backends.remote.fanout import FanOut, split, total


class Script:
    """Answers each job with its prompt, number of the job and seed; `fails` raises in that job, `hangs` never ends."""

    def __init__(self, *, fails: int = -1, hangs: bool = False, silent: int = -1, failure: int = -1) -> None:
        self.jobs: list[GenerationRequest] = []
        self.open_now = 0
        self.most = 0
        self.fails, self.hangs, self.silent, self.failure = fails, hangs, silent, failure

    def open(self, job: Job, leaving: object = None) -> AbstractAsyncContextManager[Batches]:
        assert isinstance(job, GenerationRequest)
        self.jobs.append(job)
        return self._opened(job, len(self.jobs) - 1)

    async def aclose(self) -> None:
        pass

    @asynccontextmanager
    async def _opened(self, job: GenerationRequest, number: int) -> AsyncIterator[Batches]:
        self.open_now += 1
        self.most = max(self.most, self.open_now)
        try:
            if number == self.fails:
                raise UpstreamUnavailable("down")
            yield self._batches(job, number)
        finally:
            self.open_now -= 1

    async def _batches(self, job: GenerationRequest, number: int) -> AsyncIterator[Sequence[Event]]:
        yield [Started("up")]
        await asyncio.sleep(0)
        text = job.prompts[0].text if job.prompts else "chat"
        yield [TextDelta(f"{text}:{job.sampling.seed}", choice) for choice in range(job.choices)]
        if self.hangs:
            await asyncio.Event().wait()
        if number == self.failure:
            yield [Failure("timeout", "late")]
            return
        if number == self.silent:
            return
        yield [Finish("stop", choice) for choice in range(job.choices)]
        yield [Usage(10 + len(text), 2, 4, 1)]


async def run(backend: FanOut, job: Job) -> list[Event]:
    events: list[Event] = []
    grammar = EventGrammar()
    async with asyncio.timeout(5), backend.open(job) as batches:
        async for batch in batches:
            assert batch
            events += grammar.feed(batch)
    grammar.close()
    return events


async def test_samples_and_prompts_are_numbered_as_the_job_says() -> None:
    script = Script()
    job = GenerationRequest("m", prompts=(Prompt("a"), Prompt("bb")), n=2, sampling=Sampling(seed=7))
    answer = fold(await run(FanOut(script), job))
    assert {index: "".join(choice.text) for index, choice in answer.choices.items()} == {
        0: "a:7",
        1: "a:8",
        2: "bb:7",
        3: "bb:8",
    }
    assert answer.usage == Usage(11 + 12, 8, 8, 4)
    assert script.most == 4
    assert script.open_now == 0
    assert all(part.n == 1 and len(part.prompts) == 1 for part in script.jobs)


async def test_started_is_told_once_and_usage_last() -> None:
    events = await run(FanOut(Script()), GenerationRequest("m", n=3))
    assert isinstance(events[0], Started)
    assert sum(isinstance(event, Started) for event in events) == 1
    assert isinstance(events[-1], Usage)


async def test_a_backend_that_makes_n_itself_is_split_by_prompts_only() -> None:
    script = Script()
    answer = fold(await run(FanOut(script, samples=False), GenerationRequest("m", prompts=(Prompt("a"), Prompt("b")), n=2)))
    assert [(part.n, part.prompts[0].text) for part in script.jobs] == [(2, "a"), (2, "b")]
    assert ["".join(answer.choices[index].text) for index in range(4)] == ["a:None", "a:None", "b:None", "b:None"]


async def test_what_needs_no_split_goes_through_as_it_is() -> None:
    script = Script()
    job = GenerationRequest("m", n=1)
    await run(FanOut(script), job)
    assert script.jobs == [job]
    whole = GenerationRequest("m", prompts=(Prompt("a"),), n=2)
    await run(FanOut(script, samples=False), whole)
    assert script.jobs[1] == whole
    with pytest.raises(AssertionError):
        FanOut(script).open(EmbeddingRequest("m", (Prompt("x"),)))  # reaches the inner backend


async def test_the_first_error_ends_all_and_comes_unwrapped() -> None:
    script = Script(fails=1, hangs=True)
    with pytest.raises(UpstreamUnavailable, match="down"):
        await run(FanOut(script), GenerationRequest("m", n=3))
    assert script.open_now == 0


async def test_a_failure_event_is_the_last_one() -> None:
    script = Script(failure=1)
    events = await run(FanOut(script), GenerationRequest("m", n=3))
    assert events[-1] == Failure("timeout", "late")
    assert script.open_now == 0


async def test_a_part_without_an_end_is_truncated() -> None:
    with pytest.raises(UpstreamTruncated):
        await run(FanOut(Script(silent=2)), GenerationRequest("m", n=3))


async def test_leaving_early_cancels_all_and_keeps_the_callers_exception() -> None:
    script = Script(hangs=True)
    with pytest.raises(KeyError):
        async with FanOut(script).open(GenerationRequest("m", n=3)) as batches:
            await anext(batches)
            raise KeyError("mine")
    assert script.open_now == 0


async def test_cancelling_the_consumer_cancels_all() -> None:
    script = Script(hangs=True)

    async def consume() -> None:
        async with FanOut(script).open(GenerationRequest("m", n=2)) as batches:
            async for _ in batches:
                pass

    task = asyncio.create_task(consume())
    while script.most < 2:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert script.open_now == 0


def test_usage_of_parts() -> None:
    told = Usage(5, 1)
    assert total([(0, told), (0, None)]) is None
    assert total([(0, told), (0, Usage(5, 3, source="counted"))]) == Usage(5, 4, source="counted")
    assert total([(0, told), (1, Usage(7, 3, source="estimated"))]) == Usage(12, 4, source="estimated")


def test_split_keeps_the_jobs_seed_for_the_first_sample() -> None:
    parts = split(GenerationRequest("m", n=3, sampling=Sampling(seed=5)), samples=True, prompts=True)
    assert [part.job.sampling.seed for part in parts] == [5, 6, 7]
    parts = split(GenerationRequest("m", n=2), samples=True, prompts=True)
    assert [part.job.sampling.seed for part in parts] == [None, None]
