"""The half that engines share whose model computes elsewhere (an event loop, threads): jobs in, their events by a mailbox.

`submit` tokenises and checks on the engine thread, so that a refusal is an answer to it; from then on the job is known here
by how far it has come, until its last event passed through `step`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from backends.core.errors import BadRequest, Overloaded
from backends.core.events import Event, Failure
from backends.core.request import Job
from backends.core.usage import Usage
from backends.engines.journal import Journal
from backends.engines.launch import EngineLaunch
from backends.engines.mailbox import Mailbox

#: Milliseconds told to a client whom a full queue refuses: between these, and what the last jobs took.
RETRY_MS = (1_000, 30_000)


class Taken:
    """A job that is not over. `choices`: places that it takes; `start` and `leave` are called once each, the first at once.
    `made`: what it has come to so far, of a generation.
    """

    def __init__(
        self, choices: int, start: Callable[[], None], leave: Callable[[], None], made: Callable[[], Usage] | None = None
    ) -> None:
        self.choices = choices
        self.made = made
        self.start = start
        self.leave = leave
        self.began = time.monotonic()
        self.spoke = False


class MailedEngine(ABC):
    """The `Engine` contract but for `describe` and `close`."""

    def __init__(self, launch: EngineLaunch, journal: Journal) -> None:
        self._slots = launch.slots
        self._queue = launch.queue
        self._at_once = launch.slots
        self._journal = journal
        self._mailbox = Mailbox()
        self._jobs: dict[str, Taken] = {}
        self._job_s = 1.0

    @abstractmethod
    def _take(self, job: Job, id: str) -> Taken:
        """What a job is to be. Raises what `Engine.submit` may."""

    def submit(self, job: Job, id: str) -> None:
        """Take a job; as `Engine`."""
        try:
            taken = self._take(job, id)
        except Exception as error:
            self._journal.job("refuse", id, error=type(error).__name__)
            raise
        self._jobs[id] = taken
        self._mailbox.expect(True)
        self._journal.job("submit", id)
        taken.start()

    def cancel(self, id: str) -> Usage | None:
        """Forget a job; as `Engine`."""
        was = self._phase(id)
        taken = self._jobs.pop(id, None)
        self._mailbox.expect(bool(self._jobs))
        if taken is None:
            return None
        taken.leave()
        self._journal.job("cancel", id, was=was)
        made = taken.made() if taken.made is not None else None
        return made if made is not None and made.output_tokens else None

    def hurry(self) -> None:
        """A step never lasts: a nudge ends it."""
        self.nudge()

    def nudge(self) -> None:
        """Have `step` return."""
        self._mailbox.nudge()

    def waiting_s(self) -> float:
        """Seconds without an event while jobs are open."""
        return self._mailbox.silent_s()

    def busy(self) -> bool:
        """Always: `step` waits for events, for commands, and for the end of what computes."""
        return True

    def step(self) -> Sequence[tuple[str, Sequence[Event]]]:
        """What came meanwhile; waits for something."""
        letters = self._mailbox.take()
        for id, events in letters:
            taken = self._jobs.get(id)
            if taken is None:
                continue
            taken.spoke = True
            if isinstance(events[-1], Usage | Failure):
                del self._jobs[id]
                self._job_s += 0.2 * (time.monotonic() - taken.began - self._job_s)
                self._journal.job("finish" if isinstance(events[-1], Usage) else "fail", id)
        self._mailbox.expect(bool(self._jobs))
        return letters

    def _check_room(self, choices: int) -> None:
        """Raises BadRequest or Overloaded: so many more do not fit, ever or now."""
        most = self._slots + self._queue
        if choices > most:
            raise BadRequest(f"At most {most} choices fit this model's queue.", param="n")
        if self._open + choices > most:
            low, high = RETRY_MS
            retry = max(low, min(high, int(1000 * self._job_s)))
            raise Overloaded("The model's queue is full.", retry_after_ms=retry)

    @property
    def _open(self) -> int:
        return sum(taken.choices for taken in self._jobs.values())

    def _load(self) -> dict[str, object]:
        """How many choices run and wait, for `describe`."""
        return {
            "slots": self._slots,
            "running": min(self._open, self._at_once),
            "queued": max(0, self._open - self._at_once),
        }

    def _phase(self, id: str) -> str:
        """`queued`, `prefill` or `decode`, as far as it can be told from here: what computes keeps its plan to itself."""
        before = 0
        for other, taken in self._jobs.items():
            if other == id:
                return "decode" if taken.spoke else "prefill" if before < self._at_once else "queued"
            before += taken.choices
        return ""
