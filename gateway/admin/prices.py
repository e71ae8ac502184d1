"""/admin/v1/prices: what a model's tokens cost, by deployment. Prices stand in the configuration file: read-only."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from gateway.admin.caller import AdminParts, Caller, calling
from gateway.admin.errors import ReadOnly
from gateway.admin.shapes import instant
from gateway.config.shown_limits import usd_per_million
from gateway.domain.money import price_at
from gateway.domain.route import Deployment, Price


class PriceView(BaseModel):
    """USD per million tokens, exactly."""

    object: Literal["price"] = "price"
    deployment: str
    valid_from: str | None = Field(default=None, description="of admission; null: before any other")
    now: bool = Field(description="whether requests that are admitted now cost this")
    models: list[str] = Field(description="public names of the models that it serves")
    input: str
    cached_input: str
    output: str
    source: Literal["file"] = "file"


class PriceList(BaseModel):
    """All prices."""

    object: Literal["list"] = "list"
    data: list[PriceView]


def router(parts: AdminParts) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["prices"])
    called = Depends(calling(parts))

    @routes.get("/admin/v1/prices")
    async def list_prices(caller: Caller = called, model: str | None = None) -> PriceList:  # noqa: ARG001  # authorises
        """Prices by deployment, those of one model or of all."""
        snapshot = parts.snapshot()
        serves: dict[str, set[str]] = {}
        for route in snapshot.models.values():
            if model is None or route is snapshot.models.get(model):
                for tier in route.tiers:
                    for one in tier:
                        serves.setdefault(one.id, set()).add(route.name)
        now_us = parts.now_us()
        return PriceList(
            data=[one for id in sorted(serves) for one in _views(snapshot.deployments[id], sorted(serves[id]), now_us)]
        )

    @routes.put("/admin/v1/prices/{deployment:path}")
    async def set_price(deployment: str, caller: Caller = called) -> PriceView:  # noqa: ARG001  # all are the file's
        """Always a 409: prices are changed in the configuration file, which every gateway reloads. Admins only."""
        caller.need("admin")
        raise ReadOnly("price")

    return routes


def _views(deployment: Deployment, models: list[str], now_us: int) -> list[PriceView]:
    """All prices of a deployment, by the instant from which they hold."""
    present = price_at(deployment, now_us)
    dated: list[tuple[int | None, Price]] = [(None, deployment.price), *deployment.later_prices]
    return [
        PriceView(
            deployment=deployment.id,
            valid_from=instant(from_us),
            now=price is present,
            models=models,
            input=usd_per_million(price.input),
            cached_input=usd_per_million(price.cached_input),
            output=usd_per_million(price.output),
        )
        for from_us, price in dated
    ]
