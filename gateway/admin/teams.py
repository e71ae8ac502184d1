"""/admin/v1/teams: keys belong to them and share their limits."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Query
from msgspec import UNSET

from gateway.admin.caller import AdminParts, Caller, calling
from gateway.admin.owned import Owned, Sees, declared_teams
from gateway.admin.shapes import NewTeam, Page, TeamPatch, TeamView, instant, page, public_names, shown, to_store
from gateway.auth.records import Owner, OwnerChange

_PATH = "/admin/v1/teams"


def router(parts: AdminParts) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["teams"])
    owned = Owned(parts, "team", declared_teams)
    called = Depends(calling(parts))

    @routes.get(_PATH)
    async def list_teams(
        caller: Caller = called, after: str | None = None, limit: int = Query(100, ge=1, le=1000)
    ) -> Page[TeamView]:
        """Teams by name: all, or the key's own."""
        found = await owned.page(_sees(caller), after, limit)
        return page([_view(one, declared) for one, declared in found], [one.name for one, _ in found], limit)

    @routes.get(_PATH + "/{name:path}")
    async def get_team(name: str, caller: Caller = called) -> TeamView:
        """One team."""
        return _view(*await owned.one(name, _sees(caller)))

    @routes.post(_PATH)
    async def create_team(body: NewTeam, caller: Caller = called) -> TeamView:
        """Make a team. Admins only."""
        snapshot = parts.snapshot()
        owner = Owner(
            "team",
            body.name,
            body.organisation or "",
            body.timezone or "",
            None if body.models is None else public_names(body.models, snapshot),
            to_store(body.limits, snapshot),
        )
        return _view(await owned.create(owner, caller), False)

    @routes.patch(_PATH + "/{name:path}")
    async def change_team(name: str, body: TeamPatch, caller: Caller = called) -> TeamView:
        """Change a team. Admins only."""
        told, snapshot = body.model_fields_set, parts.snapshot()
        models = None if body.models is None else public_names(body.models, snapshot)
        change = OwnerChange(
            organisation=(body.organisation or "") if "organisation" in told else UNSET,
            zone=(body.timezone or "") if "timezone" in told else UNSET,
            models=models if "models" in told else UNSET,
            limits=to_store(body.limits, snapshot) if "limits" in told else UNSET,
        )
        return _view(await owned.change(name, change, caller, _sees(caller)), False)

    @routes.delete(_PATH + "/{name:path}")
    async def delete_team(name: str, caller: Caller = called) -> dict[str, Any]:
        """Delete a team that has no keys but revoked ones. Admins only."""
        await owned.delete(name, caller, _sees(caller))
        return {"object": "team", "name": name, "deleted": True}

    return routes


def _sees(caller: Caller) -> Sees:
    return lambda one: caller.sees(one.name)


def _view(one: Owner, declared: bool) -> TeamView:
    return TeamView(
        name=one.name,
        organisation=one.organisation or None,
        timezone=one.zone or None,
        models=None if one.models is None else sorted(one.models),
        limits=shown(one.limit_specs()),
        source="file" if declared else "database",
        created_at=None if declared else instant(one.created_us),
    )
