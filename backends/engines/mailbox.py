"""Events of an engine that computes elsewhere (an event loop, a process of its own), on their way to `Engine.step`."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from typing import Final

from backends.core.events import Event

#: Seconds that `take` waits at most: shorter than any watchdog's patience with a step.
WAIT_S: Final = 0.5


class Mailbox:
    """Any thread puts; the engine thread takes, and waits only until there is something or it is nudged."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard = clock()
        self._owed = False
        self._letters: queue.SimpleQueue[tuple[str, Sequence[Event]] | BaseException | None] = queue.SimpleQueue()

    def put(self, id: str, events: Sequence[Event]) -> None:
        """Events of a job."""
        if events:
            self._letters.put((id, events))

    def alive(self) -> None:
        """Work goes on that has nothing to tell yet."""
        self._letters.put(("", ()))

    def fail(self, error: BaseException) -> None:
        """The engine is broken: `take` raises this."""
        self._letters.put(error)

    def nudge(self) -> None:
        """Have `take` return."""
        self._letters.put(None)

    def expect(self, owed: bool) -> None:
        """Whether letters are owed from now on: while they are, `silent_s` runs."""
        if owed and not self._owed:
            self._heard = self._clock()
        self._owed = owed

    def silent_s(self) -> float:
        """Seconds without a letter while some are owed; from any thread."""
        return self._clock() - self._heard if self._owed else 0.0

    def take(self, wait_s: float = WAIT_S) -> list[tuple[str, Sequence[Event]]]:
        """All that came, by job in order of arrival, events of one job as one; waits for the first, but not for long.

        Raises:
            BaseException: what was given to `fail`.
        """
        taken: dict[str, list[Event]] = {}
        try:
            letter = self._letters.get(timeout=wait_s)
        except queue.Empty:
            return []
        while True:
            if isinstance(letter, BaseException):
                raise letter
            if letter is not None:
                self._heard = self._clock()
                taken.setdefault(letter[0], []).extend(letter[1])
            try:
                letter = self._letters.get_nowait()
            except queue.Empty:
                return [(id, events) for id, events in taken.items() if events]
