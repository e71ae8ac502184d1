import pytest

from gateway.domain.settlement import Rule
from gateway.limits.reference import Admitted, Counters, Refused, check_rules
from gateway.limits.rules import MAX_AMOUNT

S = 1_000_000
T0 = 1_800_000_000 * S
LEASE = 15_000


def rate(limit, cost=1, window_ms=60_000, name="r"):
    return Rule(name, "rate", "tokens", limit, window_ms, cost)


def lease(limit, name="l"):
    return Rule(name, "lease", "slots", limit, 0, 1)


def test_exactly_the_limit_is_admitted_and_the_refusal_says_when_to_come_back():
    counters = Counters()
    for n in range(10):
        assert isinstance(counters.admit(f"{n}", [rate(10)], LEASE, T0 + n * S), Admitted)
    refused = counters.admit("x", [rate(10)], LEASE, T0 + 10 * S)
    assert isinstance(refused, Refused)
    assert refused.retry_after_ms == 51_000  # the first charge's sub-window leaves 61 s after it began
    assert isinstance(counters.admit("x", [rate(10)], LEASE, T0 + 61 * S - 1), Refused)
    assert isinstance(counters.admit("x", [rate(10)], LEASE, T0 + 61 * S), Admitted)


def test_retry_after_waits_for_as_many_subwindows_as_the_cost_needs():
    counters = Counters()
    for n in range(10):
        counters.admit(f"{n}", [rate(10)], LEASE, T0 + n * S)
    refused = counters.admit("x", [rate(10, cost=3)], LEASE, T0 + 10 * S)
    assert refused.retry_after_ms == 53_000


def test_all_rules_or_none_and_the_first_refusing_rule_is_named():
    counters = Counters()
    counters.admit("a", [lease(1)], LEASE, T0)
    refused = counters.admit("b", [rate(10), lease(1), rate(0, name="z", cost=0)], LEASE, T0)
    assert refused.index == 1
    assert [state.remaining for state in refused.states] == [10, 0, 0]
    assert counters.admit("c", [rate(10, cost=10)], LEASE, T0).states[0].remaining == 0


def test_a_refund_goes_to_the_subwindow_of_its_admission_and_is_dropped_when_that_left():
    counters = Counters()
    counters.admit("a", [rate(10, cost=10)], LEASE, T0)
    assert counters.settle("a", [4], T0 + 30 * S).overruns == 0
    assert counters.admit("b", [rate(10, cost=6)], LEASE, T0 + 31 * S).states[0].remaining == 0
    counters.admit("c", [rate(10, cost=4)], LEASE, T0 + 61 * S)
    counters.settle("b", [0], T0 + 95 * S)
    assert counters.admit("d", [rate(10)], LEASE, T0 + 95 * S).states[0].remaining == 5
    assert counters.settle("d", [0], T0 + 200 * S).overruns == 0
    assert counters.states([rate(10)], LEASE, T0 + 200 * S)[0].remaining == 10


def test_an_overrun_goes_to_the_current_subwindow_and_blocks_until_it_leaves():
    counters = Counters()
    counters.admit("a", [rate(10, cost=5)], LEASE, T0)
    assert counters.settle("a", [15], T0 + 30 * S).overruns == 1
    refused = counters.admit("b", [rate(10)], LEASE, T0 + 61 * S)
    assert refused.retry_after_ms == 30_000
    assert refused.states[0].remaining == 0


def test_settling_twice_is_a_no_op():
    counters = Counters()
    counters.admit("a", [rate(10, cost=5), lease(1)], LEASE, T0)
    assert counters.settle("a", [1, 0], T0) is not None
    assert counters.settle("a", [1, 0], T0) is None
    assert counters.states([rate(10), lease(1)], LEASE, T0)[0].remaining == 9


def test_a_lease_ends_with_settlement_or_expiry_and_renewal_prolongs_it():
    counters = Counters()
    counters.admit("a", [lease(1)], LEASE, T0)
    assert isinstance(counters.admit("b", [lease(1)], LEASE, T0 + 14 * S), Refused)
    counters.renew("a", ["l"], 7, LEASE, T0 + 14 * S)
    assert counters.expired(T0 + 20 * S) == []
    refused = counters.admit("b", [lease(1)], LEASE, T0 + 28 * S)
    assert refused.retry_after_ms == 1000
    assert counters.admit("b", [lease(1)], LEASE, T0 + 28 * S + 500_000).retry_after_ms == 500
    assert isinstance(counters.admit("b", [lease(1)], LEASE, T0 + 29 * S), Admitted)
    assert counters.expired(T0 + 29 * S) == ["a"]


