"""/admin/v1/users: limits over all keys that name a person. A user without an entry has `users.default.limits`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Query
from msgspec import UNSET

from gateway.admin.caller import AdminParts, Caller, calling
from gateway.admin.owned import Owned, Sees, declared_users
from gateway.admin.shapes import NewUser, Page, UserPatch, UserView, instant, page, shown, to_store
from gateway.auth.records import Owner, OwnerChange

_PATH = "/admin/v1/users"


def router(parts: AdminParts) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["users"])
    owned = Owned(parts, "user", declared_users)
    called = Depends(calling(parts))

    @routes.get(_PATH)
    async def list_users(
        caller: Caller = called, after: str | None = None, limit: int = Query(100, ge=1, le=1000)
    ) -> Page[UserView]:
        """Users by name. A key that sees one team only sees none: a user may have keys in several."""
        found = await owned.page(_sees(caller), after, limit)
        return page([_view(one, declared) for one, declared in found], [one.name for one, _ in found], limit)

    @routes.get(_PATH + "/{name:path}")
    async def get_user(name: str, caller: Caller = called) -> UserView:
        """One user."""
        return _view(*await owned.one(name, _sees(caller)))

    @routes.post(_PATH)
    async def create_user(body: NewUser, caller: Caller = called) -> UserView:
        """Give a user limits. Admins only."""
        limits = to_store(body.limits, parts.snapshot())
        return _view(await owned.create(Owner("user", body.name, limits=limits), caller), False)

    @routes.patch(_PATH + "/{name:path}")
    async def change_user(name: str, body: UserPatch, caller: Caller = called) -> UserView:
        """Change a user's limits. Admins only."""
        limits = to_store(body.limits, parts.snapshot()) if "limits" in body.model_fields_set else UNSET
        return _view(await owned.change(name, OwnerChange(limits=limits), caller, _sees(caller)), False)

    @routes.delete(_PATH + "/{name:path}")
    async def delete_user(name: str, caller: Caller = called) -> dict[str, Any]:
        """Take a user's limits away: those of `users.default` hold again. Admins only."""
        await owned.delete(name, caller, _sees(caller))
        return {"object": "user", "name": name, "deleted": True}

    return routes


def _sees(caller: Caller) -> Sees:
    return lambda _: caller.team is None


def _view(one: Owner, declared: bool) -> UserView:
    return UserView(
        name=one.name,
        limits=shown(one.limit_specs()),
        source="file" if declared else "database",
        created_at=None if declared else instant(one.created_us),
    )
