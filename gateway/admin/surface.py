"""The whole admin surface: one router per noun, and the key's own page."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.admin import audit, keys, me, models, prices, rules, usage
from gateway.admin.caller import AdminParts
from gateway.admin.nouns import routes_of
from gateway.admin.organisations import ORGANISATIONS
from gateway.admin.teams import TEAMS
from gateway.admin.users import USERS


def admin_routers(parts: AdminParts, ledger: AsyncEngine, engines: models.Engines) -> list[APIRouter]:
    """All routers. The caller closes the engine, which reads the ledger."""
    return [
        *(routes_of(noun, parts) for noun in (ORGANISATIONS, TEAMS, USERS)),
        keys.router(parts),
        prices.router(parts),
        rules.router(parts),
        models.router(parts, engines),
        usage.router(parts, ledger),
        audit.router(parts),
        me.router(parts, ledger),
    ]
