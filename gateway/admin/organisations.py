"""/admin/v1/organisations: teams belong to them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Query
from msgspec import UNSET

from gateway.admin.caller import AdminParts, Caller, calling
from gateway.admin.owned import Owned, Sees, declared_organisations
from gateway.admin.shapes import NewOrganisation, OrganisationPatch, OrganisationView, Page, instant, page, shown, to_store
from gateway.auth.records import Owner, OwnerChange

_PATH = "/admin/v1/organisations"


def router(parts: AdminParts) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["organisations"])
    owned = Owned(parts, "organisation", declared_organisations)
    called = Depends(calling(parts))

    @routes.get(_PATH)
    async def list_organisations(
        caller: Caller = called, after: str | None = None, limit: int = Query(100, ge=1, le=1000)
    ) -> Page[OrganisationView]:
        """Organisations by name: all, or that of the key's team."""
        found = await owned.page(_sees(parts, caller), after, limit)
        return page([_view(one, declared) for one, declared in found], [one.name for one, _ in found], limit)

    @routes.get(_PATH + "/{name:path}")
    async def get_organisation(name: str, caller: Caller = called) -> OrganisationView:
        """One organisation."""
        return _view(*await owned.one(name, _sees(parts, caller)))

    @routes.post(_PATH)
    async def create_organisation(body: NewOrganisation, caller: Caller = called) -> OrganisationView:
        """Make an organisation. Admins only."""
        limits = to_store(body.limits, parts.snapshot())
        return _view(
            await owned.create(Owner("organisation", body.name, zone=body.timezone or "", limits=limits), caller), False
        )

    @routes.patch(_PATH + "/{name:path}")
    async def change_organisation(name: str, body: OrganisationPatch, caller: Caller = called) -> OrganisationView:
        """Change an organisation. Admins only."""
        told = body.model_fields_set
        change = OwnerChange(
            zone=(body.timezone or "") if "timezone" in told else UNSET,
            limits=to_store(body.limits, parts.snapshot()) if "limits" in told else UNSET,
        )
        return _view(await owned.change(name, change, caller, _sees(parts, caller)), False)

    @routes.delete(_PATH + "/{name:path}")
    async def delete_organisation(name: str, caller: Caller = called) -> dict[str, Any]:
        """Delete an organisation that has no teams. Admins only."""
        await owned.delete(name, caller, _sees(parts, caller))
        return {"object": "organisation", "name": name, "deleted": True}

    return routes


def _sees(parts: AdminParts, caller: Caller) -> Sees:
    team = parts.present().teams.get(caller.team or "")
    own = team.organisation if team is not None else ""
    return lambda one: caller.team is None or (bool(own) and one.name == own)


def _view(one: Owner, declared: bool) -> OrganisationView:
    return OrganisationView(
        name=one.name,
        timezone=one.zone or None,
        limits=shown(one.limit_specs()),
        source="file" if declared else "database",
        created_at=None if declared else instant(one.created_us),
    )
