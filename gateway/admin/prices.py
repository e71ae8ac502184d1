"""/admin/v1/prices: what a model's tokens cost, from an instant on. Prices of the configuration file are read-only."""

from __future__ import annotations

from base64 import b32encode
from collections.abc import Iterable
from typing import Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from backends.core.errors import BadRequest
from gateway.admin.caller import AdminParts, Caller, calling
from gateway.admin.errors import NotFound, ReadOnly, told
from gateway.admin.shapes import Source, instant, micros
from gateway.auth.keys import PUBLIC_BYTES
from gateway.auth.overlay import dated_prices
from gateway.auth.prices import priced
from gateway.auth.records import PriceRecord, declares_price
from gateway.config.compiled_prices import compiled_price
from gateway.config.dynamic import PriceEntry
from gateway.config.entries import Instant, Name, Usd
from gateway.config.shown_limits import usd_per_million
from gateway.config.snapshot import Snapshot
from gateway.domain.money import price_at
from gateway.domain.route import Deployment, Price, Route

_PATH = "/admin/v1/prices"
_OF_FILE = "file:"


class PriceView(BaseModel):
    """USD per million tokens, exactly. What the file declares is read-only."""

    object: Literal["price"] = "price"
    id: str
    model: str | None = Field(default=None, description="whose price it is; null: of the deployment, whatever it serves")
    deployment: str | None = Field(default=None, description="where; null: wherever the model has no price of its own")
    valid_from: str | None = Field(default=None, description="of admission; null: before any other")
    now: bool = Field(description="whether requests that are admitted now cost this somewhere")
    models: list[str] = Field(description="public names of the models that it holds for")
    input: str
    cached_input: str
    output: str
    source: Source


class PriceList(BaseModel):
    """All prices."""

    object: Literal["list"] = "list"
    data: list[PriceView]


class NewPrice(PriceEntry):
    """What a model's tokens shall cost, USD per million tokens."""

    model: Name
    deployment: Name | None = Field(default=None, description="null: each of the model's that has no price of its own")
    input: Usd
    output: Usd
    valid_from: Instant | None = Field(default=None, description="null: from now on")


def router(parts: AdminParts) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["prices"])
    called = Depends(calling(parts))

    @routes.get(_PATH)
    async def list_prices(caller: Caller = called, model: str | None = None) -> PriceList:  # noqa: ARG001  # authorises
        """Prices, those of one model or of all: the file's by deployment, then the database's by model."""
        snapshot = parts.snapshot()
        wanted = None if model is None else getattr(snapshot.models.get(model), "name", "")
        stored = await parts.prices.list()
        now_us = parts.now_us()
        views = [*declared_prices(snapshot, now_us), *stored_prices(snapshot, stored, now_us)]
        return PriceList(data=[one for one in views if wanted is None or wanted in one.models])

    @routes.post(_PATH)
    async def create_price(body: NewPrice, caller: Caller = called) -> PriceView:
        """Let a model's tokens cost this from an instant on; acts within a second. Admins only."""
        caller.need("admin")
        snapshot, now_us = parts.snapshot(), parts.now_us()
        from_us = now_us if body.valid_from is None else micros(body.valid_from)
        if from_us < 0:
            raise BadRequest("valid_from: before 1970.", param="valid_from")
        with told("price"):
            model, deployment = priced(snapshot, body.model, body.deployment or "")
            id = b32encode(parts.randomness(PUBLIC_BYTES)).decode().lower()
            record = PriceRecord(id, model, deployment, from_us, compiled_price(body))
            await parts.prices.create(record, caller.by(now_us))
        await parts.auth.refresh()
        stored = await parts.prices.list()
        return next(one for one in stored_prices(snapshot, stored, now_us) if one.id == id)

    @routes.delete(_PATH + "/{id:path}")
    async def delete_price(id: str, caller: Caller = called) -> dict[str, Any]:
        """Take a price away: the one before it holds again. Rows of the ledger stay as they are. Admins only."""
        caller.need("admin")
        if id.startswith(_OF_FILE):
            if any(one.id == id for one in declared_prices(parts.snapshot(), parts.now_us())):
                raise ReadOnly("price")
            raise NotFound("price")
        with told("price"):
            await parts.prices.delete(id, caller.by(parts.now_us()))
        await parts.auth.refresh()
        return {"object": "price", "id": id, "deleted": True}

    return routes


def declared_prices(snapshot: Snapshot, now_us: int) -> list[PriceView]:
    """The file's prices, by deployment and by the instant from which they hold."""
    serves: dict[str, set[str]] = {}
    for route in snapshot.models.values():
        for one in _deployments(route):
            serves.setdefault(one.id, set()).add(route.name)
    views: list[PriceView] = []
    for id in sorted(serves):
        deployment = snapshot.deployments[id]
        if not declares_price(deployment):
            continue
        present = price_at(Route("", ()), deployment, now_us)
        dated: list[tuple[int | None, Price]] = [(None, deployment.price), *deployment.later_prices]
        for number, (from_us, price) in enumerate(dated):
            view = _view(f"{_OF_FILE}{id}:{number}", price, from_us, price is present, "file", serves[id])
            views.append(view.model_copy(update={"deployment": id}))
    return views


def stored_prices(snapshot: Snapshot, stored: Iterable[PriceRecord], now_us: int) -> list[PriceView]:
    """The database's prices, by model, deployment and instant. A model that the file lost has none that holds."""
    records = list(stored)
    holding: set[str] = set()
    for route in {route.name: route for route in snapshot.models.values()}.values():
        for one in _deployments(route):
            begun = [record for record in dated_prices(route, one, records) if record.from_us <= now_us]
            holding.update(record.id for record in begun[-1:])
    views: list[PriceView] = []
    for record in records:
        models = {record.model} if record.model in snapshot.models else set()
        view = _view(record.id, record.price, record.from_us, record.id in holding, "database", models)
        views.append(view.model_copy(update={"model": record.model, "deployment": record.deployment or None}))
    return views


def _deployments(route: Route) -> list[Deployment]:
    return [one for tier in route.tiers for one in tier]


def _view(id: str, price: Price, from_us: int | None, now: bool, source: Source, models: Iterable[str]) -> PriceView:
    return PriceView(
        id=id,
        valid_from=instant(from_us),
        now=now,
        models=sorted(models),
        input=usd_per_million(price.input),
        cached_input=usd_per_million(price.cached_input),
        output=usd_per_million(price.output),
        source=source,
    )
