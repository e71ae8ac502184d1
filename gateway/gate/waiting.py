"""What a worker's side of the gate keeps: one future per request that waits, one slot per request that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from backends.core.errors import Overloaded
from gateway.gate.protocol import GatedDeployment


class GrantedSlot:
    """A slot of a deployment, held until `release`."""

    __slots__ = ("_give_back", "_serial", "deployment")

    def __init__(self, deployment: str, serial: int, give_back: Callable[[int], None]) -> None:
        self.deployment = deployment
        self._serial = serial
        self._give_back: Callable[[int], None] | None = give_back

    def release(self) -> None:
        """Give it back; synchronous, a second call does nothing."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(self._serial)


class Asked:
    """One request's question, kept until it is answered; asked again when the gate was restarted."""

    __slots__ = ("answer", "deadline", "deployments", "key", "priority", "serial", "weight")

    def __init__(
        self,
        serial: int,
        key: str,
        weight: float,
        priority: int,
        deployments: Sequence[GatedDeployment],
        deadline: float,
        answer: asyncio.Future[str],
    ) -> None:
        self.serial, self.key, self.weight, self.priority = serial, key, weight, priority
        self.deployments, self.deadline, self.answer = deployments, deadline, answer

    def grant(self, deployment: str) -> None:
        """The answer is a slot of this deployment."""
        if not self.answer.done():
            self.answer.set_result(deployment)

    def refuse(self, reason: str, retry_after_ms: int) -> None:
        """The answer is no: `full` or `timeout`."""
        if not self.answer.done():
            self.answer.set_exception(overloaded(reason, retry_after_ms))


def overloaded(reason: str, retry_after_ms: int) -> Overloaded:
    """The client's view of a refusal."""
    if reason == "full":
        return Overloaded("Too many requests are waiting for this model.", retry_after_ms=retry_after_ms)
    return Overloaded("No capacity for this model became free in time.", retry_after_ms=retry_after_ms)
