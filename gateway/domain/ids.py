"""Identifiers. Randomness and clock are arguments, so that the callers stay testable."""

from __future__ import annotations


def uuid7(now_ms: int, random_80: int) -> str:
    """A UUID version 7 (RFC 9562 §5.7) from milliseconds since 1970 and at least 74 random bits.

    Args:
        now_ms: Unix time in milliseconds, 48 bits.
        random_80: any non-negative integer below 2**80; 74 of its bits are used.
    """
    time = now_ms & 0xFFFFFFFFFFFF
    return (
        f"{time >> 16:08x}-{time & 0xFFFF:04x}-7{random_80 >> 62 & 0xFFF:03x}"
        f"-{0x8000 | random_80 >> 48 & 0x3FFF:04x}-{random_80 & 0xFFFFFFFFFFFF:012x}"
    )
