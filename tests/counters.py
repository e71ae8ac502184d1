"""What a test reads of the limits' counters in Redis."""

from __future__ import annotations

import struct


def rate_sum(stored: bytes | None) -> int:
    """The running sum of a stored rate; 0 when it is not there."""
    return int(struct.unpack_from("<d", stored)[0]) if stored else 0
