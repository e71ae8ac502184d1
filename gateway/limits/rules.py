"""From configured limits and one request's demand to the rules that the store checks: pure, deterministic.

A rule's name is its counter: `<scope>:<unit>:<window_ms>`, `<scope>:<unit>:<period>` (`2026-11-21`, `2026-11`) or
`<scope>:slots`; that of one model begins with `@<model> `. The limit is not part of it, so a changed limit goes on with
what was used already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from backends.core.errors import BadRequest
from gateway.domain.principal import LimitSpec, OnOutage, Unit
from gateway.domain.route import Price
from gateway.domain.settlement import Kind, Rule, RuleState
from gateway.limits.periods import period_of

#: Lua numbers are doubles: above this, integers are no longer exact. As a rule's limit: none.
MAX_AMOUNT = 2**53
#: 400 days; longer rolling windows would outlive the ledger that restores them.
MAX_WINDOW_MS = 400 * 86_400_000
#: An output cap that we choose ourselves is never below this.
LEAST_OUTPUT_TOKENS = 16
#: Units of which an answer uses the more, the longer it is.
GROWING: frozenset[Unit] = frozenset({"output_tokens", "tokens", "nusd"})
_PICO_PER_NANO = 1000
#: After every instant that a clock here can tell.
FOREVER_US = 2**63


class Demand(msgspec.Struct, frozen=True, gc=False):
    """What one request asks of the limits.

    `output_cap` is tokens per choice, the cap that the backend is told; 0 for work without output. `stated`: the
    client named that cap. `price` is the highest that it can be billed by. `input_param` is the client's name of the
    prompt.
    """

    input_tokens: int
    output_cap: int = 0
    choices: int = 1
    stated: bool = False
    price: Price = Price()
    input_param: str = "messages"

    @property
    def output_tokens(self) -> int:
        """The output cap of every choice."""
        return self.output_cap * self.choices

    @property
    def tokens(self) -> int:
        """The upper bound of what may be used: input plus the output cap of every choice."""
        return self.input_tokens + self.output_tokens

    @property
    def nusd(self) -> int:
        """The upper bound of the cost, nano-USD."""
        pico = self.input_tokens * self.price.input + self.output_tokens * self.price.output
        return -(-pico // _PICO_PER_NANO)

    def of(self, unit: Unit) -> int:
        """The amount in a unit."""
        if unit in ("requests", "slots"):
            return 1
        amount: int = getattr(self, unit)
        return amount

    def largest_cap(self, unit: Unit, left: int) -> int:
        """The output cap per choice at which this demand is no more than `left` of a unit; may be negative.

        The unit is one that grows with the output.
        """
        choices = max(1, self.choices)
        if unit == "output_tokens":
            return left // choices
        if unit == "tokens":
            return (left - self.input_tokens) // choices
        pico = left * _PICO_PER_NANO - self.input_tokens * self.price.input
        return pico // (self.price.output * choices) if self.price.output else MAX_AMOUNT if pico >= 0 else -1


def ceiling(prices: Iterable[Price]) -> Price:
    """The highest price that any of a route's deployments can bill by; a cached prompt is no discount to rely on."""
    listed = list(prices)
    highest = max([max(price.input, price.cached_input) for price in listed], default=0)
    return Price(highest, highest, max([price.output for price in listed], default=0))


def checked(spec: LimitSpec) -> LimitSpec:
    """A limit that the stores can count exactly.

    Raises:
        ValueError: limit or window outside of what Lua counts exactly, or a window where none belongs.
    """
    if not 0 <= spec.limit <= MAX_AMOUNT:
        raise ValueError(f"limit {spec.limit} of {spec.scope!r} must be between 0 and 2^53")
    if spec.unit == "slots" or spec.period is not None:
        if spec.window_ms or (spec.unit == "slots" and spec.period is not None):
            raise ValueError(f"concurrent requests and calendar periods of {spec.scope!r} have no window")
    elif not 1000 <= spec.window_ms <= MAX_WINDOW_MS:
        raise ValueError(f"window of {spec.scope!r} must be between one second and 400 days")
    return spec


