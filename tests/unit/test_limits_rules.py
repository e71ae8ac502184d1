import pytest

from backends.core.errors import BadRequest
from gateway.domain.principal import LimitSpec
from gateway.limits.rules import MAX_AMOUNT, Demand, largest_output, rules_for

ME = "key:3f2a"


def test_every_unit_becomes_a_rule_with_its_amount_and_a_deterministic_name():
    limits = (
        LimitSpec(ME, "requests", 60, 60_000),
        LimitSpec(ME, "tokens", 10_000, 60_000),
        LimitSpec("team:red", "nusd", 5_000, 86_400_000),
        LimitSpec(ME, "slots", 8),
    )
    rules = rules_for(limits, Demand(input_tokens=100, output_cap=50, choices=3, nusd=77))
    assert [(r.name, r.kind, r.unit, r.limit, r.window_ms, r.cost) for r in rules] == [
        ("key:3f2a:requests:60000", "rate", "requests", 60, 60_000, 1),
        ("key:3f2a:tokens:60000", "rate", "tokens", 10_000, 60_000, 250),
        ("team:red:nusd:86400000", "rate", "nusd", 5_000, 86_400_000, 77),
        ("key:3f2a:slots", "lease", "slots", 8, 0, 1),
    ]


def test_outage_policy_is_the_limits_own_or_the_default():
    limits = (LimitSpec(ME, "requests", 60, 60_000), LimitSpec(ME, "slots", 8, on_outage="allow"))
    assert [r.on_outage for r in rules_for(limits, Demand(1))] == ["deny", "allow"]
    assert [r.on_outage for r in rules_for(limits, Demand(1), on_outage="allow")] == ["allow", "allow"]


def test_of_two_limits_on_one_counter_the_tighter_one_counts_once():
    limits = (LimitSpec(ME, "requests", 60, 60_000), LimitSpec(ME, "requests", 10, 60_000))
    (rule,) = rules_for(limits, Demand(1))
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
        rules_for((LimitSpec(ME, "tokens", 1000, 60_000),), demand)
    assert caught.value.param == param
    assert caught.value.status == 400


def test_a_demand_of_exactly_the_whole_limit_is_allowed():
    (rule,) = rules_for((LimitSpec(ME, "tokens", 1000, 60_000),), Demand(10, output_cap=990, stated=True))
    assert rule.cost == rule.limit


@pytest.mark.parametrize(
    "spec",
    [
        LimitSpec(ME, "tokens", MAX_AMOUNT + 1, 60_000),
        LimitSpec(ME, "tokens", -1, 60_000),
        LimitSpec(ME, "tokens", 10, 0),
        LimitSpec(ME, "tokens", 10, 401 * 86_400_000),
        LimitSpec(ME, "slots", 10, 60_000),
    ],
)
def test_limits_that_cannot_be_counted_exactly_are_refused(spec):
    with pytest.raises(ValueError):
        rules_for((spec,), Demand(1))


def test_largest_output_is_what_the_tightest_token_limit_leaves_per_choice():
    limits = (LimitSpec(ME, "tokens", 1000, 60_000), LimitSpec("team:a", "tokens", 400, 60_000), LimitSpec(ME, "slots", 1))
    assert largest_output(limits, Demand(100, choices=3)) == 100
    assert largest_output(limits, Demand(399)) == 16
    assert largest_output((LimitSpec(ME, "slots", 1),), Demand(100)) is None
