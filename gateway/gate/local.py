"""The gate of a gateway with one worker: the same queue, in the same process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence

from gateway.gate.protocol import GatedDeployment
from gateway.gate.queue import Decision, FairQueue, Granted, PoolStats
from gateway.gate.waiting import Asked, GrantedSlot

_OWNER = 0


class LocalGate:
    """A `Gate` without a process of its own. Belongs to one event loop.

    Args:
        max_waiting: length of the queue, all deployments together.
    """

    def __init__(self, max_waiting: int = 1024) -> None:
        self._queue = FairQueue(max_waiting)
        self._limits: dict[str, int] = {}
        self._serials = itertools.count(1)
        self._asked: dict[int, Asked] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(
        self,
        request_id: str,  # noqa: ARG002  # the interface's; the gate process logs it, here nothing is logged
        fairness_key: str,
        deployments: Sequence[GatedDeployment],
        max_wait_s: float,
        weight: float = 1.0,
        priority: int = 0,
    ) -> GrantedSlot:
        """The first slot that frees in the set. Cancelling the awaiting task takes the request out of the queue.

        Raises:
            Overloaded: the queue is full or `max_wait_s` went by; with `retry_after_ms`.
        """
        loop = asyncio.get_running_loop()
        now_us = self._now_us()
        for deployment in deployments:
            if self._limits.get(deployment.id) != deployment.max_in_flight:
                self._limits[deployment.id] = deployment.max_in_flight
                self._tell(self._queue.set_limit(deployment.id, deployment.max_in_flight, now_us))
        serial = next(self._serials)
        asked = Asked(serial, fairness_key, weight, priority, deployments, loop.time() + max_wait_s, loop.create_future())
        self._asked[serial] = asked
        names = [d.id for d in deployments]
        self._tell(self._queue.acquire((_OWNER, serial), fairness_key, weight, priority, names, now_us, int(max_wait_s * 1e6)))
        try:
            deployment_id = await asked.answer
        except asyncio.CancelledError:
            self._tell(self._queue.cancel((_OWNER, serial), self._now_us()))
            raise
        finally:
            self._asked.pop(serial, None)
        return GrantedSlot(deployment_id, serial, self._release)

    def stop(self) -> None:
        """See `FairQueue.stop`."""
        self._queue.stop()

    def stats(self) -> dict[str, PoolStats]:
        """Every deployment that was ever asked for."""
        return self._queue.stats()

    def _release(self, serial: int) -> None:
        self._tell(self._queue.release((_OWNER, serial), self._now_us()))

    def _tell(self, decisions: Iterable[Decision]) -> None:
        """Answer those who were decided about, and wake for the next deadline."""
        for decision in decisions:
            asked = self._asked.get(decision.ticket[1])
            if asked is None:
                continue
            if isinstance(decision, Granted):
                asked.grant(decision.deployment)
            else:
                asked.refuse(decision.reason, decision.retry_after_ms)
        if self._timer is None and (deadline_us := self._queue.next_deadline_us()) is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline_us / 1e6, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._tell(self._queue.expire(self._now_us() + 1))

    @staticmethod
    def _now_us() -> int:
        return int(asyncio.get_running_loop().time() * 1e6)
