"""`n` > 1, and several prompts, for backends that make one choice at a time: many jobs opened at once, one stream out.

Choices are numbered as `GenerationRequest` says: prompt * n + sample. The input of a prompt is counted once, however
many samples were made of it; usage is told only when every part told its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import msgspec

from backends.core.contracts import Backend, Batches
from backends.core.errors import UpstreamTruncated
from backends.core.events import Event, Failure, Finish, Item, Started
from backends.core.leaving import Leaving
from backends.core.request import GenerationRequest, Job
from backends.core.usage import Usage, UsageSource

#: Batches that wait for the consumer, per part; a part that is ahead waits.
_AHEAD = 4
_WEAKEST: tuple[UsageSource, ...] = ("estimated", "counted", "reported")


class Part(msgspec.Struct, frozen=True):
    """One of the jobs that a job is split into. Its choice c becomes `first` + c."""

    job: GenerationRequest
    prompt: int
    first: int


def split(job: GenerationRequest, *, samples: bool, prompts: bool) -> list[Part]:
    """The parts of a job. `samples`: one choice each; `prompts`: one prompt each.

    A seed is raised by the sample's number, so that samples differ and each can be repeated.
    """
    parts: list[Part] = []
    groups = (
        [(number, (prompt,)) for number, prompt in enumerate(job.prompts)] if prompts and job.prompts else [(0, job.prompts)]
    )
    for number, group in groups:
        whole = msgspec.structs.replace(job, prompts=group)
        if not samples or job.n == 1:
            parts.append(Part(whole, number, number * job.n))
            continue
        for sample in range(job.n):
            sampling = whole.sampling
            if sampling.seed is not None:
                sampling = msgspec.structs.replace(sampling, seed=sampling.seed + sample)
            one = msgspec.structs.replace(whole, n=1, sampling=sampling)
            parts.append(Part(one, number, number * job.n + sample))
    return parts


def renumbered(event: Event, first: int) -> Event:
    """The event with its choice moved up by `first`."""
    if isinstance(event, Started | Usage | Failure | Item) or not first:
        return event
    return msgspec.structs.replace(event, choice=event.choice + first)


def total(parts: Sequence[tuple[int, Usage | None]]) -> Usage | None:
    """The usage of all parts, given (prompt, usage) of each; None when one did not tell.

    Input is the largest told for a prompt, summed over prompts; the source is the weakest of all.
    """
    inputs: dict[int, Usage] = {}
    output = reasoning = 0
    weakest: UsageSource = "reported"
    for prompt, usage in parts:
        if usage is None:
            return None
        if prompt not in inputs or usage.input_tokens > inputs[prompt].input_tokens:
            inputs[prompt] = usage
        output += usage.output_tokens
        reasoning += usage.reasoning_tokens
        weakest = min(weakest, usage.source, key=_WEAKEST.index)
    return Usage(
        sum(usage.input_tokens for usage in inputs.values()),
        output,
        sum(usage.cached_input_tokens for usage in inputs.values()),
        reasoning,
        weakest,
    )


class FanOut:
    """A `Backend` over another one. `samples` / `prompts`: what the other cannot do in one job."""

    def __init__(self, inner: Backend, *, samples: bool = True, prompts: bool = True) -> None:
        self._inner = inner
        self._samples = samples
        self._prompts = prompts

    def open(self, job: Job, leaving: Leaving | None = None) -> AbstractAsyncContextManager[Batches]:
        """See `Backend.open`. The first failure of a part ends all; leaving early cancels all."""
        if not isinstance(job, GenerationRequest) or job.choices == 1:
            return self._inner.open(job, leaving)
        parts = split(job, samples=self._samples, prompts=self._prompts)
        return self._inner.open(job, leaving) if len(parts) == 1 else _Merged(self._inner, parts, leaving or Leaving())

    async def aclose(self) -> None:
        """Close the inner backend."""
        await self._inner.aclose()


class _Merged(AbstractAsyncContextManager[Batches]):
    """The parts as tasks of one group, their batches in one queue.

    Leaving cancels the tasks, whose backends leave by synchronous effects, and waits for just that. The tasks never
    raise and the group is never left with an error, so no exception group reaches the caller.
    """

    def __init__(self, inner: Backend, parts: Sequence[Part], leaving: Leaving) -> None:
        self._inner = inner
        self._leaving = leaving
        self._parts = parts
        self._queue: asyncio.Queue[tuple[int, Sequence[Event] | Exception | None]] = asyncio.Queue(_AHEAD * len(parts))
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []
        self._usages: list[Usage | None] = [None] * len(parts)
        self._running = len(parts)
        self._started = self._over = False

    async def __aenter__(self) -> Batches:
        await self._group.__aenter__()
        self._tasks = [self._group.create_task(self._run(number)) for number in range(len(self._parts))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def __aiter__(self) -> _Merged:
        return self

    async def __anext__(self) -> Sequence[Event]:
        while self._running and not self._over:
            number, got = await self._queue.get()
            if got is None or (isinstance(got, Exception) and self._leaving.gone):
                self._running -= 1  # when all are asked to stop, the end of one is not that of the others
            elif isinstance(got, Exception):
                self._over = True
                raise got
            elif batch := self._merge(number, got):
                return batch
        if not self._over:
            self._over = True
            usage = total([(part.prompt, usage) for part, usage in zip(self._parts, self._usages, strict=True)])
            if usage is not None:
                return [usage]
        raise StopAsyncIteration

    def _merge(self, number: int, events: Sequence[Event]) -> list[Event]:
        first = self._parts[number].first
        out: list[Event] = []
        for event in events:
            if isinstance(event, Usage):
                self._usages[number] = event
            elif isinstance(event, Failure) and self._leaving.gone:
                break
            elif isinstance(event, Started):
                if not self._started:
                    out.append(event)
                self._started = True
            else:
                self._started = True
                out.append(renumbered(event, first))
                if isinstance(event, Failure):
                    self._over = True
                    break
        return out

    async def _run(self, number: int) -> None:
        put = self._queue.put
        finished = False
        try:
            async with self._inner.open(self._parts[number].job, self._leaving) as batches:
                async for batch in batches:
                    finished = finished or any(isinstance(event, Finish | Failure) for event in batch)
                    await put((number, batch))
        except Exception as error:  # handed over: the consumer raises it where it stands
            await put((number, error))
        else:
            await put((number, None if finished else UpstreamTruncated("The model's answer was empty.")))
