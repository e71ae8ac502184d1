"""What an answer costs, and at most costs."""

from __future__ import annotations

from backends.core.usage import Usage
from gateway.domain.money import cost_bound_nusd, cost_nusd, price_at
from gateway.domain.route import Deployment, Price, Route


def test_a_cost_is_rounded_up_once_and_cached_input_has_its_own_price():
    assert cost_nusd(Usage(3, 2, cached_input_tokens=1), Price(input=400, cached_input=100, output=50)) == 1
    assert cost_nusd(Usage(0, 0), Price(1, 1, 1)) == 0


def test_the_bound_is_the_dearest_deployment_for_this_very_usage():
    reads, writes = Deployment("a", "m", price=Price(9000, 9000, 0)), Deployment("b", "m", price=Price(0, 0, 5000))
    route = Route("m", ((reads,), (writes,)))
    assert cost_bound_nusd(Usage(10, 1), route, 0) == 90
    assert cost_bound_nusd(Usage(1, 10), route, 0) == 50
    assert cost_bound_nusd(Usage(1, 10), None, 0) == 0


def test_a_price_holds_from_its_instant_on():
    early, middle, late = Price(1000, 500, 0), Price(2000, 0, 0), Price(3000, 0, 0)
    one = Deployment("a", "m", price=early, later_prices=((10, middle), (20, late)))
    route = Route("m", ((one,),))
    assert [price_at(route, one, at) for at in (0, 9, 10, 19, 20, 2**60)] == [early, early, middle, middle, late, late]
    assert cost_bound_nusd(Usage(5, 0), route, 15) == 10


def test_the_databases_price_of_a_model_holds_where_it_has_one():
    one, other = Deployment("a", "m"), Deployment("b", "m")
    route = Route("m", ((one, other),), prices={"a": ((10, Price(2000)),)})
    assert [price_at(route, one, at).input for at in (9, 10)] == [0, 2000]
    assert price_at(route, other, 10) == Price()
