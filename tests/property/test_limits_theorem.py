"""What is promised of every kind of limit at once: while actual <= reserved, none is ever exceeded, and none is charged
for what another refused. From configured limits to counters, across midnights, ends of months and changes of clocks."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.core.errors import BadRequest
from gateway.domain.principal import LimitSpec
from gateway.domain.route import Price
from gateway.limits.outbox import pack_charges, unpack_charges
from gateway.limits.periods import period_of
from gateway.limits.reference import Admitted, Counters
from gateway.limits.rules import MAX_AMOUNT, Demand, applying, rules_for

#: 2026-10-24T20:00Z: two hours before a Sunday of 25 hours in Berlin.
T0 = 1_792_872_000_000_000
HOUR_US = 3_600_000_000
ZONES = ("Europe/Berlin", "UTC", "America/Havana")
PRICE = Price(1000, 1000, 2000)
UNITS = ("requests", "input_tokens", "output_tokens", "tokens", "nusd")

limit_specs = st.builds(
    lambda owner, unit, limit, span, zone, model, shadow: LimitSpec(
        owner,
        unit,
        limit,
        span if isinstance(span, int) else 0,
        period=None if isinstance(span, int) else span,
        zone=zone,
        model=model,
        shadow=shadow,
    ),
    st.sampled_from(["key:a", "team:t"]),
    st.sampled_from(UNITS),
    st.one_of(st.integers(27, 60), st.integers(1, 40)),
    st.sampled_from([1000, 60_000, 3_600_000, "day", "month"]),
    st.sampled_from(ZONES),
    st.sampled_from(["", "big"]),
    st.booleans(),
)
specs_of_one_zone_each = st.lists(
    limit_specs, min_size=1, max_size=4, unique_by=lambda s: (s.scope, s.unit, s.window_ms, s.period, s.model)
)
#: How much time passes between two requests, about, µs: a window of every length has a pace at which it fills up.
paces = st.sampled_from([100_000, 6_000_000, 400_000_000, 2 * HOUR_US])
steps = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]),
        st.sampled_from(["big", "small"]),
        st.integers(0, 9),
        st.integers(0, 9),
        st.sampled_from([(1.0, 1.0), (1.0, 0.5), (0.0, 0.0)]),
        st.integers(0, 5),
    ),
    min_size=20,
    max_size=50,
)


class Entry(msgspec.Struct):
    """One admitted request: when, for which model, and what it is charged now, by unit."""

    at_us: int
    model: str
    charged: dict[str, int]


def amounts(tokens_in: int, tokens_out: int) -> dict[str, int]:
    used = Demand(tokens_in, tokens_out, price=PRICE)
    return {unit: used.of(unit) for unit in UNITS}


def check(spec: LimitSpec, entries: list[Entry]) -> None:
    """No window and no period of an enforced limit holds more than the limit."""
    charges = [(entry.at_us, entry.charged[spec.unit]) for entry in entries if spec.model in ("", entry.model)]
    if spec.period is None:
        sums = [sum(n for at, n in charges if start <= at <= start + spec.window_ms * 1000) for start, _ in charges]
    else:
        by_period: dict[str, int] = {}
        for at, amount in charges:
            name, _ = period_of(spec.period, spec.zone, at)
            by_period[name] = by_period.get(name, 0) + amount
        sums = list(by_period.values())
    assert all(total <= spec.limit for total in sums)


@settings(max_examples=200)
@given(specs=specs_of_one_zone_each, pace=paces, steps=steps, restart=st.sets(st.integers(0, 40), max_size=3))
def test_no_limit_is_ever_exceeded_whatever_its_kind(specs, pace, steps, restart):
    """Also over restarts that rebuild the counters from stored rows, which is what the embedded store does."""
    counters, now = Counters(), T0
    stored: dict[str, tuple[int, bytes]] = {}
    entries: dict[str, Entry] = {}
    waiting: list[tuple[int, str, tuple[int, int]]] = []
    enforced = [spec for spec in specs if not spec.shadow]
    for number, (step, model, tokens_in, cap, shares, delay) in enumerate(steps):
        now += int(step * pace)
        if number in restart:  # what was open stays charged in full: nobody will settle it
            counters, waiting = Counters(), []
            for admitted_us, charges in stored.values():
                for charge in unpack_charges(charges):
                    counters.record(charge.name, charge.kind, charge.window_ms, charge.amount, admitted_us, now)
        for due in [entry for entry in waiting if entry[0] <= number]:
            waiting.remove(due)
            used = amounts(*due[2])
            rules = counters.reserved(due[1])
            settled = [used[rule.unit] for rule in rules]
            assert counters.settle(due[1], settled, now).overruns == 0
            entries[due[1]].charged = used
            stored[due[1]] = (stored[due[1]][0], pack_charges(rules, settled))
        demand = Demand(tokens_in, cap, price=PRICE)
        ours = applying(specs, model)
        try:
            rules = rules_for(ours, demand, now)
        except BadRequest:
            assert any(demand.of(spec.unit) > spec.limit for spec in applying(enforced, model))
            continue
        before = counters.states(rules, 15_000, now)
        verdict = counters.admit(f"{number}", rules, 15_000, now)
        if isinstance(verdict, Admitted):
            entries[f"{number}"] = Entry(now, model, amounts(tokens_in, cap))
            stored[f"{number}"] = (now, pack_charges(rules, [rule.cost for rule in rules]))
            waiting.append((number + delay, f"{number}", (int(tokens_in * shares[0]), int(cap * shares[1]))))
        else:
            assert rules[verdict.index].limit < MAX_AMOUNT, "a shadow limit refused"
            assert counters.states(rules, 15_000, now) == before, "a refused request burnt something"
    for spec in enforced:
        check(spec, list(entries.values()))


@given(specs=specs_of_one_zone_each, pace=paces, steps=steps)
def test_shadow_limits_change_no_verdict(specs, pace, steps):
    with_shadows, without, now = Counters(), Counters(), T0
    enforced = [spec for spec in specs if not spec.shadow]
    for number, (step, model, tokens_in, cap, _, _) in enumerate(steps):
        now += int(step * pace)
        demand = Demand(tokens_in, cap, price=PRICE)
        try:
            both = [rules_for(applying(some, model), demand, now) for some in (specs, enforced)]
        except BadRequest:
            continue
        verdicts = [
            counters.admit(f"{number}", rules, 15_000, now)
            for counters, rules in zip((with_shadows, without), both, strict=True)
        ]
        assert type(verdicts[0]) is type(verdicts[1])


@given(specs=specs_of_one_zone_each, pace=paces, steps=steps)
def test_after_settlement_a_quota_holds_the_sum_of_what_was_used(specs, pace, steps):
    counters, now = Counters(), T0
    quotas = [msgspec.structs.replace(spec, limit=10**6) for spec in specs if spec.period is not None]
    used: dict[str, int] = {}
    for number, (step, model, tokens_in, cap, shares, _) in enumerate(steps):
        now += int(step * pace)
        rules = rules_for(applying(quotas, model), Demand(tokens_in, cap, price=PRICE), now)
        assert isinstance(counters.admit(f"{number}", rules, 15_000, now), Admitted)
        actual = amounts(int(tokens_in * shares[0]), cap + 3)  # a model that says more than its cap is counted too
        counters.settle(f"{number}", [actual[rule.unit] for rule in rules], now)
        for rule in rules:
            used[rule.name] = used.get(rule.name, 0) + actual[rule.unit]
            (state,) = counters.states([rule], 15_000, now)
            assert rule.limit - state.remaining == used[rule.name]
