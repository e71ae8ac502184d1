import itertools
from datetime import UTC, datetime

import msgspec
import pytest

from backends.core.errors import BadRequest
from gateway.domain.principal import LimitSpec
from gateway.domain.route import Price
from gateway.domain.settlement import RuleState
from gateway.limits.rules import MAX_AMOUNT, Demand, applying, ceiling, largest_output, output_left, rules_for

ME = "key:3f2a"
NOW = int(datetime(2026, 11, 21, 15, 30, tzinfo=UTC).timestamp()) * 1_000_000
#: 2 and 10 USD per million tokens.
PRICE = Price(2_000_000, 1_000_000, 10_000_000)


def test_every_unit_becomes_a_rule_with_its_amount_and_a_deterministic_name():
    limits = (
        LimitSpec(ME, "requests", 60, 60_000),
        LimitSpec(ME, "tokens", 10_000, 60_000),
        LimitSpec("team:red", "nusd", 5_000, 86_400_000),
        LimitSpec(ME, "slots", 8),
    )
    rules = rules_for(limits, Demand(input_tokens=100, output_cap=50, choices=3, price=Price(10, 0, 506)), NOW)
    assert [(r.name, r.kind, r.unit, r.limit, r.window_ms, r.cost) for r in rules] == [
        ("key:3f2a:requests:60000", "rate", "requests", 60, 60_000, 1),
        ("key:3f2a:tokens:60000", "rate", "tokens", 10_000, 60_000, 250),
        ("team:red:nusd:86400000", "rate", "nusd", 5_000, 86_400_000, 77),
        ("key:3f2a:slots", "lease", "slots", 8, 0, 1),
    ]


def test_outage_policy_is_the_limits_own_or_the_default():
    limits = (LimitSpec(ME, "requests", 60, 60_000), LimitSpec(ME, "slots", 8, on_outage="allow"))
    assert [r.on_outage for r in rules_for(limits, Demand(1), NOW)] == ["deny", "allow"]
    assert [r.on_outage for r in rules_for(limits, Demand(1), NOW, on_outage="allow")] == ["allow", "allow"]


def test_of_two_limits_on_one_counter_the_tighter_one_counts_once():
    limits = (LimitSpec(ME, "requests", 60, 60_000), LimitSpec(ME, "requests", 10, 60_000))
    (rule,) = rules_for(limits, Demand(1), NOW)
    assert rule.limit == 10


@pytest.mark.parametrize(
    ("demand", "param"),
    [
        (Demand(10, output_cap=1000, stated=True), "max_tokens"),
        (Demand(10, output_cap=500, choices=2, stated=True), "max_tokens"),
        (Demand(1001), "messages"),
        (Demand(1001, input_param="input"), "input"),
    ],
)
def test_a_demand_above_the_whole_limit_is_a_400_not_an_eternal_429(demand, param):
    with pytest.raises(BadRequest) as caught:
        rules_for((LimitSpec(ME, "tokens", 1000, 60_000),), demand, NOW)
    assert caught.value.param == param
    assert caught.value.status == 400


def test_a_demand_of_exactly_the_whole_limit_is_allowed():
    (rule,) = rules_for((LimitSpec(ME, "tokens", 1000, 60_000),), Demand(10, output_cap=990, stated=True), NOW)
    assert rule.cost == rule.limit


@pytest.mark.parametrize(
    "spec",
    [
        LimitSpec(ME, "tokens", MAX_AMOUNT + 1, 60_000),
        LimitSpec(ME, "tokens", -1, 60_000),
        LimitSpec(ME, "tokens", 10, 0),
        LimitSpec(ME, "tokens", 10, 401 * 86_400_000),
        LimitSpec(ME, "slots", 10, 60_000),
        LimitSpec(ME, "slots", 10, period="day"),
        LimitSpec(ME, "nusd", 10, 60_000, period="month"),
    ],
)
def test_limits_that_cannot_be_counted_exactly_are_refused(spec):
    with pytest.raises(ValueError):
        rules_for((spec,), Demand(1), NOW)


def test_largest_output_is_what_the_tightest_token_limit_leaves_per_choice():
    limits = (LimitSpec(ME, "tokens", 1000, 60_000), LimitSpec("team:a", "tokens", 400, 60_000), LimitSpec(ME, "slots", 1))
    assert largest_output(limits, Demand(100, choices=3)) == 100
    assert largest_output(limits, Demand(399)) == 16
    assert largest_output((LimitSpec(ME, "slots", 1),), Demand(100)) is None


def test_a_calendar_period_is_part_of_the_name_and_the_rest_of_it_the_window():
    limits = (
        LimitSpec("team:red", "nusd", 10**9, period="month", zone="America/New_York"),
        LimitSpec("team:red", "tokens", 10**6, period="day", zone="Asia/Tokyo"),
    )
    month, day = rules_for(limits, Demand(100), NOW)
    assert (month.name, month.kind) == ("team:red:nusd:2026-11", "quota")
    assert month.ends_us == int(datetime(2026, 12, 1, 5, tzinfo=UTC).timestamp()) * 1_000_000
    assert month.window_ms == (month.ends_us - NOW) // 1000
    assert (day.name, day.ends_us - NOW) == ("team:red:tokens:2026-11-22", (23 * 60 + 30) * 60_000_000)


