"""An answer that is held until it is whole: one call after the other at the inner backend, then one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from backends.core.contracts import Backend, Batches
from backends.core.errors import BackendError
from backends.core.events import Event
from backends.core.leaving import Leaving
from backends.core.request import Job


class HeldAnswer(AbstractAsyncContextManager[Batches], ABC):
    """An opened job but for `_answer`. An error in it is still a status: nothing was handed out before."""

    def __init__(self, inner: Backend, leaving: Leaving | None) -> None:
        self._inner = inner
        self._leaving = leaving
        self._done = False
        self._call: AbstractAsyncContextManager[Batches] | None = None

    @abstractmethod
    async def _answer(self) -> Sequence[Event]:
        """All events, worked out by `_events` of one job or several."""

    async def _events(self, job: Job) -> list[Event]:
        """All events of one call at the inner backend; those until it was left, when it was.

        Raises:
            BackendError: the inner backend's.
        """
        call = self._inner.open(job, self._leaving)
        batches = await call.__aenter__()
        self._call = call
        events: list[Event] = []
        try:
            async for batch in batches:
                events += batch
        except BackendError:
            if not self.left:
                raise
        await self.__aexit__(None, None, None)
        return events

    @property
    def left(self) -> bool:
        """Whether nobody waits for the answer any more: what has come is only counted."""
        return self._leaving is not None and self._leaving.gone

    async def __aenter__(self) -> Batches:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        call, self._call = self._call, None
        if call is not None:
            await call.__aexit__(kind, error, trace)

    def __aiter__(self) -> HeldAnswer:
        return self

    async def __anext__(self) -> Sequence[Event]:
        if self._done:
            raise StopAsyncIteration
        self._done = True
        return await self._answer()
