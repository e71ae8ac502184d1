"""Requests that have ended, observed together a moment later.

The metrics and the log line of one request alone run through cold code between two other requests' stages; the same
work for twenty requests in a row costs about a third.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: Long enough that a busy worker has dozens; at an even rate of fifty a second, between two requests and not during the next.
DELAY_S = 0.01
#: So many are observed at once, without waiting.
MOST = 256


class Deferred(Generic[T]):
    """Hands each request to `observe` once, in order, at most `DELAY_S` late. Used from one event loop."""

    def __init__(self, observe: Callable[[T], None]) -> None:
        self._observe = observe
        self._ended: list[T] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, ended: T) -> None:
        """A request has ended."""
        self._ended.append(ended)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY_S, self.flush)
        elif len(self._ended) >= MOST:
            self.flush()

    def flush(self) -> None:
        """Observe those that wait, now: before a scrape, and at the end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ended, self._ended = self._ended, []
        for one in ended:
            self._observe(one)
