"""An event loop on a thread of its own, for an engine whose library is asyncio: the host's loop is never its victim."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Started once, stopped once. Its tasks belong to one TaskGroup; a task that raises ends them all, see `failure`."""

    def __init__(self, name: str, failed: Callable[[BaseException], None]) -> None:
        """`failed` is called on the loop's thread with what a task raised."""
        self._failed = failed
        self._loop = asyncio.new_event_loop()
        self._begun = threading.Event()
        self._end: asyncio.Future[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()
        self._begun.wait()

    def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the loop and wait for its result; from another thread. Raises what it raises."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result()

    def post(self, work: Callable[..., object], *arguments: object) -> None:
        """Call a function on the loop; from any thread."""
        self._loop.call_soon_threadsafe(work, *arguments)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task; on the loop's thread."""
        assert self._group is not None
        return self._group.create_task(work)

    def stop(self, wait_s: float) -> bool:
        """Cancel every task and end the loop. Whether it did within the time."""
        self.post(self._finish)
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _finish(self) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        except BaseExceptionGroup as errors:
            self._failed(errors.exceptions[0])

    async def _run(self) -> None:
        self._end = self._loop.create_future()
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._begun.set()
            await self._end
            raise _Stopped

    @staticmethod
    def ended(error: BaseException) -> bool:
        """Whether this is only the end that `stop` asked for."""
        return isinstance(error, _Stopped)


class _Stopped(Exception):
    """Leaves the group, which cancels its tasks."""
