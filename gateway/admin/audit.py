"""/admin/v1/audit: who changed what, and when. Rows are written in the transaction of the change, and never changed."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from gateway.admin.caller import AdminParts, Caller, calling
from gateway.admin.shapes import Page, instant, page
from gateway.auth.audit_trail import Field, trail


class AuditView(BaseModel):
    """One change."""

    object: Literal["audit"] = "audit"
    id: str
    at: str
    actor: str
    action: str
    noun: str
    name: str
    changes: dict[str, Any]


def router(parts: AdminParts) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["audit"])
    called = Depends(calling(parts))

    @routes.get("/admin/v1/audit")
    async def audit(
        caller: Caller = called,
        noun: str | None = None,
        name: str | None = None,
        actor: str | None = None,
        after: int | None = Query(None, ge=0, le=2**62),
        limit: int = Query(100, ge=1, le=1000),
    ) -> Page[AuditView]:
        """Changes, newest first. A key that sees one team gets those of its keys and of itself."""
        wanted: dict[Field, str | None] = {"noun": noun, "name": name, "actor": actor, "team": caller.team}
        only = {field: value for field, value in wanted.items() if value is not None}
        rows = await trail(parts.database, only, before=after, limit=limit + 1)
        found = [
            AuditView(
                id=str(row.id),
                at=instant(row.at_us) or "",
                actor=row.actor,
                action=row.action,
                noun=row.noun,
                name=row.name,
                changes=row.changes,
            )
            for row in rows
        ]
        return page(found, [one.id for one in found], limit)

    return routes
