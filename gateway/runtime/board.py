"""A worker's view of the local engines: what the supervisor last told, and the wait for one that is not loaded yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import msgspec

from backends.core.contracts import Backend, Batches
from backends.core.errors import GatewayError, UpstreamOverloaded, UpstreamUnavailable
from backends.core.events import Event
from backends.core.leaving import Leaving
from backends.core.request import Job
from gateway.domain.engines import EngineState
from gateway.runtime import control
from gateway.runtime.engine_keeper import Unload

#: A request that waits for an engine says so again after this: the supervisor may have been busy, or restarted it.
ASK_AGAIN_S = 1.0
#: An engine that is loaded by its state but refuses is asked again after this.
AGAIN_S = 0.05
#: What a host answers while it is not ready.
_NOT_NOW = "model_loading"


class Board:
    """The engines' states. `say(kind, payload)` speaks to the supervisor. Belongs to one event loop."""

    def __init__(self, say: Callable[[bytes, bytes], None]) -> None:
        self._say = say
        self._states: dict[str, EngineState] = {}
        self._told = False
        self._changed = asyncio.Event()

    def learn(self, payload: bytes) -> None:
        """The states as the supervisor tells them."""
        self._states = {state.name: state for state in msgspec.json.decode(payload, type=tuple[EngineState, ...])}
        self._told = True
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def states(self) -> Sequence[EngineState]:
        """Every engine, as last told; empty until the supervisor has spoken."""
        return tuple(self._states.values())

    def starting(self) -> Sequence[str]:
        """The engines that are being loaded at this moment; before the supervisor has spoken, a nameless one."""
        return [one.name for one in self._states.values() if one.state in ("waiting", "loading")] if self._told else ("",)

    def failed(self) -> Mapping[str, str]:
        """Why engines failed, by name, in a word that anyone may see."""
        return {one.name: one.code for one in self._states.values() if one.state == "failed"}

    def loading(self, name: str) -> bool:
        """Whether requests wait for it."""
        state = self._states.get(name)
        return state is None or state.state not in ("ready", "failed")

    def load(self, name: str) -> None:
        """Have it loaded."""
        self._say(control.WANT, name.encode())

    def unload(self, name: str, *, force: bool) -> None:
        """Have its memory freed."""
        self._say(control.UNLOAD, msgspec.json.encode(Unload(name, force)))

    async def ready(self, name: str) -> None:
        """Wait until it is loaded, and have it loaded where it is not.

        Raises:
            UpstreamUnavailable: it does not load.
            UpstreamOverloaded: it stopped and is restarted after a pause (`model_loading`).
        """
        asked = False
        while (state := self._states.get(name)) is None or state.state != "ready":
            if state is not None and state.state == "failed":
                if not asked:
                    self.load(name)  # the next request may find it loaded
                raise failure(state)
            self.load(name)
            asked = True
            await self.change(ASK_AGAIN_S)

    async def change(self, most_s: float) -> None:
        """Wait for the next news, at most so long."""
        changed = self._changed
        try:
            async with asyncio.timeout(most_s):
                await changed.wait()
        except TimeoutError:
            return


def failure(state: EngineState) -> GatewayError:
    """What a request gets from a failed engine."""
    detail = f"{state.name}: {state.detail}"
    if state.code in ("load_failed", "no_room"):
        return UpstreamUnavailable("The model could not be loaded.", code="engine_failed", detail=detail)
    message = "The model's engine stopped and is being started again."
    return UpstreamOverloaded(message, code="model_loading", retry_after_ms=max(1000, state.retry_ms), detail=detail)


class LoadedFirst:
    """A `Backend` around an engine's: a job waits until the engine is loaded, and has it loaded."""

    def __init__(self, inner: Backend, board: Board, name: str) -> None:
        self._inner, self._board, self._name = inner, board, name

    def open(self, job: Job, leaving: Leaving | None = None) -> AbstractAsyncContextManager[Batches]:
        """As `Backend.open`.

        Raises:
            UpstreamUnavailable, UpstreamOverloaded: from `__aenter__`, as `Board.ready`.
        """
        return _Opened(self._inner, self._board, self._name, job, leaving)

    async def aclose(self) -> None:
        """Close the inner backend."""
        await self._inner.aclose()


class _Opened(AsyncIterator[Sequence[Event]]):
    """One job. An engine may begin to unload between the look at its state and the job's arrival: then all again."""

    def __init__(self, inner: Backend, board: Board, name: str, job: Job, leaving: Leaving | None) -> None:
        self._leaving = leaving
        self._inner, self._board, self._name, self._job = inner, board, name, job
        self._opened: AbstractAsyncContextManager[Batches] | None = None
        self._batches: Batches | None = None
        self._spoke = False

    async def __aenter__(self) -> Batches:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.__aexit__(kind, error, trace)

    async def __anext__(self) -> Sequence[Event]:
        while True:
            assert self._batches is not None
            try:
                batch = await self._batches.__anext__()
            except UpstreamOverloaded as error:
                if self._spoke or error.code != _NOT_NOW:
                    raise
                await self.__aexit__(None, None, None)
                await self._board.change(AGAIN_S)
                await self._open()
                continue
            self._spoke = True
            return batch

    async def _open(self) -> None:
        while True:
            await self._board.ready(self._name)
            opened = self._inner.open(self._job, self._leaving)
            try:
                self._batches = await opened.__aenter__()
            except UpstreamOverloaded as error:
                if error.code != _NOT_NOW:
                    raise
                await self._board.change(AGAIN_S)
            else:
                self._opened = opened
                return
