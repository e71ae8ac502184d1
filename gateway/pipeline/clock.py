"""The two clocks of the pipeline, in integer microseconds."""

from __future__ import annotations

import time


def monotonic_us() -> int:
    """Never goes back; only differences mean anything."""
    return time.monotonic_ns() // 1000


def wall_us() -> int:
    """Since 1970, UTC."""
    return time.time_ns() // 1000
