"""Identifiers. Randomness and clock are arguments, so that the callers stay testable."""

from __future__ import annotations


def uuid7(now_ms: int, random_80: int) -> str:
    """A UUID version 7 (RFC 9562 §5.7) from milliseconds since 1970 and 80 random bits.

    Args:
        now_ms: Unix time in milliseconds, 48 bits.
        random_80: any non-negative integer below 2**80; the version and the variant take the place of six of its bits.
    """
    number = now_ms << 80 & _TIME | random_80 & _RANDOM | _VERSION_AND_VARIANT
    text = number.to_bytes(16, "big").hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_VERSION_AND_VARIANT = 7 << 76 | 2 << 62
_TIME = (1 << 128) - (1 << 80)
_RANDOM = (1 << 80) - 1 & ~(15 << 76) & ~(3 << 62)
