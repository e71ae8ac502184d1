"""The fair queue by example: bounds, order, fairness, refusals."""

from __future__ import annotations

import pytest

from gateway.gate.queue import MIN_RETRY_MS, FairQueue, Granted, PoolStats, Refused

SECOND = 1_000_000


def queue(max_waiting: int = 1000, **limits: int) -> FairQueue:
    made = FairQueue(max_waiting)
    for name, limit in limits.items():
        made.set_limit(name, limit, 0)
    return made


def ask(
    q: FairQueue, serial: int, key: str = "k", *, owner: int = 1, to: tuple[str, ...] = ("d",), now: int = 0, **more: float
):
    return q.acquire(
        (owner, serial), key, more.get("weight", 1.0), int(more.get("priority", 0)), to, now, int(more.get("wait", 60 * SECOND))
    )


def served(q: FairQueue, ticket: tuple[int, int], now: int = 0) -> list[int]:
    return [d.ticket[1] for d in q.release(ticket, now) if isinstance(d, Granted)]


def test_grants_up_to_the_limit_then_queues() -> None:
    q = queue(d=2)
    assert ask(q, 1) == [Granted((1, 1), "d", 0)]
    assert ask(q, 2) == [Granted((1, 2), "d", 0)]
    assert ask(q, 3, now=5) == []
    assert q.stats() == {"d": PoolStats(2, 2, 1)}
    assert q.release((1, 1), 25) == [Granted((1, 3), "d", 20)]
    assert q.stats() == {"d": PoolStats(2, 2, 0)}


def test_after_a_stop_nothing_is_granted() -> None:
    q = queue(d=1)
    ask(q, 1)
    assert ask(q, 2, wait=10) == []
    q.stop()
    assert q.release((1, 1), 5) == [] and q.set_limit("d", 9, 5) == []
    assert ask(q, 3, now=5, wait=10) == [], "though there is a free slot"
    assert [type(one) for one in q.expire(20)] == [Refused, Refused]
    assert q.cancel((1, 2), 20) == []


def test_release_is_idempotent() -> None:
    q = queue(d=1)
    ask(q, 1)
    q.release((1, 1), 0)
    assert q.release((1, 1), 0) == []
    assert q.stats()["d"].in_flight == 0


def test_takes_the_first_deployment_with_a_free_slot_and_the_first_freed() -> None:
    q = queue(a=1, b=1)
    assert ask(q, 1, to=("a", "b")) == [Granted((1, 1), "a", 0)]
    assert ask(q, 2, to=("a", "b")) == [Granted((1, 2), "b", 0)]
    assert ask(q, 3, to=("a", "b")) == []
    assert q.release((1, 2), 0) == [Granted((1, 3), "b", 0)]
    assert q.release((1, 1), 0) == []


def test_a_waiter_for_another_deployment_does_not_block() -> None:
    q = queue(a=1, b=1)
    ask(q, 1, to=("a",))
    ask(q, 2, to=("a",))
    assert ask(q, 3, to=("b",)) == [Granted((1, 3), "b", 0)]


@pytest.mark.parametrize("slots", [1, 4])
def test_five_hundred_queued_do_not_delay_another_key(slots: int) -> None:
    q = queue(d=slots)
    for n in range(500 + slots):
        ask(q, n, "heavy")
    for n in range(37):
        served(q, (1, n))
    ask(q, 9999, "light")
    assert served(q, (1, 37)) == [9999]


def test_a_light_key_between_two_heavy_ones_waits_for_at_most_one_turn_of_each() -> None:
    q = queue(d=1)
    for n in range(200):
        ask(q, 2 * n, "a")
        ask(q, 2 * n + 1, "b")
    running = 0
    for _ in range(51):
        (running,) = served(q, (1, running))
    ask(q, 9999, "light")
    order = []
    for _ in range(3):
        (running,) = served(q, (1, running))
        order.append(running)
    assert 9999 in order[:2]


def test_weights_share_the_slots() -> None:
    q = queue(d=1)
    ask(q, 0, "first")
    for n in range(1, 200):
        ask(q, n, "big", weight=3.0)
        ask(q, 1000 + n, "small")
    running, counts = 0, {"big": 0, "small": 0}
    for _ in range(100):
        (running,) = served(q, (1, running))
        counts["big" if running < 1000 else "small"] += 1
    assert abs(counts["big"] - 75) <= 2


def test_more_urgent_bands_go_first() -> None:
    q = queue(d=1)
    ask(q, 1)
    ask(q, 2, "a", priority=1)
    ask(q, 3, "b", priority=0)
    assert served(q, (1, 1)) == [3]
    assert served(q, (1, 3)) == [2]


