"""GET /v1/me: what a key is, what its limits leave now, and what it has used. For every key, about itself alone."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.admin.caller import AdminParts
from gateway.admin.reports import UsageView, sums
from gateway.admin.shapes import instant
from gateway.admin.standing import LimitView, standing
from gateway.ledger.queries import DAY_US


class MeView(BaseModel):
    """A key about itself."""

    object: Literal["me"] = "me"
    id: str
    team: str | None = None
    organisation: str | None = None
    user: str | None = None
    scopes: list[str]
    models: list[str] = Field(description="public names of the models that it may use")
    expires_at: str | None = None
    limits: list[LimitView]
    usage: list[UsageView] = Field(description="its own requests of the last 30 days, by UTC day")


def router(parts: AdminParts, ledger: AsyncEngine) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["self-service"])

    @routes.get("/v1/me")
    async def me(request: Request) -> MeView:
        """The key's own rules, what is left of them, and its usage."""
        now_us = parts.now_us()
        holder = await parts.auth.authenticate(request.scope["headers"], now_us)
        snapshot = parts.snapshot()
        allowed = sorted({route.name for route in snapshot.models.values() if snapshot.allowed(route, holder)})
        present = parts.present().models
        of_models = [spec for name in allowed if (route := present.get(name)) is not None for spec in route.limits]
        limits = await standing([*holder.limits, *of_models], parts.peek, parts.store_now_us)
        begin_us = (now_us // DAY_US - 29) * DAY_US
        return MeView(
            id=holder.key_id,
            team=holder.team_id or None,
            organisation=holder.org_id or None,
            user=holder.user or None,
            scopes=sorted(holder.scopes),
            models=allowed,
            expires_at=instant(holder.expires_us),
            limits=limits,
            usage=await sums(ledger, ["day"], begin_us, now_us + 1, {"key": holder.key_id}),
        )

    return routes
