"""The requests that are open in this worker: for lease renewal, keep-alive comments and the end of a drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cached_property
from types import TracebackType

import msgspec

from backends.core.errors import GatewayError
from gateway.domain.route import Deployment
from gateway.domain.settlement import Progress
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.tally import Tally

#: Silence after which a stream gets a comment line.
KEEPALIVE_US = 15_000_000
#: The same for one whose model is being loaded; and from its beginning to the first of them.
LOADING_US = 1_000_000
LOADING_FIRST_US = 500_000
#: What a loop that was late is given to read its sockets, before what comes in them is given up.
LAST_LOOK_S = 0.005


class Entry(msgspec.Struct, eq=False):
    """One request, open while its `with` block lasts. `task` answers it. `told_us`: when it last got a comment."""

    tally: Tally
    exchange: Exchange
    task: asyncio.Task[object]
    _among: set[Entry]
    told_us: int = 0
    _reason: GatewayError | None = None
    _timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Entry:
        """It is open."""
        self._among.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """It is over."""
        self._among.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def left(self) -> bool:
        """The client is gone. Who answers it is asked to stop, and what they have made until they hear it is still counted,
        for moments; False: nobody answers it, there is nothing to wait for.
        """
        if self._timer is None:
            patience_s = self.tally.leaving.leave()
            if not patience_s:
                return False
            self._timer = self.task.get_loop().call_later(patience_s, self._last_look)
        return True

    def _last_look(self) -> None:
        """A loop that is late runs its timers first: what lies in its sockets is read once more."""
        self._timer = self.task.get_loop().call_later(LAST_LOOK_S, self.task.cancel)

    def interrupt(self, reason: GatewayError) -> None:
        """End the request with this error, wherever it waits. A second call changes nothing."""
        if self._reason is None:
            self._reason = reason
            self.task.cancel()

    def interruption(self) -> GatewayError | None:
        """The error to raise in place of a cancellation that `interrupt` caused; None: the client left."""
        if self._reason is not None and self.task.uncancel() == 0:
            return self._reason
        return None


class OpenRequests:
    """All open requests of a worker."""

    def __init__(self) -> None:
        self._entries: set[Entry] = set()

    def __len__(self) -> int:
        return len(self._entries)

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The worker's loop, asked for once: `get_running_loop` asks the kernel for the process each time."""
        return asyncio.get_running_loop()

    def entered(self, tally: Tally, exchange: Exchange) -> Entry:
        """Count a request as open for the length of a `with` block; must run in the request's own task."""
        task = asyncio.current_task(self._loop)
        assert task is not None
        return Entry(tally, exchange, task, self._entries)

    def present(self) -> frozenset[Entry]:
        """Who is open now."""
        return frozenset(self._entries)

    def interrupt(self, reason: GatewayError) -> None:
        """End every open request with this error."""
        for entry in list(self._entries):
            entry.interrupt(reason)

    def progress(self) -> list[Progress]:
        """The live reservations that hold something, for `LimitStore.renew`."""
        live: list[Progress] = []
        for entry in self._entries:
            reservation = entry.tally.reservation
            if reservation is not None and not entry.tally.settled:
                slots = tuple(rule.name for rule in reservation.rules if rule.kind == "lease")
                live.append(Progress(reservation.id, slots, entry.tally.deltas))
        return live

    def keep_alive(self, now_us: int, loading: Callable[[Deployment], bool] = lambda _: False) -> None:
        """Write a comment to each stream that was silent too long. Called twice a second.

        `loading`: whether requests wait for that deployment's model to be loaded: their streams begin with comments.
        """
        for entry in self._entries:
            tally = entry.tally
            if tally.call is None or not tally.call.options.stream or not (tally.attempts or tally.reservation):
                continue
            often_us = KEEPALIVE_US
            if not tally.first_event_us and any(map(loading, _sought(tally))):
                early_us, often_us = LOADING_FIRST_US, LOADING_US
            elif tally.attempts and tally.attempts[-1].deployment.early_keepalive_s is not None:
                early_us = round(tally.attempts[-1].deployment.early_keepalive_s * 1_000_000)
            elif not entry.exchange.started:
                continue
            if not entry.exchange.started:
                if now_us - tally.began_us < early_us:
                    continue
                entry.exchange.content_type = b"text/event-stream"
            elif now_us - max(tally.last_event_us, entry.told_us, tally.began_us) < often_us:
                continue
            entry.told_us = now_us
            entry.exchange.comment()


def _sought(tally: Tally) -> Sequence[Deployment]:
    """Where its answer may come from at this moment: the deployment that is tried, or those whose slots it waits for."""
    if tally.attempts and not tally.attempts[-1].error:
        return (tally.attempts[-1].deployment,)
    return tally.route.tiers[0] if tally.route is not None else ()
