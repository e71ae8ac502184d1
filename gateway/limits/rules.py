"""From configured limits and one request's demand to the rules that the store checks: pure, deterministic.

A rule's name is its counter: `<scope>:<unit>:<window_ms>`, or `<scope>:slots`. The limit is not part of it, so a
changed limit goes on with what was used already.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from backends.core.errors import BadRequest
from gateway.domain.principal import LimitSpec
from gateway.domain.settlement import Kind, Rule

#: Lua numbers are doubles: above this, integers are no longer exact.
MAX_AMOUNT = 2**53
#: 400 days; longer rolling windows would outlive the ledger that restores them.
MAX_WINDOW_MS = 400 * 86_400_000
#: An output cap that we choose ourselves is never below this.
LEAST_OUTPUT_TOKENS = 16


class Demand(msgspec.Struct, frozen=True):
    """What one request asks of the limits.

    `output_cap` is tokens per choice, the cap that the backend is told; 0 for work without output. `stated`: the
    client named that cap. `nusd` is the highest price it can come to. `input_param` is the client's name of the prompt.
    """

    input_tokens: int
    output_cap: int = 0
    choices: int = 1
    stated: bool = False
    nusd: int = 0
    input_param: str = "messages"

    @property
    def tokens(self) -> int:
        """The upper bound of what may be used: input plus the output cap of every choice."""
        return self.input_tokens + self.output_cap * self.choices


def checked(spec: LimitSpec) -> LimitSpec:
    """A limit that the stores can count exactly.

    Raises:
        ValueError: limit or window outside of what Lua counts exactly, or a window where none belongs.
    """
    if not 0 <= spec.limit <= MAX_AMOUNT:
        raise ValueError(f"limit {spec.limit} of {spec.scope!r} must be between 0 and 2^53")
    if spec.unit == "slots":
        if spec.window_ms:
            raise ValueError(f"concurrent requests of {spec.scope!r} have no window")
    elif not 1000 <= spec.window_ms <= MAX_WINDOW_MS:
        raise ValueError(f"window of {spec.scope!r} must be between one second and 400 days")
    return spec


def rule_name(spec: LimitSpec) -> str:
    """The stored name of a limit's counter."""
    return f"{spec.scope}:slots" if spec.unit == "slots" else f"{spec.scope}:{spec.unit}:{spec.window_ms}"


def largest_output(limits: Iterable[LimitSpec], demand: Demand) -> int | None:
    """The output tokens per choice that the whole token limits leave beside the input; None = no token limit.

    For a cap that the client did not state. Never below `LEAST_OUTPUT_TOKENS`: `rules_for` refuses what does not fit.
    """
    whole = [spec.limit for spec in limits if spec.unit == "tokens"]
    if not whole:
        return None
    return max(LEAST_OUTPUT_TOKENS, (min(whole) - demand.input_tokens) // max(1, demand.choices))


def rules_for(limits: Iterable[LimitSpec], demand: Demand, *, on_outage: Literal["deny", "allow"] = "deny") -> tuple[Rule, ...]:
    """The rules of one request, one per counter; where two limits share a counter the tighter one counts.

    Args:
        limits: the principal's, own and shared.
        demand: this request's amounts.
        on_outage: for limits that do not say it themselves.

    Raises:
        BadRequest: the demand is above a whole limit, so that waiting could never help.
        ValueError: a limit that `checked` refuses.
    """
    rules: dict[str, Rule] = {}
    amounts = {"requests": 1, "tokens": demand.tokens, "nusd": demand.nusd, "slots": 1}
    for spec in limits:
        checked(spec)
        cost = amounts[spec.unit]
        if cost > spec.limit and spec.unit in ("tokens", "nusd"):
            raise _never(spec, demand, cost)
        kind: Kind = "lease" if spec.unit == "slots" else "rate"
        name = rule_name(spec)
        rule = Rule(name, kind, spec.unit, spec.limit, spec.window_ms, cost, spec.on_outage or on_outage)
        known = rules.get(name)
        if known is None or rule.limit < known.limit:
            rules[name] = rule
    return tuple(rules.values())


def _never(spec: LimitSpec, demand: Demand, cost: int) -> BadRequest:
    what = "tokens" if spec.unit == "tokens" else "nano-USD"
    if demand.stated or spec.unit == "nusd":
        param, mend = "max_tokens", "lower max_tokens"
    else:
        param, mend = demand.input_param, "shorten the input"
    return BadRequest(
        f"This request asks for up to {cost} {what}, more than the whole limit of {spec.limit}; {mend}.", param=param
    )
