"""Numbers between bounds as GBNF, digit by digit. Pure.

Numbers are written without exponents here, with at most PLACES digits behind the point, and at most WHOLE where no bound
asks for more: a number that would be longer is one that a model would never end.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

PLACES = 15
WHOLE = 16
#: Bounds of more digits than this are refused below, and do not matter above.
_MOST_DIGITS = 30


class NumberError(ValueError):
    """No such number can be said; the message is for the client."""


class NoNumber(NumberError):
    """There is no number between the bounds."""


class Bounds(msgspec.Struct, frozen=True):
    """None: none. `above` and `below`: the bound itself is excluded."""

    low: Decimal | None = None
    high: Decimal | None = None
    above: bool = False
    below: bool = False

    def mirrored(self) -> Bounds:
        """Of the same numbers with the other sign."""
        return Bounds(
            None if self.high is None else -self.high, None if self.low is None else -self.low, self.below, self.above
        )


def integers(bounds: Bounds) -> str:
    """Whole numbers. Raises NoNumber where there is none."""
    low = None if bounds.low is None else _rounded(bounds.low, up=True, beyond=bounds.above)
    high = None if bounds.high is None else _rounded(bounds.high, up=False, beyond=bounds.below)
    ways = []
    if high is None or high >= 0:
        ways += _naturals(max(0, low or 0), high)
    if low is None or low < 0:
        smallest = 1 if high is None or high >= 0 else -high
        ways += [f'"-" {way}' for way in _naturals(smallest, None if low is None else -low)]
    if not ways:
        raise NoNumber("bounds between which there is no whole number")
    return "(" + " | ".join(ways) + ")"


def decimals(bounds: Bounds, places: int = PLACES) -> str:
    """Numbers with at most so many places behind the point. Raises NoNumber where there is none."""
    ways = _not_negative(bounds, places)
    if bounds.low is None or bounds.low < 0:
        mirrored = bounds.mirrored()
        ways += [f'"-" {way}' for way in _not_negative(mirrored, places)]
    if not ways:
        raise NoNumber("bounds between which there is no number")
    return "(" + " | ".join(ways) + ")"


def _rounded(bound: Decimal, *, up: bool, beyond: bool) -> int:
    """The whole number at a bound or next to it, inwards."""
    if abs(bound.adjusted()) > 400:
        raise NumberError("a bound that is too far away")
    whole = int(bound.to_integral_value("ROUND_CEILING" if up else "ROUND_FLOOR"))
    return whole + (1 if up else -1) if beyond and whole == bound else whole


def _naturals(low: int, high: int | None) -> list[str]:
    """Of whole numbers from 0 on; one way for each count of digits."""
    if len(str(low)) > _MOST_DIGITS:
        raise NumberError("a bound that is too far away")
    if high is not None and len(str(high)) > _MOST_DIGITS:
        high = None
    digits = len(str(low))
    if high is None:
        longer = f"[1-9] [0-9]{{{digits},{max(digits, WHOLE - 1)}}}"
        return [_between(str(low), "9" * digits), longer]
    if high < low:
        return []
    ways = []
    for count in range(digits, len(str(high)) + 1):
        first = str(max(low, 10 ** (count - 1) if count > 1 else 0))
        ways.append(_between(first, str(min(high, 10**count - 1))))
    return ways


def _between(low: str, high: str) -> str:
    """Of as many digits as the two have, which are as many."""
    if not low:
        return '""'
    if low == "0" * len(low) and high == "9" * len(high):
        return f"[0-9]{{{len(low)},{len(low)}}}"
    if low[0] == high[0]:
        return f'"{low[0]}" {_between(low[1:], high[1:])}' if low[1:] else f'"{low[0]}"'
    rest = len(low) - 1
    if not rest:
        return f"[{low}-{high}]"
    ways = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        ways.append(f'"{first}" {_between(low[1:], "9" * rest)}')
        first += 1
    if high[1:] != "9" * rest:
        ways.append(f'"{last}" {_between("0" * rest, high[1:])}')
        last -= 1
    if first <= last:
        ways.append(f"[{first}-{last}] [0-9]{{{rest},{rest}}}")
    return "(" + " | ".join(ways) + ")"


def _not_negative(bounds: Bounds, places: int) -> list[str]:
    """Of numbers from 0 on, as whole parts each with what may follow them."""
    if bounds.high is not None and bounds.high < 0:
        return []
    low, above = (bounds.low, bounds.above) if bounds.low is not None and bounds.low >= 0 else (Decimal(0), False)
    for bound in (low, bounds.high):
        if bound is not None and abs(bound.adjusted()) > 400:
            raise NumberError("a bound that is too far away")
    if bounds.high is not None and bounds.high < low:
        return []
    whole, part = _split(low)
    begin = (part, above)
    if bounds.high is None or (top := _split(bounds.high))[0] > 10**_MOST_DIGITS:
        first = _whole(whole, _fraction(begin, None, places))
        return first + [f"{way} {_free(places)}" for way in _naturals(whole + 1, None)]
    end = (top[1], bounds.below)
    if top[0] == whole:
        return _whole(whole, _fraction(begin, end, places))
    ways = _whole(whole, _fraction(begin, None, places)) + _whole(top[0], _fraction(None, end, places))
    if whole + 1 <= top[0] - 1:
        ways += [f"{way} {_free(places)}" for way in _naturals(whole + 1, top[0] - 1)]
    return ways


def _split(bound: Decimal) -> tuple[int, str]:
    """The whole part, and the digits behind the point without zeros at the end."""
    whole, _, part = format(bound, "f").partition(".")
    if len(part) > 400:
        raise NumberError("a bound with too many digits")
    return int(whole), part.rstrip("0")


def _whole(number: int, fraction: str | None) -> list[str]:
    if len(str(number)) > _MOST_DIGITS:
        raise NumberError("a bound that is too far away")
    return [] if fraction is None else [f'"{number}" {fraction}']


def _free(places: int) -> str:
    return f'("." [0-9]{{1,{places}}})?' if places else '""'


#: Digits behind the point that bound others, and whether they themselves are excluded.
_Edge = tuple[str, bool] | None


def _fraction(low: _Edge, high: _Edge, places: int) -> str | None:
    """What may stand behind a whole number, with its point; None for nothing at all, not even an end."""
    empty, ways = _digits(low, high, places)
    found = [f'"." ({" | ".join(ways)})'] if ways else []
    if empty:
        found.append('""')
    return "(" + " | ".join(found) + ")" if found else None


def _digits(low: _Edge, high: _Edge, places: int) -> tuple[bool, list[str]]:
    """Digits of a fraction between two: whether none will do, and how some may go on."""
    if low == ("", False):
        low = None
    empty = low is None and not (high is not None and high == ("", True))
    if not places or high == ("", True):
        return empty, []
    if low is None and high is None:
        return empty, [f"[0-9]{{1,{places}}}"]
    if high is None and low is not None and not low[0]:  # above 0: zeros, then one that is not
        return empty, [f"[0]{{0,{places - 1}}} [1-9]" + (f" [0-9]{{0,{places - 1}}}" if places > 1 else "")]
    first = int(low[0][0]) if low is not None and low[0] else 0
    last = int(high[0][0]) if high is not None and high[0] else (9 if high is None else 0)
    ways = []
    for digit in range(first, last + 1):
        next_low = (low[0][1:], low[1]) if low is not None and digit == first else None
        next_high = (high[0][1:], high[1]) if high is not None and digit == last else None
        if next_low is None and next_high is None:
            continue
        more_empty, more = _digits(next_low, next_high, places - 1)
        ways += [f'"{digit}" {way}' for way in more] + ([f'"{digit}"'] if more_empty else [])
    inner_first = first + (low is not None)
    inner_last = last - (high is not None)
    if inner_first <= inner_last:
        rest = f" [0-9]{{0,{places - 1}}}" if places > 1 else ""
        ways.append(f"[{inner_first}-{inner_last}]{rest}")
    return empty, ways
