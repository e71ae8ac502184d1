"""What the supervisor and a forked child say to each other over a socket pair; its end of file means: the other is gone.

A frame is a 4-byte big-endian length, one kind byte and a payload (the framing of `gateway.gate.messages`).
"""

from __future__ import annotations

from gateway.gate.messages import Frames

#: To a child: a configuration; its file is refused (why); end in good order; end soon.
CONFIG, REFUSED, DRAIN, HURRY = b"C", b"F", b"D", b"H"
#: To the supervisor: it serves.
READY = b"R"


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
