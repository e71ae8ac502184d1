"""Answers that are one JSON value, whoever sends them: gathered, then read at the end."""

from __future__ import annotations

from collections.abc import Callable

from backends.core.events import Event
from backends.parsing import failures
from backends.parsing.framing import MAX_BODY_BYTES


class WholeDecoder:
    """A body that `read` understands. Single use.

    Args:
        what: the answer in a word, for the log.
        read: the body's events. Raises ValueError or RecursionError for anything else; an error in one of the usual
            envelopes is told as that.
    """

    def __init__(self, what: str, read: Callable[[bytes], list[Event]]) -> None:
        self._what = what
        self._read = read
        self._body = bytearray()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the answer is over: nothing that may still come adds an event."""
        return self._ended

    def feed(self, data: bytes, /) -> list[Event]:
        """Nothing yet: the body is one JSON value."""
        if self._ended:
            return []
        self._body += data
        if len(self._body) <= MAX_BODY_BYTES:
            return []
        self._ended = True
        self._body.clear()
        return [failures.protocol(f"a body of more than {MAX_BODY_BYTES} bytes")]

    def close(self) -> list[Event]:
        """All of it."""
        if self._ended:
            return []
        self._ended = True
        body = bytes(self._body)
        self._body.clear()
        try:
            return self._read(body)
        except (ValueError, RecursionError) as error:
            said = failures.envelope(body)
            if said.message and body.lstrip()[:1] == b"{":
                return [failures.event(failures.told(said, begun=False))]
            return [failures.protocol(f"no {self._what} ({error})", body)]