def applying(limits: Sequence[LimitSpec], model: str) -> Sequence[LimitSpec]:
    """The limits that count a request for this model."""
    for spec in limits:
        if spec.model and spec.model != model:
            return [one for one in limits if not one.model or one.model == model]
    return limits


def owner_of(name: str) -> tuple[str, str]:
    """Whose counter a rule's name is (`key`, `user`, `team`, `organisation`, `model`, `gateway`), and of which model.

    The model is "" for a counter of all models together.
    """
    model = ""
    if name.startswith("@"):
        model, _, name = name[1:].partition(" ")
    return name.partition(":")[0], model


def counts_tokens(limits: Iterable[LimitSpec]) -> bool:
    """Whether some limit needs to know how long the prompt is."""
    return any(spec.unit not in ("requests", "slots") for spec in limits)


def bounds_output(limits: Iterable[LimitSpec]) -> bool:
    """Whether some limit needs to know beforehand how long the answer may be."""
    return any(spec.unit in GROWING and not spec.shadow for spec in limits)


def largest_output(limits: Iterable[LimitSpec], demand: Demand, *, only_clamping: bool = False) -> int | None:
    """The output tokens per choice that the whole limits leave beside the input; None = none of them bounds it.

    Never below `LEAST_OUTPUT_TOKENS`: `rules_for` refuses what does not fit. `only_clamping`: of the limits that may
    lower a cap that the client stated.
    """
    whole = [
        demand.largest_cap(spec.unit, spec.limit)
        for spec in limits
        if spec.unit in GROWING and not spec.shadow and (spec.on_insufficient == "clamp" or not only_clamping)
    ]
    return max(LEAST_OUTPUT_TOKENS, min(whole)) if whole else None


def output_left(states: Iterable[RuleState], demand: Demand, *, only_clamping: bool = False) -> int:
    """The output tokens per choice that the rules leave now, by what a refusal told of them; may be negative."""
    return min(
        (
            demand.largest_cap(state.rule.unit, state.remaining)
            for state in states
            if state.rule.unit in GROWING and (state.rule.clamps or not only_clamping)
        ),
        default=-1,
    )


