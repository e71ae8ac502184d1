"""The theorem: while actual <= reserved, no rolling window ever holds more than its limit, whatever the order of events."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.settlement import Rule
from gateway.limits.reference import Admitted, Counters

T0 = 1_800_000_000_000_000


@given(
    window_ms=st.sampled_from([1000, 1007, 7000, 60_000]),
    limit=st.integers(1, 40),
    steps=st.lists(
        st.tuples(st.floats(0, 0.4), st.integers(0, 20), st.floats(0, 1), st.integers(0, 6)), min_size=1, max_size=60
    ),
)
def test_no_rolling_window_exceeds_the_limit(window_ms, limit, steps):
    counters, now = Counters(), T0
    final: dict[str, list[int]] = {}
    waiting: list[tuple[int, str, int]] = []
    for number, (step, cost, share, delay) in enumerate(steps):
        now += int(step * window_ms * 1000)
        for due in [entry for entry in waiting if entry[0] <= number]:
            waiting.remove(due)
            counters.settle(due[1], [due[2]], now)
            final[due[1]][1] = due[2]
        rule = Rule("r", "rate", "tokens", limit, window_ms, cost)
        if isinstance(counters.admit(f"{number}", [rule], 15_000, now), Admitted):
            final[f"{number}"] = [now, cost]
            waiting.append((number + delay, f"{number}", int(cost * share)))
    charges = sorted(final.values())
    for start, _ in charges:
        inside = sum(amount for at, amount in charges if start <= at <= start + window_ms * 1000)
        assert inside <= limit


@given(
    limit=st.integers(1, 20),
    steps=st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 20)), min_size=1, max_size=40),
    cost=st.integers(1, 20),
)
def test_retry_after_is_the_earliest_instant(limit, steps, cost):
    cost = min(cost, limit)
    counters, now = Counters(), T0
    for number, (step, amount) in enumerate(steps):
        now += step
        counters.admit(f"{number}", [Rule("r", "rate", "tokens", limit, 1000, amount)], 15_000, now)
    rule = Rule("r", "rate", "tokens", limit, 1000, cost)
    answer = counters.admit("x", [rule], 15_000, now)
    if isinstance(answer, Admitted):
        return
    wait = answer.retry_after_ms * 1000
    assert not isinstance(counters.admit("y", [rule], 15_000, now + wait - 1000), Admitted)
    assert isinstance(counters.admit("z", [rule], 15_000, now + wait), Admitted)
