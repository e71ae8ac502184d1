"""Who calls the admin API, and what a role lets one see and do.

`admin` sees and changes everything. `team-admin` sees its team, its organisation and what belongs to the team, and
changes the team's keys. `viewer` changes nothing; it sees its team's things, or everything when its key has no team.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fastapi import Request

from backends.core.errors import BadRequest
from gateway.auth.database import By, Database
from gateway.auth.keystore import KeyStore
from gateway.auth.owners import OwnerStore
from gateway.auth.prices import PriceStore
from gateway.config.snapshot import Snapshot
from gateway.domain.principal import NotAllowed, Principal
from gateway.domain.settlement import Rule, RuleState

Role = Literal["admin", "team-admin", "viewer"]
_ROLES: tuple[Role, ...] = ("admin", "team-admin", "viewer")


class Authenticates(Protocol):
    """Finds the principal of a request's headers, and follows changes."""

    async def authenticate(self, headers: Sequence[tuple[bytes, bytes]], now_us: int) -> Principal:
        """Raises NotAuthenticated (401) or BadRequest."""

    async def refresh(self) -> None:
        """Take over what changed."""


@dataclass(frozen=True, kw_only=True)
class AdminParts:
    """What the admin API is given.

    `snapshot`: the configuration file's; `present`: with the database's organisations, teams, users and prices. `peek`: what is
    left of some rules now; it may raise LimitsUnavailable. `store_now_us`: the limit store's clock.
    """

    auth: Authenticates
    database: Database
    keys: KeyStore
    owners: OwnerStore
    prices: PriceStore
    pepper: bytes
    now_us: Callable[[], int]
    snapshot: Callable[[], Snapshot]
    present: Callable[[], Snapshot]
    peek: Callable[[Sequence[Rule]], Awaitable[Sequence[RuleState]]]
    store_now_us: Callable[[], int]
    randomness: Callable[[int], bytes] = secrets.token_bytes


@dataclass(frozen=True)
class Caller:
    """The holder of an admin key. `team`: the only team whose things it may see; None = it sees everything."""

    principal: Principal
    role: Role
    team: str | None

    def sees(self, team: str) -> bool:
        """Whether what belongs to this team may be seen."""
        return self.team is None or (team == self.team and bool(team))

    def by(self, now_us: int) -> By:
        """For the audit trail."""
        return By(self.principal.key_id, now_us)

    def need(self, *roles: Role) -> None:
        """Refuse other roles.

        Raises:
            NotAllowed: this one is not among them.
        """
        if self.role not in roles:
            raise NotAllowed(f"This needs a key with the role {' or '.join(roles)}.")

    def need_everything(self) -> None:
        """Refuse who sees one team only.

        Raises:
            NotAllowed: this one does.
        """
        if self.team is not None:
            raise NotAllowed("This key sees its own team only.")


def caller_of(principal: Principal) -> Caller:
    """The principal with its strongest role.

    Raises:
        NotAllowed: it has none.
    """
    for role in _ROLES:
        if role in principal.scopes:
            everything = role == "admin" or (role == "viewer" and not principal.team_id)
            return Caller(principal, role, None if everything else principal.team_id)
    raise NotAllowed("This key may not use the admin API.")


def calling(parts: AdminParts) -> Callable[[Request], Awaitable[Caller]]:
    """The dependency of every admin route: no route answers without it."""

    async def caller(request: Request) -> Caller:
        found = caller_of(await parts.auth.authenticate(request.scope["headers"], parts.now_us()))
        for name, value in (("path", request.scope["path"]), *request.query_params.multi_items()):
            if "\0" in value:  # no database takes one
                raise BadRequest(f"{name[:64]}: a NUL character.", param=name[:64])
        return found

    return caller
