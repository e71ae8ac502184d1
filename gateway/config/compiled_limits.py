"""Limits of the configuration file as the limiter reads them: amounts in base units, each with its owner and time zone."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gateway.config.entries import Limit
from gateway.domain.principal import LimitSpec, Period, Unit

_WINDOW_MS = {"second": 1000, "minute": 60_000, "hour": 3_600_000, "day": 86_400_000}
_PERIODS: dict[str, Period] = {"calendar_day": "day", "month": "month"}
_NUSD_PER_USD = 1_000_000_000
#: Scopes of limits that hold for each key or user: whoever knows the id puts `key:<id>` or `user:<name>` in its place.
ANY_KEY = "key"
ANY_USER = "user"
GATEWAY = "gateway"


def compile_limits(limits: Iterable[Limit], scope: str, zone: str = "") -> tuple[LimitSpec, ...]:
    """The limits of one owner.

    Args:
        limits: as validated.
        scope: names the counters' owner: `team:<name>`, `key:<id>`.
        zone: of calendar periods; "" leaves it to `bound`.
    """
    return tuple(_limit(one, scope, zone) for one in limits)


def bound(spec: LimitSpec, scope: str, zone: str) -> LimitSpec:
    """A limit that holds for each of many, as that of one owner. A zone of its own is kept."""
    if spec.scope == scope and (spec.period is None or spec.zone):
        return spec
    return msgspec.structs.replace(spec, scope=scope, zone=spec.zone or zone if spec.period else "")


def _limit(limit: Limit, scope: str, zone: str) -> LimitSpec:
    unit, amount = _amount(limit)
    period = _PERIODS.get(limit.per or "")
    return LimitSpec(
        scope,
        unit,
        amount,
        0 if limit.per is None or period is not None else _WINDOW_MS[limit.per],
        limit.on_outage,
        period=period,
        zone=zone if period is not None else "",
        model=limit.model or "",
        shadow=limit.shadow,
        on_insufficient=limit.on_insufficient,
    )


def _amount(limit: Limit) -> tuple[Unit, int]:
    if limit.usd is not None:
        return "nusd", int(limit.usd * _NUSD_PER_USD)
    stated: tuple[tuple[Unit, int | None], ...] = (
        ("requests", limit.requests),
        ("input_tokens", limit.input_tokens),
        ("output_tokens", limit.output_tokens),
        ("tokens", limit.tokens),
        ("slots", limit.concurrent),
    )
    for unit, amount in stated:
        if amount is not None:
            return unit, amount
    raise ValueError("a validated limit has an amount")
