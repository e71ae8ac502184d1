"""What the supervisor and a forked child say to each other over a socket pair; its end of file means: the other is gone.

A frame is a 4-byte big-endian length, one kind byte and a payload (the framing of `gateway.gate.messages`).
"""

from __future__ import annotations

from gateway.gate.messages import Frames

#: To a child: a configuration; its file is refused (why); end in good order; end soon; the engines' states (JSON).
CONFIG, REFUSED, DRAIN, HURRY, ENGINES = b"C", b"F", b"D", b"H", b"E"
#: To the supervisor: it serves; an engine is wanted (its name); one is to be unloaded (JSON).
READY, WANT, UNLOAD = b"R", b"W", b"U"


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One message."""
    return (len(payload) + 1).to_bytes(4, "big") + kind + payload


class Messages:
    """Bytes to (kind, payload), any split."""

    def __init__(self) -> None:
        self._frames = Frames()

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The messages completed by these bytes."""
        return [(body[:1], body[1:]) for body in self._frames.feed(data)]
