"""Prices of the configuration file in base units: pico-USD per token, from an instant on in µs UTC. Pure."""

from __future__ import annotations

import datetime
from decimal import Decimal

from gateway.config.dynamic import PriceEntry
from gateway.domain.money import PICO_PER_USD_PER_MILLION
from gateway.domain.route import Price


def compiled_price(price: PriceEntry) -> Price:
    """A price in pico-USD per token; cached input costs as input where nothing is said of it."""
    cached = price.input if price.cached_input is None else price.cached_input
    return Price(_pico(price.input), _pico(cached), _pico(price.output))


def _pico(usd_per_million: Decimal) -> int:
    return int(usd_per_million * PICO_PER_USD_PER_MILLION)


def micros(instant: datetime.datetime) -> int:
    """An instant with a time zone, µs UTC."""
    return (instant - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)