class LimitPlan:
    """The limits of one principal on one route, made ready once: only amounts and instants are left for each request.

    Args:
        limits: the principal's and the model's, own and shared, that apply to the route.
        on_outage: for limits that do not say it themselves.

    Raises:
        ValueError: a limit that `checked` refuses.
    """

    __slots__ = (
        "_changing",
        "_enforced",
        "_from_us",
        "_on_outage",
        "_ready",
        "_units",
        "_until_us",
        "bounds_output",
        "clamps",
        "costs",
        "counts_tokens",
        "limits",
    )

    def __init__(self, limits: Iterable[LimitSpec], on_outage: OnOutage = "deny") -> None:
        self.limits = tuple(map(checked, limits))
        self.counts_tokens = counts_tokens(self.limits)
        self.bounds_output = bounds_output(self.limits)
        self.clamps = any(spec.on_insufficient == "clamp" for spec in self.limits)
        self.costs = any(spec.unit == "nusd" for spec in self.limits)
        self._ready: list[Rule] = []
        self._changing: list[tuple[int, Rule]] = []
        self._on_outage: OnOutage = on_outage
        self._units = tuple({spec.unit for spec in self.limits} - {"requests", "slots"})
        self._enforced = tuple(spec for spec in self.limits if not spec.shadow and spec.unit in self._units)
        self._from_us = self._until_us = 0

    def rules(self, demand: Demand, now_us: int) -> tuple[Rule, ...]:
        """The rules of one request, one per counter; where two limits share a counter the tighter one counts.

        Args:
            demand: this request's amounts.
            now_us: the store's clock, µs UTC: it decides the calendar periods.

        Raises:
            BadRequest: the demand is above a whole limit, so that waiting could never help.
        """
        amounts = {"requests": 1, "slots": 1}
        for unit in self._units:
            amounts[unit] = getattr(demand, unit)
        for spec in self._enforced:
            if amounts[spec.unit] > spec.limit:
                raise _never(spec, demand, amounts[spec.unit])
        if not self._from_us <= now_us < self._until_us:
            self._enter(now_us)
        rules = self._ready.copy()
        for at, rule in self._changing:
            if rule.ends_us:
                rules[at] = replace(rule, cost=amounts[rule.unit], window_ms=-(-(rule.ends_us - now_us) // 1000))
            else:
                rules[at] = replace(rule, cost=amounts[rule.unit])
        return tuple(rules)

    def _enter(self, now_us: int) -> None:
        """The names of calendar periods hold until the first of them ends."""
        rules: dict[str, Rule] = {}
        for spec in self.limits:
            rule = _rule(spec, now_us, self._on_outage)
            known = rules.get(rule.name)
            rules[rule.name] = rule if known is None else _tighter(known, rule)
        # One request is one request, and one slot: such a rule is the same each time, but for what is left of a period.
        self._ready = [rule if rule.ends_us or rule.unit in self._units else replace(rule, cost=1) for rule in rules.values()]
        self._changing = [(at, rule) for at, rule in enumerate(self._ready) if rule.cost == 0]
        self._from_us = now_us
        self._until_us = min([rule.ends_us for rule in self._ready if rule.ends_us], default=FOREVER_US)


def rules_for(limits: Iterable[LimitSpec], demand: Demand, now_us: int, *, on_outage: OnOutage = "deny") -> tuple[Rule, ...]:
    """The rules of one request: `LimitPlan.rules` for whoever asks once.

    Raises:
        BadRequest: the demand is above a whole limit, so that waiting could never help.
        ValueError: a limit that `checked` refuses.
    """
    return LimitPlan(limits, on_outage).rules(demand, now_us)


def _rule(spec: LimitSpec, now_us: int, on_outage: OnOutage) -> Rule:
    """The rule of a limit at an instant, for a demand of nothing."""
    scope = f"@{spec.model} {spec.scope}" if spec.model else spec.scope
    kind: Kind = "rate"
    window_ms, ends_us = spec.window_ms, 0
    if spec.unit == "slots":
        kind, name = "lease", f"{scope}:slots"
    elif spec.period is None:
        name = f"{scope}:{spec.unit}:{window_ms}"
    else:
        kind = "quota"
        period, ends_us = period_of(spec.period, spec.zone, now_us)
        name, window_ms = f"{scope}:{spec.unit}:{period}", -(-(ends_us - now_us) // 1000)
    if spec.shadow:
        limit, shadow, outage = MAX_AMOUNT, spec.limit, "allow"
    else:
        limit, shadow, outage = spec.limit, None, spec.on_outage or on_outage
    return Rule(
        name,
        kind,
        spec.unit,
        limit,
        window_ms,
        0,
        "allow" if outage == "allow" else "deny",
        shadow=shadow,
        ends_us=ends_us,
        clamps=spec.on_insufficient == "clamp",
    )


def _tighter(one: Rule, other: Rule) -> Rule:
    """Two limits of one counter as one rule: the lower enforced limit, and the lower shadow limit beside it."""
    tight, loose = (other, one) if other.limit < one.limit else (one, other)
    shadows = [rule.shadow for rule in (one, other) if rule.shadow is not None]
    enforced = [rule for rule in (one, other) if rule.limit < MAX_AMOUNT]
    return replace(
        tight,
        shadow=min(shadows) if shadows else None,
        on_outage="deny" if any(rule.on_outage == "deny" for rule in enforced) else tight.on_outage,
        clamps=tight.clamps and (loose.clamps or loose.limit == MAX_AMOUNT),
    )


def _never(spec: LimitSpec, demand: Demand, cost: int) -> BadRequest:
    what = {"nusd": "nano-USD", "input_tokens": "input tokens", "output_tokens": "output tokens"}.get(spec.unit, "tokens")
    if spec.unit in GROWING and (demand.stated or demand.largest_cap(spec.unit, spec.limit) >= LEAST_OUTPUT_TOKENS):
        param, mend = "max_tokens", "lower max_tokens"
    else:
        param, mend = demand.input_param, "shorten the input"
    return BadRequest(
        f"This request asks for up to {cost} {what}, more than the whole limit of {spec.limit}; {mend}.", param=param
    )
