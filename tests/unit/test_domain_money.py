"""What an answer costs, and at most costs."""

from __future__ import annotations

from backends.core.usage import Usage
from gateway.domain.money import cost_bound_nusd, cost_nusd
from gateway.domain.route import Deployment, Price, Route


def test_a_cost_is_rounded_up_once_and_cached_input_has_its_own_price():
    assert cost_nusd(Usage(3, 2, cached_input_tokens=1), Price(input=400, cached_input=100, output=50)) == 1
    assert cost_nusd(Usage(0, 0), Price(1, 1, 1)) == 0


def test_the_bound_is_the_dearest_deployment_for_this_very_usage():
    reads, writes = Deployment("a", "m", price=Price(9000, 9000, 0)), Deployment("b", "m", price=Price(0, 0, 5000))
    route = Route("m", ((reads,), (writes,)))
    assert cost_bound_nusd(Usage(10, 1), route) == 90
    assert cost_bound_nusd(Usage(1, 10), route) == 50
    assert cost_bound_nusd(Usage(1, 10), None) == 0