def test_a_renewal_brings_back_a_lost_lease_even_above_the_limit():
    counters = Counters()
    counters.admit("a", [lease(1)], LEASE, T0)
    counters.renew("lost", ["l"], 0, LEASE, T0)
    refused = counters.admit("b", [lease(2)], LEASE, T0)
    assert isinstance(refused, Refused)


def test_the_clock_of_a_rule_never_goes_back():
    counters = Counters()
    counters.admit("a", [rate(10, cost=10)], LEASE, T0 + 100 * S)
    assert isinstance(counters.admit("b", [rate(10)], LEASE, T0), Refused)
    assert isinstance(counters.admit("b", [rate(10)], LEASE, T0 + 161 * S), Admitted)


def test_a_window_that_sixty_does_not_divide_is_still_never_exceeded():
    counters = Counters()
    second = rate(1, window_ms=1000)
    counters.admit("a", [second], LEASE, T0)
    assert isinstance(counters.admit("b", [second], LEASE, T0 + S), Refused)
    assert isinstance(counters.admit("b", [second], LEASE, T0 + S + S // 60 + 2), Admitted)


def test_amounts_near_two_to_the_53_stay_exact():
    counters = Counters()
    huge = rate(MAX_AMOUNT, cost=MAX_AMOUNT - 1)
    assert counters.admit("a", [huge], LEASE, T0).states[0].remaining == 1
    assert counters.settle("a", [MAX_AMOUNT], T0).overruns == 1
    assert counters.states([huge], LEASE, T0)[0].remaining == 0


def test_quota_refuses_until_its_period_ends():
    quota = Rule("t:2026-11", "quota", "nusd", 10, 5000, 10)
    counters = Counters()
    counters.admit("a", [quota], LEASE, T0)
    assert counters.admit("b", [quota], LEASE, T0 + 1).retry_after_ms == 5000
    counters.settle("a", [3], T0 + 2)
    assert counters.states([quota], LEASE, T0 + 3)[0].remaining == 7


def test_recorded_charges_count_at_the_instant_of_their_admission():
    counters = Counters()
    counters.record("r", "rate", 60_000, 6, T0 - 30 * S, T0)
    counters.record("r", "rate", 60_000, 100, T0 - 90 * S, T0)
    counters.record("l", "lease", 0, 1, T0, T0)
    assert counters.states([rate(10), lease(1)], LEASE, T0)[0].remaining == 4
    assert counters.states([rate(10)], LEASE, T0 + 31 * S)[0].remaining == 10
    assert counters.states([lease(1)], LEASE, T0)[0].remaining == 1


def test_prune_forgets_only_what_holds_nothing():
    counters = Counters()
    quota = Rule("q", "quota", "nusd", 10, 5000, 1)
    counters.admit("a", [rate(10), lease(1), quota], LEASE, T0)
    counters.prune(T0 + 4 * S)
    assert [s.remaining for s in counters.states([rate(10), lease(1), quota], LEASE, T0 + 4 * S)] == [9, 0, 9]
    counters.prune(T0 + 61 * S)
    assert [s.remaining for s in counters.states([rate(10), lease(1), quota], LEASE, T0 + 61 * S)] == [10, 1, 10]


@pytest.mark.parametrize(
    "rules",
    [
        [rate(1), rate(2)],
        [rate(MAX_AMOUNT + 1)],
        [rate(1, cost=-1)],
        [rate(1, window_ms=0)],
        [Rule("l", "lease", "slots", 1, 0, 2)],
    ],
)
def test_rules_that_cannot_be_counted_are_refused(rules):
    with pytest.raises(ValueError):
        check_rules(rules)


def test_an_open_id_cannot_be_admitted_again():
    counters = Counters()
    counters.admit("a", [rate(5)], LEASE, T0)
    with pytest.raises(ValueError):
        counters.admit("a", [rate(5)], LEASE, T0)
    assert counters.reserved("a") == (rate(5),)
    assert counters.reserved("b") is None
