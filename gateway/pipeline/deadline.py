"""A time limit for a block of code: `asyncio.timeout` without its coroutines, for a fourth of its cost per request."""

from __future__ import annotations

import asyncio
from types import TracebackType

import msgspec


class Deadline(msgspec.Struct, eq=False):
    """A synchronous context manager for code that awaits, entered and left in one task: `task`.

    Raises (from leaving):
        TimeoutError: the block was cancelled because its time was over, and nobody else had asked for it.
    """

    _seconds: float
    _task: asyncio.Task[object]
    _asked: int = 0
    _over: bool = False
    _timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        """The time begins."""
        task = self._task
        self._asked = task.cancelling()
        self._timer = task.get_loop().call_later(self._seconds, self._cancel)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The block is left, by whatever way."""
        if self._timer is not None:
            self._timer.cancel()
        if self._over and self._task.uncancel() <= self._asked and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _cancel(self) -> None:
        self._over = True
        self._task.cancel()
