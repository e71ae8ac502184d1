"""Identifiers. Randomness and clock are arguments, so that the callers stay testable."""

from __future__ import annotations


def uuid7(now_ms: int, random_80: int) -> str:
    """A UUID version 7 (RFC 9562 §5.7) from milliseconds since 1970 and at least 74 random bits.

    Args:
        now_ms: Unix time in milliseconds, 48 bits.
        random_80: any non-negative integer below 2**80; 74 of its bits are used.
    """
    value = (now_ms & 0xFFFFFFFFFFFF) << 80
    value |= 0x7 << 76 | ((random_80 >> 62) & 0xFFF) << 64
    value |= 0b10 << 62 | (random_80 & 0x3FFFFFFFFFFFFFFF)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
