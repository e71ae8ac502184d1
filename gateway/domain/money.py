"""Money: integers of nano-USD; prices are pico-USD per token. Rounded once, here, upwards."""

from __future__ import annotations

from backends.core.usage import Usage
from gateway.domain.route import Deployment, Price, Route
from gateway.domain.settlement import LedgerRow

PICO_PER_NANO = 1000
#: 1 USD per million tokens, in pico-USD per token.
PICO_PER_USD_PER_MILLION = 1_000_000


def cost_nusd(usage: Usage, price: Price) -> int:
    """What an answer costs, in nano-USD. Cached input is billed at its own price."""
    cached = min(usage.cached_input_tokens, usage.input_tokens)
    pico = (usage.input_tokens - cached) * price.input + cached * price.cached_input + usage.output_tokens * price.output
    return -(-pico // PICO_PER_NANO)


def price_at(route: Route, deployment: Deployment, admitted_us: int) -> Price:
    """What a model's tokens cost at a deployment, for a request that was admitted at this instant (µs UTC)."""
    price = deployment.price
    for from_us, later in route.prices.get(deployment.id) or deployment.later_prices:
        if from_us > admitted_us:
            break
        price = later
    return price


def cost_of_row(row: LedgerRow, route: Route | None) -> int:
    """What a row's tokens cost, in nano-USD, by the price of its deployment, or at most, where that is not known."""
    usage = Usage(row.input_tokens, row.output_tokens, row.cached_input_tokens, row.reasoning_tokens)
    tiers = route.tiers if route is not None else ()
    found = next((one for tier in tiers for one in tier if one.id == row.deployment), None)
    if route is None or found is None:
        return cost_bound_nusd(usage, route, row.admitted_us)
    return cost_nusd(usage, price_at(route, found, row.admitted_us))


def cost_bound_nusd(usage: Usage, route: Route | None, admitted_us: int) -> int:
    """What an answer costs at most, in nano-USD, when nobody knows which deployment gave it; 0 without a route."""
    if route is None:
        return 0
    deployments = [one for tier in route.tiers for one in tier]
    return max((cost_nusd(usage, price_at(route, one, admitted_us)) for one in deployments), default=0)
