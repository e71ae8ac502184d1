"""`switchyard prices list | set | delete`: what models cost, from the shell, on the database itself."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import time
from base64 import b32encode
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from backends.core.errors import GatewayError
from gateway.auth.keys import PUBLIC_BYTES
from gateway.auth.records import InvalidKey, PriceDeclared, PriceExists, PriceRecord, UnknownPrice
from gateway.command_parts import (
    Refused,
    config_option,
    configuration,
    database,
    json_option,
    print_rows,
    row_options,
    validated,
)
from gateway.config.settings import Configuration

if TYPE_CHECKING:
    from gateway.auth.prices import PriceStore

Commands = Any  # argparse does not name the type of `add_subparsers`
Done = TypeVar("Done")
_COLUMNS = ("id", "model", "deployment", "valid_from", "now", "input", "cached_input", "output", "source")


def add_prices(commands: Commands) -> None:
    """`prices`."""
    actions = commands.add_parser("prices", help="list, set and delete what models cost").add_subparsers(
        required=True, metavar="action"
    )
    listing = actions.add_parser("list", help="prices of the file and of the database, USD per million tokens")
    config_option(listing)
    listing.add_argument("--model", help="only of this model")
    row_options(listing)
    listing.set_defaults(run=_list)
    setting = actions.add_parser("set", help="let a model's tokens cost this, from an instant on")
    config_option(setting)
    setting.add_argument("model")
    setting.add_argument("--input", required=True, metavar="USD", help="USD per million input tokens")
    setting.add_argument("--cached-input", metavar="USD", help="USD per million cached input tokens (default: as input)")
    setting.add_argument("--output", required=True, metavar="USD", help="USD per million output tokens")
    setting.add_argument("--from", dest="valid_from", metavar="WHEN", help="date or instant, UTC (default: now)")
    setting.add_argument("--deployment", help="only there (default: each of the model's that has no price of its own)")
    json_option(setting)
    setting.set_defaults(run=_set)
    delete = actions.add_parser("delete", help="take a price away: the one before it holds again")
    config_option(delete)
    delete.add_argument("id", help="as `prices list` shows it")
    json_option(delete)
    delete.set_defaults(run=_delete)


def _list(chosen: argparse.Namespace) -> int:
    from gateway.admin.prices import declared_prices, stored_prices

    found = configuration(chosen)
    if chosen.model is not None and chosen.model not in found.snapshot.models:
        raise Refused(f"--model: the configuration has no model {chosen.model!r}")
    stored = _with_prices(found, lambda store: store.list())
    now_us = time.time_ns() // 1000
    views = [*declared_prices(found.snapshot, now_us), *stored_prices(found.snapshot, stored, now_us)]
    if chosen.model is not None:
        views = [one for one in views if found.snapshot.models[chosen.model].name in one.models]
    rows = []
    for one in views:
        row = {name: str(getattr(one, name) or "") for name in _COLUMNS}
        rows.append({**row, "model": row["model"] or ", ".join(one.models), "now": "yes" if one.now else "no"})
    return print_rows(chosen, _COLUMNS, rows, "nothing costs anything", [one.model_dump() for one in views])


def _set(chosen: argparse.Namespace) -> int:
    from gateway.admin.prices import NewPrice
    from gateway.admin.shapes import micros
    from gateway.auth.keystore import by_cli
    from gateway.auth.prices import priced
    from gateway.config.compiled_prices import compiled_price

    found = configuration(chosen)
    fields = {name: getattr(chosen, name) for name in ("model", "deployment", "input", "cached_input", "output", "valid_from")}
    body = validated(NewPrice, {name: value for name, value in fields.items() if value is not None})
    by = by_cli()
    from_us = by.at_us if body.valid_from is None else micros(body.valid_from)
    if from_us < 0:
        raise Refused("valid_from: before 1970")
    try:
        model, deployment = priced(found.snapshot, body.model, body.deployment or "")
    except (InvalidKey, PriceDeclared) as error:
        raise Refused(str(error)) from error
    id = b32encode(secrets.token_bytes(PUBLIC_BYTES)).decode().lower()
    record = PriceRecord(id, model, deployment, from_us, compiled_price(body))
    _with_prices(found, lambda store: store.create(record, by))
    print(json.dumps({"id": id, "done": "set"}) if chosen.json else f"set the price {id} of {model}")
    return 0


def _delete(chosen: argparse.Namespace) -> int:
    from gateway.auth.keystore import by_cli

    if chosen.id.startswith("file:"):
        raise Refused("this price stands in the configuration file; change it there")
    _with_prices(configuration(chosen), lambda store: store.delete(chosen.id, by_cli()))
    print(json.dumps({"id": chosen.id, "done": "deleted"}) if chosen.json else f"deleted the price {chosen.id}")
    return 0


def _with_prices(found: Configuration, act: Callable[[PriceStore], Awaitable[Done]]) -> Done:
    """Do something with the prices of the configured database.

    Raises:
        Refused: it was not done; nothing was changed.
    """
    from gateway.auth.database import Database
    from gateway.auth.prices import PriceStore

    url = database(found)

    async def run() -> Done:
        async with aclosing(Database(url)) as connections:
            return await act(PriceStore(connections))

    try:
        return asyncio.run(run())
    except (GatewayError, InvalidKey, PriceExists, UnknownPrice) as error:
        raise Refused(str(error)) from error
