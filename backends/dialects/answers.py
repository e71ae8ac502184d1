"""What every decoder of generated answers shares: a body in pieces, read as events or as one value, and one end.

After a `Failure`, or once the answer is over, nothing more comes out. A body that breaks a bound is no answer, and one
that ends before its clean end is `truncated`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from backends.core.events import Event, Failure
from backends.parsing import failures
from backends.parsing.sse import SseEvent

#: What JSON readers raise.
UNREADABLE = (ValueError, RecursionError)


class Framing(Protocol):
    """A body's bytes to its events; see `backends.parsing.framing`."""

    is_body: bool | None
    broken: str

    def feed(self, data: bytes, /) -> list[SseEvent]:
        """Events completed by these bytes."""

    def close(self) -> list[SseEvent]:
        """The events of an unfinished end."""

    def take_body(self) -> bytes:
        """The one value that the body was, once."""


class AnswerDecoder(ABC):
    """A `Decoder` but for `_event` and `_whole`."""

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        #: `Started` is out; content is out; the answer is over.
        self._started = self._begun = self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the answer is over: nothing that may still come adds an event."""
        return self._ended

    def feed(self, data: bytes, /) -> list[Event]:
        """Events completed by these bytes."""
        out: list[Event] = []
        if self._ended:
            return out
        for event in self._framing.feed(data):
            self._event(event, out)
            if self._ended:
                return out
        if self._framing.broken:
            self._fail(failures.protocol(self._framing.broken), out)
        return out

    def close(self) -> list[Event]:
        """The body has ended."""
        out: list[Event] = []
        if self._ended:
            return out
        if self._framing.is_body:
            self._whole(self._framing.take_body(), out)
            return out
        cut = self._framing.close()
        for event in cut:
            if not self._ended:
                self._event(event, out, cut=True)
        if not self._ended and self._framing.broken:
            self._fail(failures.protocol(self._framing.broken), out)
        if not self._ended:
            self._stopped(out, inside=bool(cut))
        return out

    @abstractmethod
    def _event(self, event: SseEvent, out: list[Event], *, cut: bool = False) -> None:
        """Take one event. `cut`: the body ended in it, so that it may be a part of one."""

    @abstractmethod
    def _whole(self, body: bytes, out: list[Event]) -> None:
        """Take a whole answer, which ends it."""

    def _stopped(self, out: list[Event], *, inside: bool) -> None:
        """The body has ended and the answer has not. `inside`: within an event."""
        del inside
        self._fail(failures.truncated("the body ended before the stream's terminator"), out)

    def _error(self, data: bytes, out: list[Event]) -> None:
        """End with the error that the data tells in some envelope."""
        self._fail(failures.event(failures.stream_failure(data, begun=self._begun)), out)

    def _fail(self, failure: Failure, out: list[Event]) -> None:
        self._ended = True
        out.append(failure)
