"""The one settlement point: every tally ends here, once, whatever happened to its request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from gateway.limits.store import LimitStore
from gateway.pipeline.clock import monotonic_us
from gateway.pipeline.rows import settlement, takes_long, usage_of
from gateway.pipeline.tally import Tally


class Settler:
    """Turns tallies into settlements and observations. Handing over is synchronous and happens once."""

    def __init__(self, store: LimitStore, observe: Callable[[Tally], None]) -> None:
        self._store = store
        self._observe = observe
        self._late: deque[Tally] = deque()
        self._wake = asyncio.Event()
        self._running = False

    def settled(self, tally: Tally) -> Awaitable[None] | None:
        """Hand over before the last bytes are written; what they have to wait for, if anything.

        Whoever asks the store because of them is answered after it.
        """
        self._hand_over(tally)
        return self._store.written()

    def submit(self, tally: Tally) -> None:
        """The request is over. Settles what was not settled yet, and lets metrics and log see it. Never awaits.

        An answer that was cut and takes long to count is settled by `run`, a moment later.
        """
        if self._running and not tally.settled and takes_long(tally):
            self._late.append(tally)
            self._wake.set()
            return
        self._end(tally)

    async def run(self) -> None:
        """Settle what takes long to count, one after the other, counted in a thread; for ever. Then `flush`."""
        self._running = True
        while True:
            while self._late:
                tally = self._late[0]
                tally.usage = await asyncio.to_thread(usage_of, tally)
                self._late.popleft()
                self._end(tally)
            self._wake.clear()
            await self._wake.wait()

    def flush(self) -> None:
        """Settle what `run` was not given the time for; it runs no more."""
        self._running = False
        while self._late:
            self._end(self._late.popleft())

    def _end(self, tally: Tally) -> None:
        self._hand_over(tally)
        tally.flight.ended()
        self._observe(tally)

    def _hand_over(self, tally: Tally) -> None:
        if tally.settled:
            return
        if tally.reservation is None:
            if tally.admitting:
                self._store.void(tally.id)
            return
        tally.settled = True
        if tally.usage is None:
            tally.usage = usage_of(tally)
        now_us = monotonic_us()
        self._store.settle(settlement(tally, tally.began_wall_us + now_us - tally.began_us, now_us))
