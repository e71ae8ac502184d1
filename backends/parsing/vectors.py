"""Embedding vectors in the one form that events carry: float32, little-endian, packed."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Sequence


def pack(values: Sequence[float]) -> bytes:
    """Pack floats.

    Raises:
        ValueError: empty, not numbers, or not finite as float32.
    """
    try:
        packed = struct.pack(f"<{len(values)}f", *values)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"not a vector of float32: {error}") from None
    return _checked(packed)


def unpack_base64(text: str) -> bytes:
    """Decode base64 of packed float32, as OpenAI's `encoding_format: base64` has it.

    Raises:
        ValueError: not base64, empty, of a wrong length, or not finite.
    """
    try:
        packed = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None
    return _checked(packed)


def _checked(packed: bytes) -> bytes:
    if not packed or len(packed) % 4:
        raise ValueError(f"{len(packed)} bytes are no vector of float32")
    if not math.isfinite(sum(struct.unpack(f"<{len(packed) // 4}f", packed))):
        raise ValueError("a vector that is not finite")
    return packed
