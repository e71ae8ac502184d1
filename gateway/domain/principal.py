"""Who is asking, what they may do, and which limits were promised to them."""

from __future__ import annotations

from typing import Literal

import msgspec

from backends.core.errors import GatewayError

#: What a limit counts. `tokens` are input and output together, `nusd` is money, `slots` are concurrent requests.
Unit = Literal["requests", "input_tokens", "output_tokens", "tokens", "nusd", "slots"]
#: A calendar period, in a time zone.
Period = Literal["day", "month"]
OnOutage = Literal["deny", "allow"]
OnInsufficient = Literal["reject", "clamp"]


class NotAllowed(GatewayError):
    """The key may not do this (403)."""

    status = 403
    type = "invalid_request_error"
    default_code = "permission_denied"


class LimitSpec(msgspec.Struct, frozen=True):
    """One configured limit, before it meets a request.

    `scope` names whose counter it is (`key:<id>`, `user:<name>`, `team:<name>`, `organisation:<name>`,
    `model:<name>`, `gateway`) and is part of the stored counter's name; with `model` (a route's public name) only that
    model's requests count, in a counter of their own.
    `window_ms` is the length of a rolling window; 0 for `slots` (concurrent requests) and for a calendar `period`,
    which begins at midnight in `zone` (an IANA name; "" = whoever binds the limit to its owner says which).
    `shadow`: counts and signals, never refuses. `on_insufficient`: what happens to an output cap that the client stated
    when this limit leaves less (None = reject).
    """

    scope: str
    unit: Unit
    limit: int
    window_ms: int = 0
    on_outage: OnOutage | None = None
    period: Period | None = None
    zone: str = ""
    model: str = ""
    shadow: bool = False
    on_insufficient: OnInsufficient | None = None


class Principal(msgspec.Struct, frozen=True):
    """The holder of a key. `models`: None = every model. Instants are microseconds UTC.

    `usage_on_finish`: its streams tell the usage beside the last finish reason. `default_model`: what answers where it
    names a model that is not there; "" = nothing.
    """

    key_id: str
    team_id: str = ""
    org_id: str = ""
    user: str = ""
    scopes: frozenset[str] = frozenset({"inference"})
    models: frozenset[str] | None = None
    limits: tuple[LimitSpec, ...] = ()
    expires_us: int | None = None
    usage_on_finish: bool = False
    default_model: str = ""

    def need(self, scope: str) -> None:
        """Refuse a key that is not made for this.

        Raises:
            NotAllowed: the scope is not among its own.
        """
        if scope not in self.scopes:
            raise NotAllowed(f"This key may not be used for {scope}: it lacks that scope.")
