"""In-flight counts per deployment and the weighted fair queue in front of them; pure, the clock is an argument.

Fairness is start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996) with tags given at the grant instead of at the
arrival, so that a key which cancels what it queued is charged nothing. Each deployment has its own virtual clock:
being served by a busy deployment does not cost a key its turn at a quiet one. Three departures, on purpose:

- the clock also advances by 1 / (weights waiting) at every grant, so that an endless row of new keys cannot starve one
  that was served before them;
- tags live only while somebody waits: service that delayed nobody is never held against a key;
- when the queue is full, the newest waiter of the key that waits most makes room, so that a full queue is no way
  around fairness.

A lower `priority` number is served first, always; a lower band starves at most until its waiters' deadlines.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import msgspec

#: (owner, serial): the worker and its own number for the request.
Ticket = tuple[int, int]

#: What a service time is taken for until one was seen.
FIRST_GUESS_US = 1_000_000
MIN_RETRY_MS, MAX_RETRY_MS = 1_000, 60_000


class Granted(msgspec.Struct, frozen=True, gc=False):
    """The ticket holds a slot of `deployment` from now on."""

    ticket: Ticket
    deployment: str
    waited_us: int


class Refused(msgspec.Struct, frozen=True, gc=False):
    """The ticket is out: the queue is `full`, or it waited too long (`timeout`)."""

    ticket: Ticket
    reason: Literal["full", "timeout"]
    retry_after_ms: int


Decision = Granted | Refused


class PoolStats(msgspec.Struct, frozen=True):
    """One deployment at this instant; `waiting` counts a ticket in every deployment that it would take."""

    limit: int
    in_flight: int
    waiting: int


class _Waiter:
    """A ticket in the queue."""

    __slots__ = ("deadline_us", "lane", "seq", "since_us", "ticket")

    def __init__(self, ticket: Ticket, lane: _Lane, seq: int, since_us: int, deadline_us: int) -> None:
        self.ticket, self.lane, self.seq = ticket, lane, seq
        self.since_us, self.deadline_us = since_us, deadline_us


class _Lane:
    """First come, first served: the waiters of one key that would take the same deployments, in one band."""

    __slots__ = ("deployments", "key", "listed", "priority", "waiting", "weight")

    def __init__(self, key: str, weight: float, priority: int, deployments: tuple[str, ...]) -> None:
        self.key, self.weight, self.priority, self.deployments = key, weight, priority, deployments
        self.waiting: OrderedDict[Ticket, _Waiter] = OrderedDict()
        self.listed: set[str] = set()

    def head_seq(self) -> int:
        return next(iter(self.waiting.values())).seq


class _Pool:
    """A deployment: its bound, its virtual clock and the lanes that wait for it.

    `heap` holds (priority, start tag, head seq, lane); these only grow while a lane is listed, so an entry that is
    out of date sorts too early and is mended when it comes to the top. `starts` are the keys' start tags, `lanes` how
    many lanes of a key wait. `pending` is what the last grant moves the clock by when the next one comes: until then
    a newcomer gets the start tag of what is in service, and so goes before whoever was served last.
    """

    __slots__ = ("clock", "heap", "id", "in_flight", "lanes", "limit", "pending", "service_us", "starts", "waiting", "weights")

    def __init__(self, id: str, limit: int) -> None:
        self.id, self.limit = id, limit
        self.in_flight = self.waiting = 0
        self.clock = self.pending = self.weights = 0.0
        self.starts: dict[str, float] = {}
        self.lanes: dict[str, int] = {}
        self.heap: list[tuple[int, float, int, _Lane]] = []
        self.service_us = float(FIRST_GUESS_US)

    def list_lane(self, lane: _Lane) -> None:
        """A lane got its first waiter: it has a place in the order, from now on and no earlier."""
        self.weights += lane.weight
        if lane.key not in self.lanes:
            self.starts[lane.key] = max(self.clock, self.starts.get(lane.key, 0.0))
        self.lanes[lane.key] = self.lanes.get(lane.key, 0) + 1
        if self.id not in lane.listed:
            lane.listed.add(self.id)
            heapq.heappush(self.heap, (lane.priority, self.starts[lane.key], lane.head_seq(), lane))

    def unlist_lane(self, lane: _Lane) -> None:
        """A lane lost its last waiter; its heap entry goes when it comes to the top."""
        self.weights -= lane.weight
        self.lanes[lane.key] -= 1
        if not self.lanes[lane.key]:
            del self.lanes[lane.key]

    def first(self) -> _Lane:
        """The lane whose turn it is; somebody must be waiting."""
        while True:
            priority, start, seq, lane = self.heap[0]
            if not lane.waiting:
                heapq.heappop(self.heap)
                lane.listed.discard(self.id)
                continue
            current = (priority, self.starts[lane.key], lane.head_seq(), lane)
            if current[1] == start and current[2] == seq:
                return lane
            heapq.heapreplace(self.heap, current)

    def charge(self, lane: _Lane) -> None:
        """One unit of service for a lane's key."""
        start = self.starts[lane.key]
        self.clock = max(self.clock + self.pending, start)
        self.pending = 1.0 / max(self.weights, lane.weight)
        self.starts[lane.key] = start + 1.0 / lane.weight

    def tidy(self) -> None:
        """Drop what nobody waits behind."""
        for _, _, _, lane in self.heap:
            if not lane.waiting:
                lane.listed.discard(self.id)
        self.heap = [entry for entry in self.heap if entry[3].waiting]
        heapq.heapify(self.heap)
        self.starts = {k: s for k, s in self.starts.items() if k in self.lanes or s > self.clock}

    def forget(self) -> None:
        """Nobody waits: the past is no longer held against anyone."""
        for _, _, _, lane in self.heap:
            lane.listed.discard(self.id)
        self.heap.clear()
        self.starts.clear()
        self.lanes.clear()
        self.clock = self.pending = self.weights = 0.0


