"""The fair queue under any interleaving: never above the bound, nothing leaked, nobody idle beside a free slot."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.gate.queue import Decision, FairQueue, Granted, Ticket

NAMES = ("a", "b", "c")
MAX_WAITING = 12


class Machine(RuleBasedStateMachine):
    """Drives the queue and keeps its own books from the decisions alone."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue(MAX_WAITING)
        self.now = 0
        self.serial = 0
        self.held: dict[Ticket, str] = {}
        self.waiting: dict[Ticket, tuple[tuple[str, ...], int]] = {}
        self.limits: dict[str, int] = {}

    @initialize(limits=st.tuples(*[st.integers(1, 3)] * 3))
    def declare(self, limits: tuple[int, int, int]) -> None:
        for name, limit in zip(NAMES, limits, strict=True):
            self.queue.set_limit(name, limit, 0)
            self.limits[name] = limit

    def book(self, decisions: list[Decision], lowered: str | None = None) -> None:
        for decision in decisions:
            deployments, since = self.waiting.pop(decision.ticket)
            if isinstance(decision, Granted):
                assert decision.deployment in deployments
                assert decision.waited_us == self.now - since
                self.held[decision.ticket] = decision.deployment
                count = sum(d == decision.deployment for d in self.held.values())
                assert count <= self.limits[decision.deployment]

    @rule(
        owner=st.integers(1, 3),
        key=st.sampled_from("pqrs"),
        weight=st.sampled_from([0.25, 1.0, 3.0]),
        priority=st.integers(0, 2),
        deployments=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
        wait=st.integers(0, 50),
    )
    def acquire(self, owner: int, key: str, weight: float, priority: int, deployments: list[str], wait: int) -> None:
        self.serial += 1
        ticket = (owner, self.serial)
        self.waiting[ticket] = (tuple(deployments), self.now)
        self.book(self.queue.acquire(ticket, key, weight, priority, deployments, self.now, wait))

    @rule(pick=st.integers(0, 100))
    def release(self, pick: int) -> None:
        if self.held:
            ticket = sorted(self.held)[pick % len(self.held)]
            del self.held[ticket]
            self.book(self.queue.release(ticket, self.now))

    @rule(pick=st.integers(0, 100))
    def cancel(self, pick: int) -> None:
        known = sorted([*self.held, *self.waiting])
        if known:
            ticket = known[pick % len(known)]
            self.held.pop(ticket, None)
            self.waiting.pop(ticket, None)
            self.book(self.queue.cancel(ticket, self.now))

    @rule(owner=st.integers(1, 3))
    def drop(self, owner: int) -> None:
        self.held = {t: d for t, d in self.held.items() if t[0] != owner}
        self.waiting = {t: w for t, w in self.waiting.items() if t[0] != owner}
        self.book(self.queue.drop_owner(owner, self.now))

    @rule(step=st.integers(1, 40))
    def clock(self, step: int) -> None:
        self.now += step
        self.book(self.queue.expire(self.now))

    @rule(name=st.sampled_from(NAMES), limit=st.integers(1, 4))
    def limit(self, name: str, limit: int) -> None:
        self.limits[name] = limit
        self.book(self.queue.set_limit(name, limit, self.now))

    @invariant()
    def books_agree(self) -> None:
        stats = self.queue.stats()
        for name in self.limits:
            assert stats[name].in_flight == sum(d == name for d in self.held.values())
            assert stats[name].waiting == sum(name in d for d, _ in self.waiting.values())
            assert stats[name].in_flight >= stats[name].limit or stats[name].waiting == 0, "idle slot beside a waiter"
        assert self.queue.waiting == len(self.waiting) <= MAX_WAITING
        assert all(self.queue.knows(t) for t in [*self.held, *self.waiting])

    def teardown(self) -> None:
        """Letting everything go leaves nothing: no waiter is lost, no slot stays taken."""
        while self.held:
            ticket = min(self.held)
            del self.held[ticket]
            self.book(self.queue.release(ticket, self.now))
        assert not self.waiting
        assert all(s.in_flight == s.waiting == 0 for s in self.queue.stats().values())


TestQueue = Machine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(
    backlogs=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    slots=st.integers(1, 4),
    served=st.integers(0, 120),
    rng=st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_a_newcomer_waits_for_one_turn_of_each_other_key_at_most(
    backlogs: list[int], slots: int, served: int, rng: random.Random
) -> None:
    queue = FairQueue(10_000)
    queue.set_limit("d", slots, 0)
    arrivals = [f"heavy{n}" for n, backlog in enumerate(backlogs) for _ in range(backlog)]
    rng.shuffle(arrivals)
    running: list[Ticket] = []

    def ask(serial: int, key: str) -> None:
        running.extend(d.ticket for d in queue.acquire((0, serial), key, 1.0, 0, ["d"], 0, 10**9) if isinstance(d, Granted))

    def release_one() -> None:
        ticket = running.pop(rng.randrange(len(running)))
        running.extend(d.ticket for d in queue.release(ticket, 0) if isinstance(d, Granted))

    for serial, key in enumerate(arrivals):
        ask(serial, key)
    for _ in range(min(served, len(arrivals) - 1)):
        release_one()
    light = (0, 10**6)
    ask(light[1], "light")
    turns = 0
    while light not in running:
        release_one()
        turns += 1
    assert turns <= len(backlogs) + 1
