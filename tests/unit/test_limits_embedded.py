import asyncio

import pytest

from gateway.domain.settlement import Progress, Rule, Settlement
from gateway.limits.embedded_store import EmbeddedStore
from gateway.limits.outbox import unpack_charges
from gateway.limits.store import LimitExceeded, LimitsUnavailable
from tests.rows import row

S = 1_000_000
T0 = 1_800_000_000 * S
RULES = (
    Rule("k:requests:60000", "rate", "requests", 2, 60_000, 1),
    Rule("k:tokens:60000", "rate", "tokens", 100, 60_000, 40),
    Rule("k:slots", "lease", "slots", 5, 0, 1),
)


class Clock:
    def __init__(self):
        self.us = T0

    def __call__(self):
        return self.us


class Memory:
    """An outbox that keeps rows in a dict and can be told to fail or to hang."""

    def __init__(self):
        self.rows = {}
        self.fail = None
        self.gate = None

    async def open(self, row, charges):
        if self.fail:
            raise self.fail
        if self.gate:
            await self.gate.wait()
        self.rows[row.id] = (row, False, charges)

    def append(self, row, charges):
        self.rows[row.id] = (row, True, charges)

    def recent(self, since_us):
        return [(r.admitted_us, settled, c) for r, settled, c in self.rows.values() if r.admitted_us >= since_us]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def outbox():
    return Memory()


@pytest.fixture
def store(clock, outbox):
    return EmbeddedStore(clock, outbox)


async def test_an_admission_is_stored_before_it_returns_and_settled_in_its_place(store, outbox, clock):
    reservation = await store.admit("a", RULES, row("a"), 15_000)
    stored, settled, charges = outbox.rows["a"]
    assert (stored.admitted_us, stored.outcome, settled) == (T0, "abandoned", False)
    assert [(c.name, c.amount) for c in unpack_charges(charges)] == [("k:requests:60000", 1), ("k:tokens:60000", 40)]
    assert [state.remaining for state in reservation.states] == [1, 60, 4]
    clock.us += S
    settlement = Settlement(reservation, (1, 7, 0), row("a", outcome="ok", output_tokens=7))
    assert await store.settle(settlement) is True
    assert await store.settle(settlement) is False
    stored, settled, charges = outbox.rows["a"]
    assert (stored.admitted_us, stored.outcome, settled) == (T0, "ok", True)
    assert [c.amount for c in unpack_charges(charges)] == [1, 7]
    assert [s.remaining for s in (await store.admit("b", RULES, row("b"), 15_000)).states] == [0, 53, 4]


async def test_a_refusal_charges_and_stores_nothing(store, outbox):
    await store.admit("a", RULES, row("a"), 15_000)
    await store.admit("b", RULES, row("b"), 15_000)
    with pytest.raises(LimitExceeded) as caught:
        await store.admit("c", RULES, row("c"), 15_000)
    assert caught.value.rule is RULES[0]
    assert [state.remaining for state in caught.value.states] == [0, 20, 3]
    assert set(outbox.rows) == {"a", "b"}


async def test_a_caller_that_gives_up_is_never_charged(store, outbox):
    outbox.gate = asyncio.Event()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.admit("a", RULES, row("a"), 15_000), 0.01)
    outbox.gate = None
    reservation = await store.admit("b", RULES, row("b"), 15_000)
    assert [state.remaining for state in reservation.states] == [1, 60, 4]
    assert (outbox.rows["a"][0].outcome, unpack_charges(outbox.rows["a"][2])[1].amount) == ("cancelled", 0)


async def test_what_cannot_be_stored_is_denied_or_allowed_as_the_rules_say(store, outbox):
    outbox.fail = OSError("disk full")
    with pytest.raises(LimitsUnavailable) as caught:
        await store.admit("a", RULES, row("a"), 15_000)
    assert caught.value.status == 503
    assert "disk" not in caught.value.message
    assert not outbox.rows, "who was refused has no row, now or later"
    allowing = tuple(Rule(r.name, r.kind, r.unit, r.limit, r.window_ms, r.cost, "allow") for r in RULES)
    reservation = await store.admit("b", allowing, row("b"), 15_000)
    assert reservation.degraded
    assert [state.remaining for state in reservation.states] == [1, 60, 4]
    assert await store.settle(Settlement(reservation, (1, 3, 0), row("b", outcome="ok")))
    assert outbox.rows["b"][0].outcome == "ok"


@pytest.mark.parametrize("back_s", [2, 30, 61, 3600])
async def test_a_clock_that_is_set_back_neither_gives_nor_takes(store, clock, back_s):
    first = await store.admit("a", RULES, row("a"), 15_000)
    clock.us += 30 * S
    await store.admit("b", RULES, row("b"), 15_000)
    clock.us -= back_s * S
    with pytest.raises(LimitExceeded) as caught:
        await store.admit("c", RULES, row("c"), 15_000)
    assert 30_000 <= caught.value.retry_after_ms <= 33_000, "the first is 30 s old"
    assert await store.settle(Settlement(first, (0, 0, 0), row("a")))
    assert [state.remaining for state in await store.peek(RULES)] == [1, 60, 4], "its refund finds its charge"
    clock.us += 62 * S
    assert [state.remaining for state in (await store.admit("d", RULES, row("d"), 15_000)).states] == [1, 60, 4]


async def test_a_restart_goes_on_with_what_was_admitted(store, outbox, clock):
    settled = await store.admit("a", RULES, row("a"), 15_000)
    store.settle(Settlement(settled, (1, 10, 0), row("a", outcome="ok")))
    clock.us += S
    await store.admit("b", RULES, row("b"), 15_000)
    again = EmbeddedStore(clock, outbox)
    again.restore(outbox.recent(T0 - 60 * S))
    with pytest.raises(LimitExceeded) as caught:
        await again.admit("c", RULES, row("c"), 15_000)
    assert [state.remaining for state in caught.value.states] == [0, 50, 5]
    clock.us = T0 + 61 * S
    assert [s.remaining for s in (await again.admit("d", RULES, row("d"), 15_000)).states] == [0, 20, 4]


async def test_renewal_prolongs_a_lease(store, clock):
    one = (Rule("k:slots", "lease", "slots", 1, 0, 1),)
    await store.admit("a", one, row("a"), 15_000)
    clock.us += 14 * S
    await store.renew([Progress("a", ("k:slots",), 5), Progress("unknown", ("k:slots",), 5)])
    clock.us += 14 * S
    with pytest.raises(LimitExceeded):
        await store.admit("b", one, row("b"), 15_000)
    clock.us += 2 * S
    await store.admit("b", one, row("b"), 15_000)


async def test_overruns_are_counted_and_voiding_the_unknown_does_nothing(store):
    reservation = await store.admit("a", RULES, row("a"), 15_000)
    assert await store.settle(Settlement(reservation, (1, 90, 0), row("a", outcome="ok")))
    assert store.overruns == 1
    store.void("a")
    store.void("never")
    await store.aclose()
