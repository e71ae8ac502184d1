"""Who is asking, and which limits were promised to them."""

from __future__ import annotations

from typing import Literal

import msgspec

Unit = Literal["requests", "tokens", "nusd", "slots"]


class LimitSpec(msgspec.Struct, frozen=True):
    """One configured limit, before it meets a request.

    `scope` names whose counter it is (`key:<id>`, `team:<id>` …) and is part of the stored counter's name.
    `window_ms` is the length of a rolling window; 0 for `slots` (concurrent requests).
    """

    scope: str
    unit: Unit
    limit: int
    window_ms: int = 0
    on_outage: Literal["deny", "allow"] | None = None


class Principal(msgspec.Struct, frozen=True):
    """The holder of a key. `models`: None = every model. Instants are microseconds UTC."""

    key_id: str
    team_id: str = ""
    org_id: str = ""
    user: str = ""
    scopes: frozenset[str] = frozenset({"inference"})
    models: frozenset[str] | None = None
    limits: tuple[LimitSpec, ...] = ()
    expires_us: int | None = None
