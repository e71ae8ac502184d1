"""How long to wait before a dead process is started again: doubling, capped, forgotten after a healthy while. Pure."""

from __future__ import annotations


class Backoff:
    """One process's restarts; it is never given up.

    Args:
        first_s: delay of the first restart.
        cap_s: the longest delay.
        healthy_s: a process that lived this long begins anew.
    """

    def __init__(self, first_s: float = 0.2, cap_s: float = 30.0, healthy_s: float = 30.0) -> None:
        self._first_s, self._cap_s, self._healthy_s = first_s, cap_s, healthy_s
        self._failures = 0

    def died(self, lived_s: float) -> float:
        """Seconds to wait now, after a process that lived `lived_s`."""
        self._failures = 1 if lived_s >= self._healthy_s else self._failures + 1
        return min(self._cap_s, self._first_s * 2.0 ** min(self._failures - 1, 32))
