"""The one attempt loop: try deployments in order until one says something; after that the choice is final."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

import msgspec

from backends.core.contracts import Batches
from backends.core.errors import BackendError, GatewayError, NoDeployment, Overloaded, UpstreamTimeout, UpstreamTruncated
from backends.core.events import Event, Failure, Started
from backends.core.request import Job
from gateway.gate.protocol import Gate, GatedDeployment, Slot
from gateway.pipeline.clock import monotonic_us
from gateway.pipeline.deadline import Deadline
from gateway.pipeline.injected import blamed
from gateway.pipeline.tally import AttemptRecord, Tally
from gateway.routing.catalog import Place


class Attempts(msgspec.Struct, eq=False):
    """The batches of the first deployment that answers: `first`, then `following`. An async context manager, single use.

    Entering tries deployments until the first batch with content; leaving releases the gate's slot and closes the
    backend's stream by synchronous effects only. `task` is the one that does so.
    """

    _job: Job
    _tiers: Sequence[Sequence[Place]]
    _gate: Gate
    _tally: Tally
    _task: asyncio.Task[object]
    _max_wait_s: float
    first: Sequence[Event] = ()
    _stream: Batches | None = None
    _opened: AbstractAsyncContextManager[Batches] | None = None
    _slot: Slot | None = None
    _place: Place | None = None

    async def __aenter__(self) -> Attempts:
        """Find the deployment that answers.

        Raises:
            GatewayError: the last attempt's error, when none answered.
        """
        last: GatewayError | None = None
        for tier in self._tiers:
            left = list(tier)
            while left:
                place = left[0]
                try:
                    if place.deployment.max_in_flight is not None:
                        place = await self._take(left)
                except Overloaded as error:
                    last = error
                    left = [place for place in left if place.deployment.max_in_flight is None]
                    continue
                left.remove(place)
                failure = await self._attempt(place)
                if failure is None:
                    return self
                last = failure
                if not last.retriable:
                    raise last
        raise last or NoDeployment("No deployment of this model is available.")

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Coroutine[Any, Any, None]:
        """Leave; an unfinished upstream answer is cut at once."""
        return self._leave(kind, error, trace)

    def following(self) -> Awaitable[Sequence[Event] | None]:
        """The next batch, None after the last."""
        assert self._stream is not None
        return anext(self._stream, None)

    async def _take(self, left: Sequence[Place]) -> Place:
        """The place to try next where the first one is gated: whichever gated one has a slot first.

        Nobody waits for a slot while the tier has a place without a bound.
        """
        gated = [
            GatedDeployment(place.deployment.id, place.deployment.max_in_flight)
            for place in left
            if place.deployment.max_in_flight is not None
        ]
        principal = self._tally.principal
        assert principal is not None
        max_wait_s = self._max_wait_s if len(gated) == len(left) else 0.0
        began = monotonic_us()
        try:
            self._slot = await self._gate.acquire(self._tally.id, principal.key_id, gated, max_wait_s)
        finally:
            self._tally.queue_us += monotonic_us() - began
        return next(place for place in left if place.deployment.id == self._slot.deployment)

    async def _attempt(self, place: Place) -> GatewayError | None:
        """One try; None when the first batch is held. A failed try has left no trace but its record."""
        tally = self._tally
        began_us = monotonic_us()
        record = AttemptRecord(place.deployment, began_us, began_us)
        tally.attempts.append(record)
        tally.flight.tries(len(tally.attempts), place.deployment.id.encode())
        place.busy += 1
        self._place = place
        failure: GatewayError
        try:
            with Deadline(place.deployment.timeouts.first_event_s, self._task):
                job = msgspec.structs.replace(self._job, model=place.deployment.model)
                self._opened = place.backend.open(job, tally.leaving)
                self._stream = await self._opened.__aenter__()
                self.first = await _peek(self._stream, record)
        except TimeoutError:
            failure = UpstreamTimeout("The model did not begin to answer in time.", detail=place.deployment.id)
        except GatewayError as error:  # a local engine refuses in its own words: BadRequest, Overloaded
            failure = blamed(error, self._tally.imposed_cap, self._tally.input_estimate)
        except BaseException as error:
            await self._leave(type(error), error, None)
            raise
        else:
            place.record(None, began_us)  # of a success the instant means nothing
            return None
        if tally.leaving.gone:  # it ended because it was asked to: no fault of the deployment's, and nothing to try again
            await self._leave(type(failure), failure, None)
            raise ConnectionResetError("the client left")
        record.error = failure
        place.record(failure, monotonic_us())
        await self._leave(type(failure), failure, None)
        return failure

    async def _leave(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        place, slot, opened, stream = self._place, self._slot, self._opened, self._stream
        self._place = self._slot = self._opened = self._stream = None
        if place is not None:
            place.busy -= 1
            self._tally.attempts[-1].ended_us = monotonic_us()
        try:
            if opened is not None and stream is not None:
                await opened.__aexit__(kind, error, trace)
        finally:
            if slot is not None:
                slot.release()


#: What no server says of itself: its answer broke off, or was none.
_BROKEN = frozenset({"truncated", "protocol", "timeout"})


async def _peek(stream: Batches, record: AttemptRecord) -> Sequence[Event]:
    """Hold events until one carries content: a polite `Started` is no reason to give up the other deployments."""
    held: list[Event] = []
    async for batch in stream:
        held.extend(batch)
        for event in batch:
            kind = type(event)
            if kind is Failure:
                record.begun = len(held) > 1 and event.kind not in _BROKEN  # type: ignore[union-attr]
                raise BackendError.of(event)  # type: ignore[arg-type]  # nothing was sent yet: free to fall back
            if kind is not Started:
                return held
    raise UpstreamTruncated("The model's answer was empty.")
