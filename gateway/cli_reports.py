"""`switchyard usage | audit`: what the ledger and the audit trail say, as tables, JSON or CSV."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from backends.core.errors import GatewayError
from gateway.command_parts import Refused, config_option, configuration, database, print_rows, row_options
from gateway.config.durations import instant_text

if TYPE_CHECKING:
    from gateway.admin.reports import UsageView
    from gateway.auth.audit_trail import Audited

Commands = Any  # argparse does not name the type of `add_subparsers`


def add_reports(commands: Commands) -> None:
    """`usage` and `audit`."""
    usage = commands.add_parser("usage", help="sums of the ledger, by key, team, user, model, day …")
    config_option(usage)
    usage.add_argument("--by", default="team,model", metavar="A,B", help="up to four: key team organisation user model day …")
    usage.add_argument("--since", metavar="DATE", help="first day, UTC (default: 30 days ago)")
    usage.add_argument("--until", metavar="DATE", help="day after the last, UTC (default: now)")
    for name in ("key", "team", "user", "model"):
        usage.add_argument(f"--{name}", help=f"only this {name}")
    row_options(usage)
    usage.set_defaults(run=_usage)
    audit = commands.add_parser("audit", help="who changed what, newest first")
    config_option(audit)
    for name, what in (("noun", "kind of thing: key, team, price …"), ("name", "thing"), ("actor", "key id, or `cli`")):
        audit.add_argument(f"--{name}", help=f"only this {what}")
    audit.add_argument("--since", metavar="DATE", help="first day, UTC (default: all that is kept)")
    audit.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many (default: 100)")
    row_options(audit)
    audit.set_defaults(run=_audit)


def _usage(chosen: argparse.Namespace) -> int:
    from gateway.admin.reports import sums
    from gateway.admin.usage import as_csv, dimensions, instant_of
    from gateway.ledger.queries import DAY_US
    from gateway.ledger.rows import connect

    try:
        by = dimensions(chosen.by)
        end_us = instant_of(chosen.until, "until") if chosen.until else time.time_ns() // 1000 + 1
        begin_us = instant_of(chosen.since, "since") if chosen.since else end_us - 30 * DAY_US
        only: Any = {
            name: getattr(chosen, name) for name in ("key", "team", "user", "model") if getattr(chosen, name) is not None
        }
        url = database(configuration(chosen))

        async def ask() -> list[UsageView]:
            engine = connect(url)
            try:
                return await sums(engine, by, begin_us, end_us, only)
            finally:
                await engine.dispose()

        found = asyncio.run(ask())
    except GatewayError as error:
        raise Refused(error.message) from error
    if chosen.csv:
        print(as_csv(by, found), end="")
        return 0
    columns = [*by, "requests", "input_tokens", "cached_input_tokens", "output_tokens", "cost_usd"]
    rows = [{name: str(getattr(one, name)) for name in columns} for one in found]
    whole = [one.model_dump(exclude_none=True) for one in found]
    return print_rows(chosen, columns, rows, "nothing was used in this time", whole)


def _audit(chosen: argparse.Namespace) -> int:
    from gateway.admin.usage import instant_of
    from gateway.auth.audit_trail import Field, trail
    from gateway.auth.database import Database

    if not 1 <= chosen.limit <= 1_000_000:
        raise Refused("--limit: from 1 to 1000000")
    wanted: dict[Field, str | None] = {"noun": chosen.noun, "name": chosen.name, "actor": chosen.actor}
    only = {field: value for field, value in wanted.items() if value is not None}
    try:
        since_us = instant_of(chosen.since, "since") if chosen.since else 0
        url = database(configuration(chosen))

        async def ask() -> list[Audited]:
            async with aclosing(Database(url)) as connections:
                return await trail(connections, only, since_us=since_us, limit=chosen.limit)

        found = asyncio.run(ask())
    except GatewayError as error:
        raise Refused(error.message) from error
    columns = ["at", "actor", "action", "noun", "name", "changes"]
    whole = [{**msgspec.to_builtins(one), "at": instant_text(one.at_us)} for one in found]
    rows = [{name: row[name] if name != "changes" else json.dumps(row[name]) for name in columns} for row in whole]
    return print_rows(chosen, columns, rows, "nothing was changed yet", whole)
