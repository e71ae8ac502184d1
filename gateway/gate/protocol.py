"""The gate as the pipeline sees it: slots of deployments that bound their requests in flight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class GatedDeployment(msgspec.Struct, frozen=True, gc=False):
    """A deployment with a bound."""

    id: str
    max_in_flight: int


class Slot(Protocol):
    """One granted slot."""

    deployment: str

    def release(self) -> None:
        """Give it back; synchronous, a second call does nothing."""


class Gate(Protocol):
    """Counts in-flight requests per deployment and queues fairly when all are taken."""

    async def acquire(
        self, request_id: str, fairness_key: str, deployments: Sequence[GatedDeployment], max_wait_s: float
    ) -> Slot:
        """The first slot that frees in the set. Cancelling the awaiting task takes the request out of the queue.

        Raises:
            Overloaded: the queue is full or `max_wait_s` went by; with `retry_after_ms`.
        """
