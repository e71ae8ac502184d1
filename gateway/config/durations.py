"""Times as people type them: `30d`, `12h`, or a date. Pure: the present instant is an argument."""

from __future__ import annotations

import datetime
import re

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhdw])")
#: 100 years: more is a mistake.
MAX_S = 100 * 365 * 86_400


def parse_duration(text: str) -> int:
    """Seconds of `90s`, `45m`, `12h`, `30d` or `4w`.

    Raises:
        ValueError: another form, or more than 100 years.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError("write a number and s, m, h, d or w, for instance 30d")
    seconds = int(found[1]) * _UNITS_S[found[2]]
    if seconds > MAX_S:
        raise ValueError("at most 100 years")
    return seconds


def parse_expiry(text: str, now_us: int) -> int:
    """The instant (µs UTC) that a duration from now, a date or a date and time stands for; without a zone it is UTC.

    Raises:
        ValueError: none of these, or not in the future.
    """
    if _DURATION.fullmatch(text):
        return now_us + parse_duration(text) * 1_000_000
    try:
        instant = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("write a duration such as 30d, or a date such as 2027-01-31") from None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=datetime.UTC)
    since = instant - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    micros = since // datetime.timedelta(microseconds=1)
    if micros <= now_us:
        raise ValueError("this is in the past")
    return micros


def instant_text(micros: int | None) -> str:
    """An instant in µs UTC as `2027-01-31 00:00`, `-` for none."""
    if micros is None:
        return "-"
    return datetime.datetime.fromtimestamp(micros / 1_000_000, datetime.UTC).strftime("%Y-%m-%d %H:%M")
