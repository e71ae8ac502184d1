"""What the routers of organisations, teams and users share: finding, paging and changing owners of limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.admin.caller import AdminParts, Caller
from gateway.admin.errors import NotFound, ReadOnly, told
from gateway.auth.overlay import in_file
from gateway.auth.records import Owner, OwnerChange, OwnerKind, stored_limits
from gateway.config.snapshot import Snapshot

Sees = Callable[[Owner], bool]


class Owned:
    """One kind of owners, of the file and of the database alike.

    Args:
        parts: what the admin API is given.
        kind: which.
        declared: those of the configuration file.
    """

    def __init__(self, parts: AdminParts, kind: OwnerKind, declared: Callable[[Snapshot], Sequence[Owner]]) -> None:
        self._parts = parts
        self._kind: OwnerKind = kind
        self._declared = declared

    async def page(self, sees: Sees, after: str | None, limit: int) -> list[tuple[Owner, bool]]:
        """Up to `limit` + 1 of those that may be seen, by name, each with whether the file declares it."""
        snapshot = self._parts.snapshot()
        found = {one.name: (one, True) for one in self._declared(snapshot)}
        for one in await self._parts.owners.list():
            if one.kind == self._kind:
                found.setdefault(one.name, (one, False))
        names = sorted(name for name in found if after is None or name > after)
        return [found[name] for name in names if sees(found[name][0])][: limit + 1]

    async def one(self, name: str, sees: Sees) -> tuple[Owner, bool]:
        """One that may be seen.

        Raises:
            NotFound: there is none, or it may not be seen.
        """
        declared = next((one for one in self._declared(self._parts.snapshot()) if one.name == name), None)
        stored = await self._parts.owners.list() if declared is None else ()
        found = declared or next((one for one in stored if one.kind == self._kind and one.name == name), None)
        if found is None or not sees(found):
            raise NotFound(self._kind)
        return found, declared is not None

    async def create(self, owner: Owner, caller: Caller) -> Owner:
        """Make one.

        Raises:
            NotAllowed: only an admin may. ReadOnly, Conflict: the name is taken. BadRequest: a field is wrong.
        """
        caller.need("admin")
        if in_file(self._parts.snapshot(), self._kind, owner.name):
            raise ReadOnly(self._kind)
        with told(self._kind):
            made = await self._parts.owners.create(owner, caller.by(self._parts.now_us()))
        await self._parts.auth.refresh()
        return made

    async def change(self, name: str, change: OwnerChange, caller: Caller, sees: Sees) -> Owner:
        """Change one.

        Raises:
            NotFound, NotAllowed, ReadOnly, BadRequest: see `one` and `create`.
        """
        await self._changeable(name, caller, sees)
        with told(self._kind):
            changed = await self._parts.owners.change(self._kind, name, change, caller.by(self._parts.now_us()))
        await self._parts.auth.refresh()
        return changed

    async def delete(self, name: str, caller: Caller, sees: Sees) -> None:
        """Delete one.

        Raises:
            NotFound, NotAllowed, ReadOnly: see `change`. Conflict: others belong to it.
        """
        await self._changeable(name, caller, sees)
        with told(self._kind):
            await self._parts.owners.delete(self._kind, name, caller.by(self._parts.now_us()))
        await self._parts.auth.refresh()

    async def _changeable(self, name: str, caller: Caller, sees: Sees) -> None:
        _, declared = await self.one(name, sees)
        caller.need("admin")
        if declared:
            raise ReadOnly(self._kind)


def declared_teams(snapshot: Snapshot) -> list[Owner]:
    """The file's teams."""
    return [
        Owner("team", one.name, one.organisation, one.zone, one.models, stored_limits(one.limits))
        for one in snapshot.teams.values()
    ]


def declared_organisations(snapshot: Snapshot) -> list[Owner]:
    """The file's organisations. Their time zone is in their limits."""
    return [Owner("organisation", name, limits=stored_limits(limits)) for name, limits in snapshot.organisations.items()]


def declared_users(snapshot: Snapshot) -> list[Owner]:
    """The file's users."""
    return [Owner("user", name, limits=stored_limits(limits)) for name, limits in snapshot.users.items()]
