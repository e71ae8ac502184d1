"""A circuit breaker per deployment and worker: pure, the clock is an argument.

It never forbids: a deployment whose breaker is open is tried last, so a route whose every deployment looks ill still
serves the first one that recovers.
"""

from __future__ import annotations

#: Consecutive failures after which a deployment is tried last.
THRESHOLD = 3
FIRST_PAUSE_US = 1_000_000
LONGEST_PAUSE_US = 30_000_000


class Breaker:
    """Counts consecutive failures. Instants are monotonic µs."""

    __slots__ = ("_failures", "_open_until_us", "_pause_us")

    def __init__(self) -> None:
        self._failures = 0
        self._pause_us = FIRST_PAUSE_US
        self._open_until_us = 0

    def healthy(self, now_us: int) -> bool:
        """Whether it is tried in its usual place. After the pause one success closes it, one failure doubles it."""
        return self._failures < THRESHOLD or now_us >= self._open_until_us

    def record(self, ok: bool, now_us: int) -> None:
        """The outcome of an attempt."""
        if ok:
            self._failures = 0
            self._pause_us = FIRST_PAUSE_US
            return
        self._failures += 1
        if self._failures < THRESHOLD:
            return
        if self._failures > THRESHOLD and now_us >= self._open_until_us:
            self._pause_us = min(self._pause_us * 2, LONGEST_PAUSE_US)
        if now_us >= self._open_until_us:
            self._open_until_us = now_us + self._pause_us
