"""What an admission tells beside yes: which limits are nearly used up, and which shadow limits would have refused. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.domain.settlement import RuleState
from gateway.limits.headers import duration
from gateway.limits.rules import MAX_AMOUNT, owner_of

#: A limit is near when 80 % of it are used or reserved: when less than one part of so many is left.
_NEAR_PART = 5
NEAR_HEADER = b"x-switchyard-limit-near"


def signals(states: Sequence[RuleState]) -> tuple[list[RuleState], list[RuleState]]:
    """The rules of an admission of which 80 % or more are taken, and those that a shadow limit would have refused.

    Slots are not told: they come and go all the time.
    """
    close: list[RuleState] = []
    over: list[RuleState] = []
    for state in states:
        rule, left = state.rule, state.remaining
        if left * _NEAR_PART <= rule.limit and rule.kind != "lease" and rule.limit < MAX_AMOUNT:
            close.append(state)
        if rule.shadow is not None and rule.limit - left > rule.shadow:
            over.append(state)
    return close, over


def labels(state: RuleState) -> tuple[str, str]:
    """A rule's scope and unit, from fixed lists, for metrics: never whose it is."""
    owner, model = owner_of(state.rule.name)
    return (f"{owner}_model" if model else owner), state.rule.unit


def near_header(states: Sequence[RuleState]) -> bytes:
    """A list as of RFC 8941: `key;unit=tokens;limit=1000;remaining=120;reset=23s, team_model;unit=nusd;…`."""
    parts = []
    for state in states:
        scope, unit = labels(state)
        parts.append(
            f"{scope};unit={unit};limit={state.rule.limit};remaining={state.remaining};reset={duration(state.reset_ms)}"
        )
    return ", ".join(parts).encode()
