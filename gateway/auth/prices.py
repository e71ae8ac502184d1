"""Prices in SQL: what a model's tokens cost from an instant on, beside what the configuration file says of a deployment.

A deployment whose price stands in the file has that one alone. A price is never changed: it is followed by a later one, or
deleted; rows that the ledger has keep what they cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.auth.database import By, Database, KeysUnavailable
from gateway.auth.records import InvalidKey, PriceDeclared, PriceExists, PriceRecord, UnknownPrice, declares_price
from gateway.auth.tables import PRICES, REVISION
from gateway.config.snapshot import Snapshot
from gateway.domain.route import Price

#: All prices are in every worker's memory.
PRICES_MAX = 10_000


class PriceStore:
    """Reads and writes prices, through connections that others share."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self) -> tuple[PriceRecord, ...]:
        """All, by model, deployment and instant.

        Raises:
            KeysUnavailable: the database does not answer.
        """
        async with self._database.reading() as connection:
            return await read_prices(connection)

    async def create(self, record: PriceRecord, by: By) -> PriceRecord:
        """Store a new one.

        Raises:
            PriceExists: the model has one from this very instant on.
            InvalidKey: there are too many.
            KeysUnavailable: the database does not answer.
        """
        async with self._database.changing(by) as change:
            count = (await change.connection.execute(sa.select(sa.func.count()).select_from(PRICES))).scalar_one()
            if count >= PRICES_MAX:
                raise InvalidKey(f"model: there are {PRICES_MAX} prices already; delete old ones")
            same = sa.and_(
                PRICES.c.model == record.model,
                PRICES.c.deployment == record.deployment,
                PRICES.c.from_us == record.from_us,
            )
            if (await change.connection.execute(sa.select(PRICES.c.id).where(same))).first() is not None:
                raise PriceExists("the model has a price from this valid_from on already")
            try:
                await change.connection.execute(sa.insert(PRICES).values(_columns(record, by.at_us)))
            except IntegrityError:
                raise PriceExists("the model has a price from this valid_from on already") from None
            await change.prices_changed()
            await change.audit("create", "price", record.id, _told(record))
        return record

    async def delete(self, id: str, by: By) -> None:
        """Delete one.

        Raises:
            UnknownPrice: there is none.
            KeysUnavailable: the database does not answer.
        """
        async with self._database.changing(by) as change:
            row = (await change.connection.execute(sa.select(PRICES).where(PRICES.c.id == id))).first()
            if row is None:
                raise UnknownPrice("no price has this id")
            await change.connection.execute(sa.delete(PRICES).where(PRICES.c.id == id))
            await change.prices_changed()
            await change.audit("delete", "price", id, _told(_record(row)))


async def read_prices(connection: AsyncConnection) -> tuple[PriceRecord, ...]:
    """All prices, by model, deployment and instant."""
    query = sa.select(PRICES).order_by(PRICES.c.model, PRICES.c.deployment, PRICES.c.from_us)
    return tuple(_record(row) for row in await connection.execute(query))


async def follow_prices(database_url: str, took: Callable[[tuple[PriceRecord, ...]], None], every_s: float = 0.5) -> None:
    """Hand over all prices at first and whenever one changed, for ever; while the database is out, the last ones hold."""
    seen: int | None = None
    async with aclosing(Database(database_url)) as database:
        while True:
            with suppress(KeysUnavailable):
                async with database.reading() as connection:
                    at = (await connection.execute(sa.select(REVISION.c.prices))).scalar_one()
                    if at != seen:
                        took(await read_prices(connection))
                        seen = at
            await asyncio.sleep(every_s)


def priced(snapshot: Snapshot, model: str, deployment: str) -> tuple[str, str]:
    """What a new price is of: the model's public name and the deployment, "" = each that has none in the file.

    Raises:
        InvalidKey: there is no such model, or the deployment does not serve it.
        PriceDeclared: the price stands in the configuration file.
    """
    route = snapshot.models.get(model)
    if route is None:
        raise InvalidKey(f"model: there is no model named {model[:128]!r}")
    serving = {one.id: one for tier in route.tiers for one in tier}
    if deployment and deployment not in serving:
        raise InvalidKey(f"deployment: the model {route.name!r} has no deployment {deployment[:128]!r}")
    if deployment and declares_price(serving[deployment]):
        raise PriceDeclared(f"the price of the deployment {deployment!r} stands in the configuration file; change it there")
    if all(declares_price(one) for one in serving.values()):
        raise PriceDeclared(
            f"the prices of {route.name!r} stand in the configuration file, at its deployments; change them there"
        )
    return route.name, deployment


def _told(record: PriceRecord) -> dict[str, object]:
    """What the audit row tells of it; prices in pico-USD per token."""
    price = record.price
    return {
        "model": record.model,
        "deployment": record.deployment,
        "from_us": record.from_us,
        "input": price.input,
        "cached_input": price.cached_input,
        "output": price.output,
    }


def _columns(record: PriceRecord, now_us: int) -> dict[str, object]:
    return {"id": record.id, "created_us": now_us, **_told(record)}


def _record(row: sa.Row[tuple[object, ...]]) -> PriceRecord:
    one = row._mapping
    price = Price(one["input"], one["cached_input"], one["output"])
    return PriceRecord(one["id"], one["model"], one["deployment"], one["from_us"], price)
