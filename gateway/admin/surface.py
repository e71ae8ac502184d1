"""The whole admin surface: one router per noun, and the key's own page."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.admin import audit, keys, me, models, organisations, prices, rules, teams, usage, users
from gateway.admin.caller import AdminParts


def admin_routers(parts: AdminParts, ledger: AsyncEngine, engines: models.Engines) -> list[APIRouter]:
    """All routers. The caller closes the engine, which reads the ledger."""
    return [
        organisations.router(parts),
        teams.router(parts),
        users.router(parts),
        keys.router(parts),
        prices.router(parts),
        rules.router(parts),
        models.router(parts, engines),
        usage.router(parts, ledger),
        audit.router(parts),
        me.router(parts, ledger),
    ]