def test_a_limit_of_one_model_counts_that_model_alone_in_a_counter_of_its_own():
    limits = (LimitSpec(ME, "tokens", 9000, 60_000), LimitSpec(ME, "tokens", 1000, 60_000, model="big"))
    assert [rule.name for rule in rules_for(applying(limits, "small"), Demand(1), NOW)] == ["key:3f2a:tokens:60000"]
    assert [rule.name for rule in rules_for(applying(limits, "big"), Demand(1), NOW)] == [
        "key:3f2a:tokens:60000",
        "@big key:3f2a:tokens:60000",
    ]


def test_no_two_owners_share_a_counter_whatever_they_are_called():
    odd = ["a", "a:tokens:60000", "@b a", "a:slots"]
    scopes = [f"{kind}:{name}" for kind in ("key", "user") for name in odd]
    specs = [
        LimitSpec(scope, unit, 5, 0 if unit == "slots" else 60_000, model=model)
        for scope, unit, model in itertools.product(scopes, ("tokens", "slots"), ("", "b", "b:slots"))
    ]
    assert len(rules_for(specs, Demand(1), NOW)) == len(specs)


def test_a_shadow_limit_refuses_nothing_and_bounds_nothing():
    shadow = LimitSpec(ME, "tokens", 10, 60_000, shadow=True, on_outage="deny")
    (rule,) = rules_for((shadow,), Demand(100, output_cap=50), NOW)
    assert (rule.limit, rule.shadow, rule.cost, rule.on_outage) == (MAX_AMOUNT, 10, 150, "allow")
    assert largest_output((shadow,), Demand(100)) is None


@pytest.mark.parametrize("turn", [1, -1])
def test_a_shadow_limit_beside_an_enforced_one_shares_its_counter(turn):
    limits = (LimitSpec(ME, "requests", 60, 60_000), LimitSpec(ME, "requests", 10, 60_000, shadow=True))[::turn]
    (rule,) = rules_for(limits, Demand(1), NOW)
    assert (rule.limit, rule.shadow, rule.on_outage) == (60, 10, "deny")


def test_every_unit_is_reserved_at_its_upper_bound():
    demand = Demand(1001, output_cap=100, choices=2, price=PRICE)
    assert [demand.of(unit) for unit in ("requests", "input_tokens", "output_tokens", "tokens", "nusd", "slots")] == [
        1,
        1001,
        200,
        1201,
        1001 * 2000 + 200 * 10_000,
        1,
    ]
    assert Demand(1, price=Price(1, 0, 0)).nusd == 1  # money is rounded upwards


def test_the_ceiling_is_the_highest_of_each_price():
    assert ceiling([Price(1, 9, 5), Price(3, 1, 4)]) == Price(9, 9, 5)
    assert ceiling([]) == Price()


@pytest.mark.parametrize("unit", ["output_tokens", "tokens", "nusd"])
@pytest.mark.parametrize("left", [0, 1, 999, 10**7, 123_456_789])
def test_the_largest_cap_is_the_largest_that_fits(unit, left):
    demand = Demand(333, choices=3, price=PRICE)
    cap = demand.largest_cap(unit, left)
    if cap >= 0:
        assert msgspec.structs.replace(demand, output_cap=cap).of(unit) <= left
    assert msgspec.structs.replace(demand, output_cap=max(0, cap + 1)).of(unit) > left


def test_free_output_is_bounded_by_no_money_and_a_prompt_too_dear_by_none_at_all():
    free = Demand(10, price=Price(1000, 0, 0))
    assert free.largest_cap("nusd", 10) == MAX_AMOUNT
    assert free.largest_cap("nusd", 9) < 0


def test_a_stated_cap_is_bounded_by_clamping_limits_only():
    limits = (
        LimitSpec(ME, "tokens", 1000, 60_000),
        LimitSpec(ME, "output_tokens", 5000, 60_000, on_insufficient="clamp"),
    )
    demand = Demand(100, 8000, stated=True)
    assert largest_output(limits, demand, only_clamping=True) == 5000
    rules = rules_for(limits, Demand(100, 10, stated=True), NOW)
    states = [RuleState(rule, left, 1) for rule, left in zip(rules, (200, 150), strict=True)]
    assert output_left(states, demand, only_clamping=True) == 150
    assert output_left(states, demand) == 100
    assert output_left((), demand) == -1


@pytest.mark.parametrize(
    ("unit", "demand", "param"),
    [
        ("nusd", Demand(10, 100_000, stated=True, price=PRICE), "max_tokens"),
        ("nusd", Demand(10**6, 16, price=PRICE), "messages"),
        ("input_tokens", Demand(10**6, 16, stated=True), "messages"),
        ("output_tokens", Demand(10, 10**6, stated=True), "max_tokens"),
    ],
)
def test_what_to_mend_is_what_is_too_much(unit, demand, param):
    with pytest.raises(BadRequest) as caught:
        rules_for((LimitSpec(ME, unit, 10_000, 60_000),), demand, NOW)
    assert caught.value.param == param
