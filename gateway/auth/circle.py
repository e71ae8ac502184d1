"""Whose users the administrator of a team may name: a key that names a user spends that user's limits.

A user is of a team whose keys name it. So a team-admin may name the users of its team and of the other teams of its
organisation, and names that nobody has: those become its own.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.auth.records import InvalidKey
from gateway.auth.tables import KEYS, OWNERS
from gateway.config.snapshot import Snapshot


class Circle(msgspec.Struct, frozen=True):
    """Some teams and what the configuration file knows of users.

    `declared`: those that its keys of these teams name; `others`: those of its other keys, and those with limits of their own.
    """

    teams: frozenset[str]
    declared: frozenset[str]
    others: frozenset[str]

    async def require(self, connection: AsyncConnection, user: str) -> None:
        """Refuse a user of somebody else; nobody ("") is fine.

        Raises:
            InvalidKey: no key of these teams names it, and somebody else knows it.
        """
        if not user or user in self.declared:
            return
        holders = sa.select(KEYS.c.team).where(KEYS.c.user == user, KEYS.c.revoked_us.is_(None)).distinct()
        teams = set((await connection.execute(holders)).scalars())
        if teams & self.teams:
            return
        entry = sa.select(OWNERS.c.name).where(OWNERS.c.kind == "user", OWNERS.c.name == user)
        if teams or user in self.others or (await connection.execute(entry)).first() is not None:
            raise InvalidKey("user: not a user of your team or organisation; an admin can name it")


def circle_of(team: str, present: Snapshot) -> Circle:
    """The circle of a team's administrator: the team, and the others of its organisation. Pure."""
    own = present.teams.get(team)
    organisation = own.organisation if own is not None else ""
    teams = {team} | {one.name for one in present.teams.values() if organisation and one.organisation == organisation}
    named = [(one.team_id, one.user) for one in present.declared_keys.values() if one.user]
    declared = frozenset(user for where, user in named if where in teams)
    others = frozenset(user for where, user in named if where not in teams) | present.users.keys()
    return Circle(frozenset(teams), declared, others)
