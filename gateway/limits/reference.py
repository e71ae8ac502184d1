"""The maths of limits, in this process: the embedded store counts with it, and the Lua scripts are compared to it.

What a rate means: in no rolling window of its length is more admitted than its limit. A window W is counted in
sub-windows of ceil(W / 60): the 60 before the current one, and the current one, so every window of length W that ends
now lies inside what is summed. Hence a rule refuses for at most W + W/60, and sustains at least 60/61 of its limit.

A charge belongs to the sub-window of its admission. Settling for less takes the difference out of that sub-window
(nothing, when it has left already); settling for more puts it into the current one, where it may pass the limit and
blocks until it leaves. The clock of a rule never goes back.

Pure: no clock, no I/O; instants are arguments, µs UTC.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.domain.settlement import Kind, Rule, RuleState
from gateway.limits.rules import MAX_AMOUNT, MAX_WINDOW_MS

#: Sub-windows in a window, beside the current one.
SUBWINDOWS = 60
#: A slot comes back when somebody's request ends, which nobody can foretell: ask again after this.
SLOT_RETRY_MS = 1000
#: Expired leases do not count, but are dropped only in one second out of so many.
TIDY_S = 8
_PRUNE_EVERY = 1024


class Admitted(msgspec.Struct, frozen=True):
    """Every rule was charged; `states` are after it."""

    states: tuple[RuleState, ...]


class Refused(msgspec.Struct, frozen=True):
    """Nothing was charged. `index` is the first rule that refuses; `retry_after_ms` satisfies all that do.

    For rates it is exact: the earliest instant at which the same request would be admitted if nothing else came.
    """

    index: int
    retry_after_ms: int
    states: tuple[RuleState, ...]


class Settled(msgspec.Struct, frozen=True):
    """A reservation was replaced by what was used. `overruns` counts the rules that were used beyond the reserved."""

    overruns: int


class _Rate:
    """One rolling counter: charge per non-empty sub-window, their sum, and the last sub-window charged."""

    __slots__ = ("charges", "last", "sum", "width")

    def __init__(self, window_ms: int) -> None:
        self.width = subwindow_us(window_ms)
        self.last = -1
        self.sum = 0
        self.charges: dict[int, int] = {}

    def now(self, now_us: int) -> int:
        return max(now_us // self.width, self.last)

    def used(self, now_us: int) -> int:
        now = now_us // self.width
        if now <= self.last:
            return self.sum
        return sum([amount for at, amount in self.charges.items() if at >= now - SUBWINDOWS])

    def add(self, at: int, amount: int, now_us: int) -> None:
        now = self.now(now_us)
        if now != self.last:
            self.last = now
            for gone in [old for old in self.charges if old < now - SUBWINDOWS]:
                self.sum -= self.charges.pop(gone)
        self.change(at, min(amount, MAX_AMOUNT - self.sum))

    def change(self, at: int, amount: int) -> None:
        """Add to a sub-window that counts, or take from it."""
        self.charges[at] = self.charges.get(at, 0) + amount
        self.sum += amount

    def leaves_us(self, at: int) -> int:
        """When a sub-window stops counting."""
        return (at + SUBWINDOWS + 1) * self.width


class _Slots:
    """Who holds slots until when. None ends before `first`, so that mostly all count."""

    __slots__ = ("ends", "first")

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}
        self.first = 0

    def used(self, now_us: int) -> int:
        if now_us < self.first:
            return len(self.ends)
        self.first = min(self.ends.values(), default=0)
        return sum([end > now_us for end in self.ends.values()])

    def take(self, id: str, until_us: int) -> None:
        if not self.ends or until_us < self.first:
            self.first = until_us
        self.ends[id] = until_us

    def tidy(self, now_us: int) -> None:
        if now_us >= self.first:
            self.ends = {id: end for id, end in self.ends.items() if end > now_us}


class _Open(msgspec.Struct):
    """A reservation not settled: its rules, the sub-window of each rate charge, when it expires, its progress."""

    rules: tuple[Rule, ...]
    at: tuple[int, ...]
    admitted_us: int
    expires_us: int
    output_tokens: int = 0


def subwindow_us(window_ms: int) -> int:
    """The length of a sub-window, µs: 60 of them are never shorter than the window."""
    return -(-window_ms * 1000 // SUBWINDOWS)


def check_rules(rules: Sequence[Rule]) -> None:
    """Refuse rules that could not be counted exactly.

    Raises:
        ValueError: an amount outside 0..2^53, a window out of range, a lease of other than one slot, or a counter
            named twice.
    """
    if len({rule.name for rule in rules}) != len(rules):
        raise ValueError("two rules of one request share a counter")
    for rule in rules:
        check_rule(rule)


def check_rule(rule: Rule) -> None:
    """Refuse a rule that could not be counted exactly; see `check_rules`."""
    if not (0 <= rule.cost <= MAX_AMOUNT and 0 <= rule.limit <= MAX_AMOUNT):
        raise ValueError(f"rule {rule.name!r}: amounts must be between 0 and 2^53")
    if rule.kind == "lease":
        if rule.cost != 1:
            raise ValueError(f"rule {rule.name!r}: a lease is one slot")
    elif not 0 < rule.window_ms <= MAX_WINDOW_MS:
        raise ValueError(f"rule {rule.name!r}: window out of range")


class Counters:
    """All counters of one process.

    A quota's rule name names its period, and its `window_ms` is what is left of the period.
    """

    def __init__(self) -> None:
        self._rates: dict[str, _Rate] = {}
        self._quotas: dict[str, tuple[int, int]] = {}
        self._leases: dict[str, _Slots] = {}
        self._open: dict[str, _Open] = {}
        self._until_prune = _PRUNE_EVERY

    def admit(self, id: str, rules: Sequence[Rule], lease_ms: int, now_us: int) -> Admitted | Refused:
        """Charge every rule, or none.

        Raises:
            ValueError: this id is open already.
        """
        if id in self._open:
            raise ValueError(f"reservation {id} exists")
        used = [self._used(rule, now_us) for rule in rules]
        refusing = [index for index, rule in enumerate(rules) if used[index] + rule.cost > rule.limit]
        if refusing:
            retry_us = max([self._wait_us(rules[index], used[index], now_us) for index in refusing])
            return Refused(refusing[0], _ms(retry_us), self.states(rules, lease_ms, now_us))
        at = tuple([self._charge(id, rule, now_us + lease_ms * 1000, now_us) for rule in rules])
        self._open[id] = _Open(tuple(rules), at, now_us, now_us + lease_ms * 1000)
        self._until_prune -= 1
        if not self._until_prune:
            self.prune(now_us)
        return Admitted(self.states(rules, lease_ms, now_us))

    def settle(self, id: str, actual: Sequence[int], now_us: int) -> Settled | None:
        """Replace the reserved by the actual amounts and free the slots; None when this id is not open."""
        opened = self._open.pop(id, None)
        if opened is None:
            return None
        overruns = 0
        for rule, at, used in zip(opened.rules, opened.at, actual, strict=True):
            if rule.kind == "lease":
                if (held := self._leases.get(rule.name)) is not None:
                    held.ends.pop(id, None)
                continue
            more = used - rule.cost
            overruns += more > 0
            if rule.kind == "quota":
                amount, ends_us = self._quotas.get(rule.name, (0, now_us + rule.window_ms * 1000))
                if more > 0 or rule.name in self._quotas:
                    self._quotas[rule.name] = (amount + min(more, MAX_AMOUNT - amount), ends_us)
            elif more > 0:
                rate = self._rate(rule.name, rule.window_ms)
                rate.add(rate.now(now_us), more, now_us)
            elif more < 0 and (known := self._rates.get(rule.name)) is not None and at in known.charges:
                known.change(at, more)
        return Settled(overruns)

    def renew(self, id: str, slots: Sequence[str], output_tokens: int, lease_ms: int, now_us: int) -> None:
        """Prolong a live request's leases, even above the limit when one was lost, and note its progress."""
        for name in slots:
            self._slots(name).take(id, now_us + lease_ms * 1000)
        opened = self._open.get(id)
        if opened is not None:
            opened.expires_us = now_us + lease_ms * 1000
            opened.output_tokens = output_tokens

    def expired(self, now_us: int) -> list[str]:
        """The open reservations that nobody renewed in time."""
        return [id for id, opened in self._open.items() if opened.expires_us <= now_us]

    def reserved(self, id: str) -> tuple[Rule, ...] | None:
        """The rules of an open reservation."""
        opened = self._open.get(id)
        return None if opened is None else opened.rules

    def record(self, name: str, kind: Kind, window_ms: int, amount: int, admitted_us: int, now_us: int) -> None:
        """Count, unasked, what was admitted at another instant: after a restart or an outage. Leases are not restored.

        What is older than its window is dropped; an instant of the future counts as now.
        """
        if kind == "rate":
            rate = self._rate(name, window_ms)
            at = min(admitted_us // rate.width, rate.now(now_us))
            if at >= rate.now(now_us) - SUBWINDOWS:
                rate.add(at, amount, now_us)
        elif kind == "quota":
            ends_us = admitted_us + window_ms * 1000
            if ends_us > now_us:
                known, ends_us = self._quotas.get(name, (0, ends_us))
                self._quotas[name] = (known + min(amount, MAX_AMOUNT - known), ends_us)

    def stepped_back(self, by_us: int) -> None:
        """The clock was set back: what is charged stays as old as it was, to a sub-window of its rate."""
        for rate in self._rates.values():
            steps = by_us // rate.width
            rate.last -= steps
            rate.charges = {at - steps: amount for at, amount in rate.charges.items()}
        for held in self._leases.values():
            held.first -= by_us
            held.ends = {id: end - by_us for id, end in held.ends.items()}
        for opened in self._open.values():
            pairs = zip(opened.rules, opened.at, strict=True)
            opened.at = tuple([at - by_us // subwindow_us(rule.window_ms) if rule.kind == "rate" else at for rule, at in pairs])
            opened.expires_us -= by_us

    def states(self, rules: Sequence[Rule], lease_ms: int, now_us: int) -> tuple[RuleState, ...]:
        """What is left of these rules now."""
        return tuple([self._state(rule, lease_ms, now_us) for rule in rules])

    def prune(self, now_us: int) -> None:
        """Forget counters that hold nothing any more."""
        self._until_prune = _PRUNE_EVERY
        for name in [name for name, rate in self._rates.items() if rate.leaves_us(rate.last) <= now_us]:
            del self._rates[name]
        for name in [name for name, (_, ends_us) in self._quotas.items() if ends_us <= now_us]:
            del self._quotas[name]
        for name in [name for name, held in self._leases.items() if not held.used(now_us)]:
            del self._leases[name]

    def _rate(self, name: str, window_ms: int) -> _Rate:
        rate = self._rates.get(name)
        if rate is None:
            rate = self._rates[name] = _Rate(window_ms)
        return rate

    def _slots(self, name: str) -> _Slots:
        held = self._leases.get(name)
        if held is None:
            held = self._leases[name] = _Slots()
        return held

    def _used(self, rule: Rule, now_us: int) -> int:
        if rule.kind == "lease":
            held = self._leases.get(rule.name)
            return 0 if held is None else held.used(now_us)
        if rule.kind == "quota":
            return self._quotas.get(rule.name, (0, 0))[0]
        rate = self._rates.get(rule.name)
        return 0 if rate is None else rate.used(now_us)

    def _wait_us(self, rule: Rule, used: int, now_us: int) -> int:
        """After how many µs a rule that refuses now would admit."""
        over = used + rule.cost - rule.limit
        if rule.kind == "quota":
            return rule.window_ms * 1000
        if rule.kind == "lease":
            ends = sorted(end for end in self._slots(rule.name).ends.values() if end > now_us)
            first_free = ends[over - 1] - now_us if over <= len(ends) else SLOT_RETRY_MS * 1000
            return min(first_free, SLOT_RETRY_MS * 1000)
        rate = self._rates.get(rule.name) or _Rate(rule.window_ms)
        now = rate.now(now_us)
        for at in sorted(at for at in rate.charges if at >= now - SUBWINDOWS):
            over -= rate.charges[at]
            if over <= 0:
                return rate.leaves_us(at) - now_us
        return rate.leaves_us(now) - now_us

    def _charge(self, id: str, rule: Rule, expires_us: int, now_us: int) -> int:
        """Charge one rule; the sub-window that it was charged to, 0 for other kinds."""
        if rule.kind == "lease":
            held = self._slots(rule.name)
            if now_us // 1_000_000 % TIDY_S == 0:
                held.tidy(now_us)
            held.take(id, expires_us)
            return 0
        if rule.kind == "quota":
            used, _ = self._quotas.get(rule.name, (0, 0))
            self._quotas[rule.name] = (used + rule.cost, now_us + rule.window_ms * 1000)
            return 0
        rate = self._rate(rule.name, rule.window_ms)
        at = rate.now(now_us)
        rate.add(at, rule.cost, now_us)
        return at

    def _state(self, rule: Rule, lease_ms: int, now_us: int) -> RuleState:
        used = self._used(rule, now_us)
        remaining = max(0, rule.limit - used)
        if not used:
            return RuleState(rule, remaining, 0)
        if rule.kind == "lease":
            return RuleState(rule, remaining, lease_ms)
        if rule.kind == "quota":
            return RuleState(rule, remaining, rule.window_ms)
        rate = self._rates[rule.name]
        return RuleState(rule, remaining, _ms(rate.leaves_us(rate.last) - now_us))


def _ms(us: int) -> int:
    return -(-us // 1000)
