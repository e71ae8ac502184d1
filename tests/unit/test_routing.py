"""Policies, breaker, eligibility and the catalog."""

from collections import Counter
from contextlib import asynccontextmanager

import pytest

from backends.core.errors import UnsupportedParameter, UpstreamOverloaded, UpstreamRejected, UpstreamUnavailable
from backends.core.request import GenerationRequest, Message, Sampling, Text
from gateway.domain.route import Deployment, Route
from gateway.routing.breaker import FIRST_PAUSE_US, LONGEST_PAUSE_US, THRESHOLD, Breaker
from gateway.routing.catalog import NEEDS_OUTPUT_CAP, Catalog
from gateway.routing.eligibility import eligible
from gateway.routing.policies import POLICIES

A, B, C = (Deployment(id, "m") for id in "abc")
JOB = GenerationRequest("m", messages=(Message("user", (Text("hi"),)),), sampling=Sampling(top_k=3))


def chance(values):
    stream = iter(values)
    return lambda: next(stream)


def test_round_robin_gives_each_its_turn():
    orders = [POLICIES["round_robin"]((A, B, C), {}, {}, chance([]), turn) for turn in range(6)]
    assert Counter(order[0].id for order in orders) == {"a": 2, "b": 2, "c": 2}
    assert all(sorted(one.id for one in order) == ["a", "b", "c"] for order in orders)


def test_least_busy_counts_per_weight_and_breaks_ties_in_turn():
    order = POLICIES["least_busy"]((A, B), {"b": 4}, {"a": 1, "b": 3}, chance([]), 0)
    assert [one.id for one in order] == ["b", "a"]
    firsts = {POLICIES["least_busy"]((A, B, C), {}, {}, chance([]), turn)[0].id for turn in range(3)}
    assert firsts == {"a", "b", "c"}


def test_weighted_follows_the_weights():
    import random

    uniform = random.Random(7).random
    firsts = Counter(POLICIES["weighted"]((A, B), {"a": 3}, {}, uniform, 0)[0].id for _ in range(4000))
    assert 0.70 < firsts["a"] / 4000 < 0.80


def test_breaker_opens_after_the_threshold_and_doubles_its_pause():
    breaker = Breaker()
    for _ in range(THRESHOLD - 1):
        breaker.record(False, 0)
    assert breaker.healthy(0)
    breaker.record(False, 0)
    assert not breaker.healthy(FIRST_PAUSE_US - 1)
    assert breaker.healthy(FIRST_PAUSE_US)
    breaker.record(False, FIRST_PAUSE_US)
    assert not breaker.healthy(FIRST_PAUSE_US * 3 - 1)
    now = 0
    for _ in range(20):
        now += LONGEST_PAUSE_US
        breaker.record(False, now)
    assert not breaker.healthy(now + LONGEST_PAUSE_US - 1)
    breaker.record(True, now)
    assert breaker.healthy(now)


def test_only_deployments_that_can_are_eligible():
    route = Route("m", ((A, B), (C,)))
    able = frozenset({"chat", "top_k"})
    tiers = eligible(JOB, route, {"a": frozenset({"chat"}), "b": able, "c": able})
    assert [[one.id for one in tier] for tier in tiers] == [["b"], ["c"]]
    with pytest.raises(UnsupportedParameter) as error:
        eligible(JOB, route, dict.fromkeys("abc", frozenset({"chat"})))
    assert error.value.param == "top_k"


class Nothing:
    @asynccontextmanager
    async def open(self, job, leaving=None):
        yield

    async def aclose(self):
        pass


def catalog(capabilities=frozenset({"chat", "top_k"}), before=None, deployments=(A, B, C)):
    return Catalog({one.id: one for one in deployments}, lambda _: (Nothing(), capabilities), before)


def test_what_looks_ill_is_tried_last_and_a_busy_place_is_not_ill():
    route = Route("m", ((A, B), (C,)), policy="round_robin")
    places = catalog()
    for _ in range(THRESHOLD):
        places.places["a"].record(UpstreamUnavailable("x"), 0)
        places.places["b"].record(UpstreamOverloaded("x"), 0)
        places.places["c"].record(UpstreamRejected("x"), 0)
    plan = places.plan(route, JOB, 1, chance([0.5] * 9))
    assert [[place.deployment.id for place in tier] for tier in plan] == [["b"], ["c"], ["a"]]


def test_a_reload_keeps_unchanged_places_and_retires_the_others():
    before = catalog()
    changed = Deployment("b", "other")
    after = catalog(before=before, deployments=(A, changed))
    assert after.places["a"] is before.places["a"]
    assert after.places["b"] is not before.places["b"]
    assert {place.deployment.id for place in after.retired} == {"b", "c"}


def test_a_route_needs_a_cap_when_one_of_its_deployments_does():
    can = {"a": frozenset({"chat"}), "b": frozenset({"chat", NEEDS_OUTPUT_CAP})}
    places = Catalog({"a": A, "b": B}, lambda deployment: (None, can[deployment.id]))
    assert places.needs_output_cap(Route("m", ((A,), (B,))))
    assert not places.needs_output_cap(Route("m", ((A,),)))
