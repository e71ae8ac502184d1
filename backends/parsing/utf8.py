"""Text out of bytes that arrive in pieces, never cut inside a character, and surrogates made harmless.

A Python string may hold a lone surrogate, which no UTF-8 encoder takes; JSON can smuggle one in as `\\ud83d`.
"""

from __future__ import annotations

import codecs
import re

_LONE = re.compile("[\ud800-\udfff]")


class Utf8Decoder:
    """Bytes in, text out; bytes that are not UTF-8 become U+FFFD; single use; any byte split gives the same text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes, /) -> str:
        """The characters completed by these bytes; the start of an unfinished one is kept back."""
        return self._decoder.decode(data)

    def close(self) -> str:
        """The end: U+FFFD when a character was left unfinished."""
        return self._decoder.decode(b"", True)


def scrub(text: str) -> str:
    """The text with every lone surrogate replaced by U+FFFD, so that it can be encoded."""
    return text if text.isascii() else _LONE.sub("\ufffd", text)
