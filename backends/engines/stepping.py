"""What engines have in common that compute in their own steps, on the thread that calls them."""

from __future__ import annotations

from backends.core.request import Job
from backends.engines.journal import Journal


class SteppingEngine:
    """The part of the `Engine` contract that is the same for all of them."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def submit(self, job: Job, id: str) -> None:
        """Take a job; as `Engine`."""
        try:
            self._take(job, id)
        except Exception as error:
            self._journal.job("refuse", id, error=type(error).__name__)
            raise
        self._journal.job("submit", id)

    def _take(self, job: Job, id: str) -> None:
        """Take a job or raise; as `Engine.submit`."""
        raise NotImplementedError

    def hurry(self) -> None:
        """Nothing to do where steps are short."""

    def nudge(self) -> None:
        """Nothing to do: a step never only waits."""

    def waiting_s(self) -> float:
        """It computes in its steps."""
        return 0.0
