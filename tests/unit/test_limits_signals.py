import pytest

from gateway.domain.settlement import Rule, RuleState
from gateway.limits.rules import MAX_AMOUNT
from gateway.limits.signals import labels, near_header, signals


def state(remaining, limit=1000, kind="rate", shadow=None, name="key:a:tokens:60000"):
    return RuleState(Rule(name, kind, "tokens", limit, 60_000, 1, shadow=shadow), remaining, 23_000)


@pytest.mark.parametrize(("remaining", "told"), [(201, False), (200, True), (0, True)])
def test_a_limit_is_near_when_four_fifths_are_taken(remaining, told):
    assert bool(signals([state(remaining)])[0]) is told


def test_slots_and_shadow_limits_are_not_near():
    close, _ = signals([state(0, kind="lease"), state(0, limit=MAX_AMOUNT, shadow=1)])
    assert close == []


@pytest.mark.parametrize(("used", "over"), [(60, False), (61, True)])
def test_a_shadow_limit_would_have_refused_what_is_above_it(used, over):
    alone = state(MAX_AMOUNT - used, limit=MAX_AMOUNT, shadow=60)
    beside = state(1000 - used, shadow=60)
    assert [bool(signals([one])[1]) for one in (alone, beside, state(0))] == [over, over, False]


def test_the_header_names_scope_unit_and_what_is_left_but_not_whose_it_is():
    states = [state(20), state(3, name="@big team:red:nusd:2026-11")]
    assert near_header(states) == (
        b"key;unit=tokens;limit=1000;remaining=20;reset=23s, team_model;unit=tokens;limit=1000;remaining=3;reset=23s"
    )
    assert labels(states[1]) == ("team_model", "tokens")
