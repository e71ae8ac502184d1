"""The one settlement point: every tally ends here, once, whatever happened to its request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from gateway.limits.store import LimitStore
from gateway.pipeline.clock import monotonic_us, wall_us
from gateway.pipeline.rows import settlement, takes_long, usage_of
from gateway.pipeline.tally import Tally


class Settler:
    """Turns tallies into settlements and observations. Handing over is synchronous and happens once."""

    def __init__(self, store: LimitStore, observe: Callable[[Tally], None], last_write_wait_s: float = 0.005) -> None:
        self._store = store
        self._observe = observe
        self._wait_s = last_write_wait_s
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._late: deque[Tally] = deque()
        self._wake = asyncio.Event()
        self._running = False

    async def settled(self, tally: Tally) -> None:
        """Hand over before the last bytes are written and wait for the store, but no longer than 5 ms."""
        taken = self._hand_over(tally)
        if taken is None or taken.done():
            return
        loop = taken.get_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        taken.add_done_callback(partial(_go_on, waiter))
        self._waiting.append((loop.time() + self._wait_s, waiter))
        if len(self._waiting) == 1:
            loop.call_later(self._wait_s, self._tick, loop)
        await waiter

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let those go on that have waited long enough; one timer serves all who wait."""
        waiting, now = self._waiting, loop.time()
        while waiting and waiting[0][0] <= now:
            _go_on(waiting.popleft()[1])
        if waiting:
            loop.call_at(waiting[0][0], self._tick, loop)

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

    def _hand_over(self, tally: Tally) -> asyncio.Future[bool] | None:
        if tally.settled:
            return None
        if tally.reservation is None:
            if tally.admitting:
                self._store.void(tally.id)
            return None
        tally.settled = True
        tally.usage = usage_of(tally)
        return self._store.settle(settlement(tally, wall_us(), monotonic_us()))


def _go_on(waiter: asyncio.Future[None], _: object = None) -> None:
    if not waiter.done():
        waiter.set_result(None)
