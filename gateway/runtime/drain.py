"""The order in which a worker stops, as a pure state machine: effects come out, `worker.py` carries them out.

    serving ─begin→ announcing ─delay→ waiting ─no request, or drain_s→ cutting ─none left→ flushing ─flushed→ closed

Announcing: readiness is false, new requests are still served, so that a load balancer can look away first.
Waiting: the listener is closed. Cutting: open streams were told to end. Each step has a longest time.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Phase = Literal["serving", "announcing", "waiting", "cutting", "flushing", "closed"]
Effect = Literal["unready", "stop_accepting", "cut", "flush", "close"]


class DrainTimes(msgspec.Struct, frozen=True):
    """Seconds. `delay_s`: not ready, still serving; `drain_s`: streams may end; `cut_s`: after they were told to;
    `flush_s`: for settlements to leave.
    """

    delay_s: float = 0.0
    drain_s: float = 60.0
    cut_s: float = 5.0
    flush_s: float = 5.0

    @property
    def longest_s(self) -> float:
        """The most that all of it can take."""
        return self.delay_s + self.drain_s + self.cut_s + self.flush_s


class Drain:
    """One worker's way out. Instants are seconds of one monotonic clock."""

    def __init__(self, times: DrainTimes) -> None:
        self._times = times
        self._until = 0.0
        self.phase: Phase = "serving"

    def begin(self, now: float) -> list[Effect]:
        """The first signal. Later calls change nothing."""
        if self.phase != "serving":
            return []
        self._enter("announcing", now + self._times.delay_s)
        return ["unready"]

    def hurry(self, now: float) -> list[Effect]:
        """The second signal: no more waiting for clients."""
        effects = self.begin(now)
        if self.phase == "announcing":
            effects.append("stop_accepting")
        if self.phase in ("announcing", "waiting"):
            self._enter("cutting", now + min(1.0, self._times.cut_s))
            effects.append("cut")
        return effects

    def look(self, now: float, open_requests: int, flushed: bool) -> list[Effect]:
        """What to do now. `flushed`: the flush that was asked for has ended."""
        effects: list[Effect] = []
        if self.phase == "announcing" and now >= self._until:
            self._enter("waiting", now + self._times.drain_s)
            effects.append("stop_accepting")
        if self.phase == "waiting" and open_requests and now >= self._until:
            self._enter("cutting", now + self._times.cut_s)
            effects.append("cut")
        elif (self.phase == "waiting" and not open_requests) or (
            self.phase == "cutting" and (not open_requests or now >= self._until)
        ):
            self._enter("flushing", now + self._times.flush_s)
            effects.append("flush")
        elif self.phase == "flushing" and (flushed or now >= self._until):
            self._enter("closed", now)
            effects.append("close")
        return effects

    def _enter(self, phase: Phase, until: float) -> None:
        self.phase, self._until = phase, until
