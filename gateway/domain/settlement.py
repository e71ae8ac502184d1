"""What was promised at admission and what was really used: the two values that every request ends in.

`Rule` and `LedgerRow` are stored as arrays: new fields are added at the end, with a default.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from backends.core.usage import UsageSource
from gateway.domain.principal import OnOutage, Unit

Outcome = Literal["ok", "client_error", "upstream_error", "gateway_error", "refused", "cancelled", "drained", "abandoned"]
Kind = Literal["rate", "quota", "lease"]


class Rule(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One limit as the store checks it for one request. `cost` is the amount reserved, in `unit`.

    `name` is the counter's stored name without prefix, e.g. `key:3f2a:tokens:60000`.
    `limit` 2^53 = refuses nothing. `shadow`: a limit that is only compared and reported, None = none.
    `ends_us`: the end of a quota's period, µs UTC, and `window_ms` what is left of it. `clamps`: a stated output cap may
    be lowered to what this rule leaves.
    """

    name: str
    kind: Kind
    unit: Unit
    limit: int
    window_ms: int
    cost: int
    on_outage: OnOutage = "deny"
    shadow: int | None = None
    ends_us: int = 0
    clamps: bool = False


class RuleState(msgspec.Struct, frozen=True, gc=False):
    """What is left of a rule after an admission, and after how many ms it would be whole again."""

    rule: Rule
    remaining: int
    reset_ms: int


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """A granted admission. `admitted_us` is the store's clock. `degraded`: granted while the store was out."""

    id: str
    admitted_us: int
    rules: tuple[Rule, ...]
    states: tuple[RuleState, ...] = ()
    degraded: bool = False


class LedgerRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One request in the ledger; the reservation id is its primary key. Instants µs UTC, money nano-USD.

    `requests`: what it counts in quotas of requests, 0 when its charge was given back.
    """

    id: str
    admitted_us: int
    settled_us: int
    key_id: str
    team_id: str
    org_id: str
    user: str
    model: str
    deployment: str
    protocol: str
    outcome: Outcome
    status: int
    streamed: bool
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    usage_source: UsageSource | Literal["none"]
    cost_nusd: int
    attempts: int
    ttft_us: int
    duration_us: int
    requests: int = 1


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """What a reservation came to: `actual[i]` replaces the cost of `reservation.rules[i]`, in its unit."""

    reservation: Reservation
    actual: tuple[int, ...]
    row: LedgerRow


class Progress(msgspec.Struct, frozen=True, gc=False):
    """A live reservation whose lease is to be renewed, with the output tokens made so far."""

    id: str
    slots: tuple[str, ...]
    output_tokens: int
