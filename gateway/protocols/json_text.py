"""One string as JSON, fit for one SSE `data:` line whatever it contains.

JSON escapes CR, LF and the other controls. NEL, LINE SEPARATOR and PARAGRAPH SEPARATOR are legal in JSON and in SSE,
but clients that split with `str.splitlines` (httpx `iter_lines`) would cut there, so they are escaped too.
"""

from __future__ import annotations

import msgspec

_encode = msgspec.json.Encoder().encode
_SEPARATORS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def quoted(text: str) -> bytes:
    """The JSON string of a text. A lone surrogate, which UTF-8 cannot carry, becomes a question mark."""
    try:
        raw = _encode(text)
    except UnicodeEncodeError:
        raw = _encode(text.encode("utf-8", "replace").decode())
    if not text.isascii():
        for found, escaped in _SEPARATORS:
            if found in raw:
                raw = raw.replace(found, escaped)
    return raw
