"""Events of an engine that computes elsewhere (an event loop, a process of its own), on their way to `Engine.step`."""

from __future__ import annotations

import queue
from collections.abc import Sequence

from backends.core.events import Event


class Mailbox:
    """Any thread puts; the engine thread takes, and waits only until there is something or it is nudged."""

    def __init__(self) -> None:
        self._letters: queue.SimpleQueue[tuple[str, Sequence[Event]] | BaseException | None] = queue.SimpleQueue()

    def put(self, id: str, events: Sequence[Event]) -> None:
        """Events of a job."""
        if events:
            self._letters.put((id, events))

    def fail(self, error: BaseException) -> None:
        """The engine is broken: `take` raises this."""
        self._letters.put(error)

    def nudge(self) -> None:
        """Have `take` return."""
        self._letters.put(None)

    def take(self) -> list[tuple[str, Sequence[Event]]]:
        """All that came, by job in order of arrival, events of one job as one; waits for the first.

        Raises:
            BaseException: what was given to `fail`.
        """
        taken: dict[str, list[Event]] = {}
        letter = self._letters.get()
        while True:
            if isinstance(letter, BaseException):
                raise letter
            if letter is not None:
                taken.setdefault(letter[0], []).extend(letter[1])
            try:
                letter = self._letters.get_nowait()
            except queue.Empty:
                return list(taken.items())