def test_new_keys_forever_do_not_starve_one_served_before() -> None:
    q = queue(d=1)
    for n in range(3):
        ask(q, n, "old")
    (running,) = served(q, (1, 0))
    serial, waited = 100, 0
    ask(q, serial, "new100")
    while running != 2:
        serial += 1
        waited += 1
        ask(q, serial, f"new{serial}")
        (running,) = served(q, (1, running))
        assert waited < 20


def test_what_was_cancelled_is_not_charged() -> None:
    q = queue(d=1)
    ask(q, 0, "x")
    for n in range(1, 300):
        ask(q, n, "a")
    ask(q, 1000, "b")
    for n in range(2, 300):
        q.cancel((1, n), 0)
    assert served(q, (1, 0)) == [1]
    ask(q, 500, "a")
    for n in range(1001, 1010):
        ask(q, n, "b")
    assert served(q, (1, 1)) == [1000]
    assert served(q, (1, 1000)) == [500]


def test_a_full_queue_refuses_with_a_time_to_retry() -> None:
    q = queue(2, d=1)
    for n in range(3):
        ask(q, n)
    (refusal,) = ask(q, 3)
    assert isinstance(refusal, Refused)
    assert (refusal.ticket, refusal.reason) == ((1, 3), "full")
    assert refusal.retry_after_ms >= MIN_RETRY_MS


def test_a_full_queue_makes_room_for_a_key_that_waits_less() -> None:
    q = queue(4, d=1)
    for n in range(5):
        ask(q, n, "heavy")
    (refusal,) = ask(q, 50, "light")
    assert isinstance(refusal, Refused)
    assert refusal.ticket == (1, 4)
    assert q.knows((1, 50))
    assert served(q, (1, 0)) == [50] or served(q, (1, 1)) == [50]


def test_a_full_queue_makes_room_for_a_more_urgent_band() -> None:
    q = queue(1, d=1)
    ask(q, 0)
    ask(q, 1, "late", priority=5)
    (refusal,) = ask(q, 2, "urgent", priority=0)
    assert refusal.ticket == (1, 1)
    (refusal,) = ask(q, 3, "late", priority=5)
    assert refusal.ticket == (1, 3)


def test_waiting_too_long_is_refused_at_the_deadline() -> None:
    q = queue(d=1)
    ask(q, 1)
    ask(q, 2, wait=10, now=100)
    ask(q, 3, wait=20, now=100)
    assert q.next_deadline_us() == 110
    assert q.expire(109) == []
    (refusal,) = q.expire(110)
    assert (refusal.ticket, refusal.reason) == ((1, 2), "timeout")
    assert q.next_deadline_us() == 120
    assert served(q, (1, 1)) == [3]
    assert q.next_deadline_us() is None


def test_no_wait_allowed_is_an_immediate_refusal() -> None:
    q = queue(d=1)
    ask(q, 1)
    (refusal,) = ask(q, 2, wait=0)
    assert refusal.reason == "timeout"
    assert not q.knows((1, 2))


def test_a_dead_owner_frees_its_slots_and_its_waiters_go() -> None:
    q = queue(d=2)
    ask(q, 1, owner=1)
    ask(q, 2, owner=2)
    ask(q, 3, owner=1)
    ask(q, 4, owner=2)
    assert q.drop_owner(1, 0) == [Granted((2, 4), "d", 0)]
    assert not q.knows((1, 3))
    assert q.drop_owner(1, 0) == []


def test_adopted_slots_count_even_above_the_limit() -> None:
    q = FairQueue()
    q.adopt((1, 1), "d", 1, 0)
    q.adopt((2, 1), "d", 1, 0)
    q.adopt((2, 1), "d", 1, 0)
    assert q.stats()["d"].in_flight == 2
    ask(q, 9, owner=3)
    assert q.release((1, 1), 0) == []
    assert q.release((2, 1), 0) == [Granted((3, 9), "d", 0)]


def test_a_raised_limit_serves_who_waits_and_a_lowered_one_waits() -> None:
    q = queue(d=1)
    for n in range(4):
        ask(q, n)
    assert [d.ticket[1] for d in q.set_limit("d", 3, 0)] == [1, 2]
    assert q.set_limit("d", 1, 0) == []
    assert served(q, (1, 0)) == []
    assert served(q, (1, 1)) == []
    assert served(q, (1, 2)) == [3]


def test_wrong_use_is_refused() -> None:
    q = queue(d=1)
    ask(q, 1)
    with pytest.raises(ValueError, match="in use"):
        ask(q, 1)
    with pytest.raises(ValueError, match="unknown"):
        ask(q, 2, to=("nowhere",))
    with pytest.raises(ValueError, match="unknown"):
        ask(q, 2, to=())
    with pytest.raises(ValueError, match="weight"):
        ask(q, 2, weight=0.0)
    with pytest.raises(ValueError, match="at least 1"):
        q.set_limit("d", 0, 0)
