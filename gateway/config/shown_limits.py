"""Limits as people write them: the inverse of `compiled_limits`, for reports. Pure."""

from __future__ import annotations

from decimal import Decimal

from gateway.domain.money import PICO_PER_USD_PER_MILLION
from gateway.domain.principal import LimitSpec

_PER = {1000: "second", 60_000: "minute", 3_600_000: "hour", 86_400_000: "day"}
_NUSD_PER_USD = 1_000_000_000


def shown_limit(spec: LimitSpec) -> dict[str, object]:
    """A limit as the configuration and the admin API write it: `{"tokens": 1000, "per": "minute"}`.

    A window that has no name is shown as `per_ms`.
    """
    shown: dict[str, object] = {}
    if spec.unit == "nusd":
        shown["usd"] = usd(spec.limit)
    else:
        shown["concurrent" if spec.unit == "slots" else spec.unit] = spec.limit
    if spec.period is not None:
        shown["per"] = "calendar_day" if spec.period == "day" else spec.period
    elif spec.window_ms in _PER:
        shown["per"] = _PER[spec.window_ms]
    elif spec.window_ms:
        shown["per_ms"] = spec.window_ms
    if spec.model:
        shown["model"] = spec.model
    if spec.shadow:
        shown["shadow"] = True
    if spec.on_outage is not None:
        shown["on_outage"] = spec.on_outage
    if spec.on_insufficient is not None:
        shown["on_insufficient"] = spec.on_insufficient
    return shown


def limit_text(spec: LimitSpec) -> str:
    """A limit in a table's cell: `1000 tokens/minute`."""
    shown = shown_limit(spec)
    unit, amount = next(iter(shown.items()))
    per = f"/{shown['per']}" if "per" in shown else ""
    return f"{amount} {unit}{per}" + (f" of {spec.model}" if spec.model else "") + (" (shadow)" if spec.shadow else "")


def usd(nusd: int) -> str:
    """Nano-USD as USD, exactly: `0.000000001`, `12`."""
    text = format(Decimal(nusd) / _NUSD_PER_USD, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def usd_per_million(pico: int) -> str:
    """A price in pico-USD per token as USD per million tokens, exactly."""
    text = format(Decimal(pico) / PICO_PER_USD_PER_MILLION, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