class FairQueue:
    """Slots of all deployments and everybody who waits for one.

    Invariant after every call but `stop`: a deployment with a free slot has no waiter, and no grant ever takes one above
    its limit (only `adopt` may, after a restart). Each call returns what it decided, for whichever tickets.

    Args:
        max_waiting: length of the queue, all deployments together.
    """

    def __init__(self, max_waiting: int = 1024) -> None:
        self._max_waiting = max_waiting
        self._pools: dict[str, _Pool] = {}
        self._held: dict[Ticket, tuple[_Pool, int]] = {}
        self._waiters: dict[Ticket, _Waiter] = {}
        self._lanes: dict[tuple[int, str, tuple[str, ...]], _Lane] = {}
        self._counts: dict[tuple[int, str], int] = {}
        self._deadlines: list[tuple[int, int, Ticket]] = []
        self._owned: dict[int, set[Ticket]] = {}
        self._seq = 0
        self._stopped = False

    def stop(self) -> None:
        """Grant nothing any more: who waits, waits until it is cancelled or its time is over."""
        self._stopped = True

    def set_limit(self, deployment: str, limit: int, now_us: int) -> list[Decision]:
        """Declare a deployment or change its bound; a smaller one lets what is in flight finish.

        Raises:
            ValueError: the limit is below 1.
        """
        if limit < 1:
            raise ValueError(f"max_in_flight of {deployment} must be at least 1")
        pool = self._pools.get(deployment)
        if pool is None:
            self._pools[deployment] = _Pool(deployment, limit)
            return []
        grown, pool.limit = limit > pool.limit, limit
        return self._serve(pool, now_us) if grown else []

    def acquire(
        self, ticket: Ticket, key: str, weight: float, priority: int, deployments: Sequence[str], now_us: int, max_wait_us: int
    ) -> list[Decision]:
        """Ask for a slot in any of `deployments` (declared before; the first with a free slot is taken).

        Nothing is decided about the ticket when it has to wait; another ticket may be refused to make room for it.

        Raises:
            ValueError: the ticket is known already, an unknown deployment is named, or the weight is not positive.
        """
        if ticket in self._held or ticket in self._waiters:
            raise ValueError(f"ticket {ticket} is in use")
        if not deployments or any(d not in self._pools for d in deployments):
            raise ValueError("unknown deployment")
        if not weight > 0:
            raise ValueError("weight must be positive")
        for name in deployments:
            pool = self._pools[name]
            if pool.in_flight < pool.limit and not self._stopped:
                self._hold(ticket, pool, now_us)
                return [Granted(ticket, name, 0)]
        chosen = tuple(dict.fromkeys(deployments))
        if max_wait_us <= 0:
            return [Refused(ticket, "timeout", self._retry_after_ms(chosen))]
        decided: list[Decision] = []
        if len(self._waiters) >= self._max_waiting:
            victim = self._makes_room(key, priority)
            if victim is None:
                return [Refused(ticket, "full", self._retry_after_ms(chosen))]
            self._leave(victim)
            decided.append(Refused(victim.ticket, "full", self._retry_after_ms(victim.lane.deployments)))
        self._enter(ticket, self._lane(key, weight, priority, chosen), now_us, now_us + max_wait_us)
        return decided

    def release(self, ticket: Ticket, now_us: int) -> list[Decision]:
        """Give a slot back; a ticket that holds none is ignored."""
        held = self._held.pop(ticket, None)
        if held is None:
            return []
        pool, since_us = held
        self._disown(ticket)
        pool.in_flight -= 1
        pool.service_us += 0.1 * (max(0, now_us - since_us) - pool.service_us)
        return self._serve(pool, now_us)

    def cancel(self, ticket: Ticket, now_us: int) -> list[Decision]:
        """The ticket is not wanted any more, whether it waits or was granted meanwhile."""
        waiter = self._waiters.get(ticket)
        if waiter is not None:
            self._leave(waiter)
            return []
        return self.release(ticket, now_us)

    def drop_owner(self, owner: int, now_us: int) -> list[Decision]:
        """A worker is gone: its waiters leave and its slots are free."""
        tickets = self._owned.pop(owner, set())
        for ticket in tickets:
            waiter = self._waiters.get(ticket)
            if waiter is not None:
                self._leave(waiter)
        decided: list[Decision] = []
        for ticket in tickets:
            decided += self.release(ticket, now_us)
        return decided

    def adopt(self, ticket: Ticket, deployment: str, limit: int, now_us: int) -> None:
        """Record a slot that was granted by a gate before this one; counts even above the limit."""
        if ticket in self._held:
            return
        if deployment not in self._pools:
            self.set_limit(deployment, limit, now_us)
        self._hold(ticket, self._pools[deployment], now_us)

    def expire(self, now_us: int) -> list[Decision]:
        """Refuse who has waited too long."""
        decided: list[Decision] = []
        while self._deadlines and self._deadlines[0][0] <= now_us:
            _, seq, ticket = heapq.heappop(self._deadlines)
            waiter = self._waiters.get(ticket)
            if waiter is not None and waiter.seq == seq:
                self._leave(waiter)
                decided.append(Refused(ticket, "timeout", self._retry_after_ms(waiter.lane.deployments)))
        return decided

    def next_deadline_us(self) -> int | None:
        """When `expire` has something to do, at the earliest."""
        while self._deadlines:
            deadline_us, seq, ticket = self._deadlines[0]
            waiter = self._waiters.get(ticket)
            if waiter is not None and waiter.seq == seq:
                return deadline_us
            heapq.heappop(self._deadlines)
        return None

    def knows(self, ticket: Ticket) -> bool:
        """Whether a ticket waits or holds a slot."""
        return ticket in self._waiters or ticket in self._held

    @property
    def waiting(self) -> int:
        """Tickets in the queue."""
        return len(self._waiters)

    def stats(self) -> dict[str, PoolStats]:
        """Every declared deployment at this instant."""
        return {p.id: PoolStats(p.limit, p.in_flight, p.waiting) for p in self._pools.values()}

    def _lane(self, key: str, weight: float, priority: int, deployments: tuple[str, ...]) -> _Lane:
        lane = self._lanes.get((priority, key, deployments))
        if lane is None:
            lane = self._lanes[priority, key, deployments] = _Lane(key, weight, priority, deployments)
        elif not lane.waiting:
            lane.weight = weight
        return lane

    def _hold(self, ticket: Ticket, pool: _Pool, now_us: int) -> None:
        pool.in_flight += 1
        self._held[ticket] = (pool, now_us)
        self._owned.setdefault(ticket[0], set()).add(ticket)

    def _disown(self, ticket: Ticket) -> None:
        owned = self._owned.get(ticket[0])
        if owned is not None:
            owned.discard(ticket)
            if not owned:
                del self._owned[ticket[0]]

    def _enter(self, ticket: Ticket, lane: _Lane, now_us: int, deadline_us: int) -> None:
        self._seq += 1
        waiter = _Waiter(ticket, lane, self._seq, now_us, deadline_us)
        first = not lane.waiting
        lane.waiting[ticket] = self._waiters[ticket] = waiter
        self._owned.setdefault(ticket[0], set()).add(ticket)
        flow = (lane.priority, lane.key)
        self._counts[flow] = self._counts.get(flow, 0) + 1
        heapq.heappush(self._deadlines, (deadline_us, self._seq, ticket))
        for name in lane.deployments:
            pool = self._pools[name]
            pool.waiting += 1
            if first:
                pool.list_lane(lane)

    def _leave(self, waiter: _Waiter) -> None:
        """Take a ticket out of the queue, whatever becomes of it."""
        lane = waiter.lane
        del self._waiters[waiter.ticket], lane.waiting[waiter.ticket]
        self._disown(waiter.ticket)
        flow = (lane.priority, lane.key)
        self._counts[flow] -= 1
        if not self._counts[flow]:
            del self._counts[flow]
        for name in lane.deployments:
            pool = self._pools[name]
            pool.waiting -= 1
            if not lane.waiting:
                pool.unlist_lane(lane)
            if not pool.waiting:
                pool.forget()
        if not self._waiters:
            self._lanes.clear()
            self._deadlines.clear()
        elif len(self._lanes) + len(self._deadlines) > 4 * len(self._waiters) + 64:
            self._tidy()

    def _tidy(self) -> None:
        """Forget lanes, tags and deadlines that nobody waits behind; amortised by what piled up."""
        self._lanes = {k: lane for k, lane in self._lanes.items() if lane.waiting}
        self._deadlines = [(w.deadline_us, w.seq, t) for t, w in self._waiters.items()]
        heapq.heapify(self._deadlines)
        for pool in self._pools.values():
            pool.tidy()

    def _makes_room(self, key: str, priority: int) -> _Waiter | None:
        """Who leaves a full queue for a newcomer: of a less urgent band, or of a key that waits more than it would."""
        (band, busiest), count = max(self._counts.items(), key=lambda item: (item[0][0], item[1]))
        if band < priority or (band == priority and count <= self._counts.get((priority, key), 0) + 1):
            return None
        lanes = (lane for (p, k, _), lane in self._lanes.items() if (p, k) == (band, busiest) and lane.waiting)
        return max((next(reversed(lane.waiting.values())) for lane in lanes), key=lambda waiter: waiter.seq)

    def _serve(self, pool: _Pool, now_us: int) -> list[Decision]:
        """Give the pool's free slots to whoever's turn it is."""
        decided: list[Decision] = []
        while pool.in_flight < pool.limit and pool.waiting and not self._stopped:
            lane = pool.first()
            waiter = next(iter(lane.waiting.values()))
            pool.charge(lane)
            self._leave(waiter)
            self._hold(waiter.ticket, pool, now_us)
            decided.append(Granted(waiter.ticket, pool.id, now_us - waiter.since_us))
        return decided

    def _retry_after_ms(self, deployments: Sequence[str]) -> int:
        """When a slot may be expected: the queue ahead at the service time seen of late, between 1 s and 60 s."""
        best = min(p.service_us * (p.waiting + 1) / p.limit for p in (self._pools[d] for d in deployments))
        return min(MAX_RETRY_MS, max(MIN_RETRY_MS, int(best / 1000)))
