"""What every decoder of generated answers shares: a body in pieces, read as events or as one value, and one end.

After a `Failure`, or once the answer is over, nothing more comes out. A body that breaks a bound is no answer, and one
that ends before its clean end is `truncated`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import msgspec

from backends.core.events import Event, Failure
from backends.parsing import failures, second_look
from backends.parsing.halves import Halves, holds_half
from backends.parsing.sse import SseEvent

#: What JSON readers raise.
UNREADABLE = (ValueError, RecursionError)
_read_any = msgspec.json.Decoder().decode


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
        #: Puts halves of characters together, once there are any.
        self._halves: Halves | None = None

    @property
    def ended(self) -> bool:
        """Whether the answer is over: nothing that may still come adds an event."""
        return self._ended

    def feed(self, data: bytes, /) -> list[Event]:
        """Events completed by these bytes."""
        out: list[Event] = []
        if self._ended:
            return out
        framing = self._framing
        for event in framing.feed(data):
            self._event(event, out)
            if self._ended:
                break
        else:
            if framing.broken:
                self._fail(failures.protocol(framing.broken), out)
        return out if self._halves is None else self._halves.mend(out)

    def close(self) -> list[Event]:
        """The body has ended."""
        out: list[Event] = []
        if not self._ended:
            self._close(out)
        return out if self._halves is None else self._halves.mend(out)

    def _close(self, out: list[Event]) -> None:
        if self._framing.is_body:
            self._whole(self._framing.take_body(), out)
            return
        cut = self._framing.close()
        for event in cut:
            if not self._ended:
                self._event(event, out, cut=True)
        if not self._ended and self._framing.broken:
            self._fail(failures.protocol(self._framing.broken), out)
        if not self._ended:
            self._stopped(out, inside=bool(cut))

    def _values(self, data: bytes) -> Any:
        """JSON that was refused, read more leniently: see `second_look.values`. Halves of characters are joined from here on.

        Raises:
            ValueError, RecursionError: it is no JSON even so.
        """
        value = second_look.values(data)
        if self._halves is None and holds_half(second_look.encoded(value)):
            self._halves = Halves()
        return value

    def _apart(self, event: SseEvent, out: list[Event], *, cut: bool) -> bool:
        """Take the lines of an event that cannot be read as one: a server that writes one newline instead of two.

        False: they are no events either.
        """
        lines = [line for line in event.data.split(b"\n") if line.strip()]
        whole = lines[:-1] if cut else lines
        if len(lines) < 2 or not all(_is_event(line) for line in whole):
            return False
        for number, line in enumerate(lines, 1):
            if not self._ended:
                self._event(SseEvent(line), out, cut=cut and number == len(lines))
        return True

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


def _is_event(line: bytes) -> bool:
    try:
        return line.strip().startswith(b"[DONE]") or isinstance(_read_any(line), dict)
    except UNREADABLE:
        return False
