"""When to stop asking Redis, and when to try again: a state machine without a clock of its own. Pure.

    closed ──(a timeout, or `threshold` lost connections in a row)──▶ open ──(pause over: one probe)──▶ probing
      ▲                                                                ▲                                  │
      └────────────────────────── the probe answered ──────────────────┼───────────────── it did not ─────┘

While open or probing every admission gets the outage policy at once. The probe is the reconnection itself, never a
client's request. Pauses double from `first_pause_s` to `longest_pause_s`.
"""

from __future__ import annotations

from typing import Literal

State = Literal["closed", "open", "probing"]


class Breaker:
    """Instants are seconds of any monotonic clock."""

    def __init__(self, *, threshold: int = 2, first_pause_s: float = 0.05, longest_pause_s: float = 1.0) -> None:
        self.state: State = "closed"
        self._threshold = threshold
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._failures = 0
        self._pause_s = 0.0
        self._until = 0.0

    @property
    def closed(self) -> bool:
        """Whether requests may be sent."""
        return self.state == "closed"

    def failed(self, now: float, *, timed_out: bool) -> None:
        """A turn or a probe failed. A timeout opens at once: each further one would cost every request the timeout."""
        self._failures += 1
        if self.state == "open":
            return
        if self.state == "probing":
            self._pause_s = min(self._longest_pause_s, self._pause_s * 2)
        elif timed_out or self._failures >= self._threshold:
            self._pause_s = self._first_pause_s
        else:
            return
        self.state = "open"
        self._until = now + self._pause_s

    def succeeded(self) -> None:
        """An answer came."""
        self.state = "closed"
        self._failures = 0

    def probe_in(self, now: float) -> float:
        """Seconds until a connection may be tried; 0 = now. Nothing while a probe is under way (infinity)."""
        if self.state == "closed":
            return 0.0
        return float("inf") if self.state == "probing" else max(0.0, self._until - now)

    def probe(self, now: float) -> bool:
        """Take the right to try: True for exactly one caller when open and the pause is over; always while closed."""
        if self.state == "closed":
            return True
        if self.state == "open" and now >= self._until:
            self.state = "probing"
            return True
        return False
