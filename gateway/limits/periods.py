"""Calendar periods: which day or month an instant lies in, and when that ends, by the wall clock of a time zone. Pure.

A period begins at its first midnight. Where that midnight does not exist (the clock leaps over it) it begins with the
first instant after; where it comes twice, with the first. So a day may have 23 or 25 hours, and no instant lies in two.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from gateway.domain.principal import Period

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
#: The longest period: a month of 31 days in which clocks went back, µs. What restores counters reaches back so far.
LONGEST_PERIOD_US = 32 * 86_400_000_000


def period_of(period: Period, zone: str, now_us: int) -> tuple[str, int]:
    """The name (`2026-11-21` or `2026-11`) and the end (µs UTC, exclusive) of the period that an instant lies in.

    Args:
        period: its kind.
        zone: IANA name; "" = UTC.
        now_us: the instant, µs UTC.

    Raises:
        ValueError, zoneinfo.ZoneInfoNotFoundError: no such zone.
    """
    here = ZoneInfo(zone or "UTC")
    # Whole seconds: midnights are whole seconds, and a float of the microseconds could round up into the next period.
    today = datetime.fromtimestamp(now_us // 1_000_000, here)
    if period == "day":
        name, next_day = f"{today:%Y-%m-%d}", today.date() + timedelta(days=1)
    else:
        name, next_day = f"{today:%Y-%m}", (today.date().replace(day=1) + timedelta(days=31)).replace(day=1)
    midnight = datetime(next_day.year, next_day.month, next_day.day, tzinfo=here)  # fold=0: the first one
    return name, (midnight - _EPOCH) // _MICROSECOND


def begins_us(period: Period, zone: str, now_us: int) -> int:
    """The first instant (µs UTC) of the period that an instant lies in; arguments and errors as `period_of`."""
    here = ZoneInfo(zone or "UTC")
    today = datetime.fromtimestamp(now_us // 1_000_000, here).date()
    first = today if period == "day" else today.replace(day=1)
    return (datetime(first.year, first.month, first.day, tzinfo=here) - _EPOCH) // _MICROSECOND
