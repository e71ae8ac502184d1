"""`switchyard quota show | set`: every limit with what is used and left of it, and new limits for whoever has them."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.core.errors import GatewayError
from gateway.auth.records import InvalidKey, KeyChange, KeyRetired, OwnerChange, OwnerKind, UnknownKey, UnknownOwner
from gateway.command_parts import (
    Refused,
    config_option,
    configuration,
    database,
    declared,
    json_option,
    limits,
    print_rows,
    row_options,
)
from gateway.config.settings import Configuration
from gateway.config.shown_limits import limit_text, usd
from gateway.config.snapshot import Snapshot

if TYPE_CHECKING:
    from gateway.admin.rules import RuleView
    from gateway.domain.principal import LimitSpec
    from gateway.domain.settlement import Rule, RuleState

Commands = Any  # argparse does not name the type of `add_subparsers`
_COLUMNS = ("scope", "name", "limit", "used", "left", "resets_in", "source")
_OWNERS: tuple[tuple[str, OwnerKind], ...] = (
    ("team", "team"),
    ("user", "user"),
    ("org", "organisation"),
    ("model", "model"),
    ("gateway", "gateway"),
)


def add_quota(commands: Commands) -> None:
    """`quota`."""
    actions = commands.add_parser("quota", help="show what is left of limits, and set limits").add_subparsers(
        required=True, metavar="action"
    )
    showing = actions.add_parser("show", help="limits with what is used and left (default: all but the keys' own)")
    config_option(showing)
    _owner(showing, required=False)
    row_options(showing)
    showing.set_defaults(run=_show)
    setting = actions.add_parser("set", help="limits instead of the present ones; what was used stays used")
    config_option(setting)
    _owner(setting, required=True)
    setting.add_argument(
        "--limit", action="append", required=True, metavar="LIMIT", help="tokens=1000/minute, usd=5/month …; '' for none"
    )
    json_option(setting)
    setting.set_defaults(run=_set)


def _owner(parser: argparse.ArgumentParser, *, required: bool) -> None:
    owner = parser.add_mutually_exclusive_group(required=required)
    owner.add_argument("--key", metavar="ID", help="what a request with this key meets" if not required else "the key's own")
    for name, kind in _OWNERS[:-1]:
        owner.add_argument(f"--{name}", metavar="NAME", help=f"of this {kind}")
    owner.add_argument("--gateway", action="store_const", const="gateway", help="of all requests together")


def _chosen_owner(chosen: argparse.Namespace) -> tuple[OwnerKind, str] | None:
    return next(((kind, getattr(chosen, name)) for name, kind in _OWNERS if getattr(chosen, name) is not None), None)


def _show(chosen: argparse.Namespace) -> int:
    found = configuration(chosen)
    url = database(found)
    try:
        views = asyncio.run(_views(found, url, chosen.key, _chosen_owner(chosen)))
    except GatewayError as error:
        raise Refused(error.message) from error
    rows = [_row(spec, view) for spec, view in views]
    return print_rows(chosen, _COLUMNS, rows, "there are no limits", [view.model_dump() for _, view in views])


def _set(chosen: argparse.Namespace) -> int:
    from gateway.admin.rules import owner_name
    from gateway.auth.database import Database
    from gateway.auth.keystore import KeyStore, by_cli
    from gateway.auth.owners import OwnerStore

    found = configuration(chosen)
    new = limits([one for one in chosen.limit if one], found)
    owner = _chosen_owner(chosen)
    kind, name = owner or ("key", chosen.key)
    if owner and declared(found)(*owner):
        raise Refused(f"the {kind} {name!r} stands in the configuration file; change it there")
    if owner and owner[0] in ("model", "gateway"):
        public = owner_name(found.snapshot, *owner)
        if public is None:
            raise Refused(f"--{kind}: the configuration has no {kind} {name!r}")
        if kind == "model" and any(one.model for one in new):
            raise Refused("--limit: a model's limit is of that model anyway")
        owner = owner[0], public
    url = database(found)

    async def run() -> None:
        async with aclosing(Database(url)) as connections:
            owners = OwnerStore(connections, declared(found))
            if owner is None:
                await KeyStore(connections).change(name, KeyChange(limits=new), by_cli())
            elif owner[0] in ("model", "gateway"):
                await owners.set_limits(*owner, new, by_cli())
            else:
                await owners.change(*owner, OwnerChange(limits=new), by_cli())

    try:
        asyncio.run(run())
    except UnknownKey as error:
        raise Refused(f"no key has the id {name!r}; see `switchyard keys list`") from error
    except (GatewayError, InvalidKey, KeyRetired, UnknownOwner) as error:
        raise Refused(str(error)) from error
    done = {"scope": kind, "name": name, "done": "set"}
    print(json.dumps(done) if chosen.json else f"set {len(new)} limits of the {kind} {name}")
    return 0


async def _views(
    found: Configuration, url: str, key: str | None, owner: tuple[OwnerKind, str] | None
) -> list[tuple[LimitSpec, RuleView]]:
    """Limits and how far they are used.

    Raises:
        Refused: there is no such key. GatewayError: database or Redis do not answer.
    """
    from gateway.admin.rules import identity, rule_view, shared_limits
    from gateway.admin.standing import standing
    from gateway.auth.database import Database
    from gateway.auth.overlay import overlaid
    from gateway.auth.owners import read_owners

    async with aclosing(Database(url)) as connections:
        async with connections.reading() as connection:
            present = overlaid(found.snapshot, await read_owners(connection))
        if key is not None:
            specs = await _of_key(connections, present, key)
        else:
            name = owner[1] if owner else ""
            if owner and owner[0] == "model" and name in present.models:
                name = present.models[name].name
            prefix = "" if owner is None else owner[0] if owner[0] == "gateway" else f"{owner[0]}:{name}"
            specs = [spec for spec in shared_limits(present) if prefix in ("", spec.scope)]
    of_file = frozenset(map(identity, found.snapshot.limits()))

    async def looked(peek: Peek, now_us: Callable[[], int]) -> list[tuple[LimitSpec, RuleView]]:
        views = await standing(specs, peek, now_us)
        return [(spec, rule_view(spec, view, of_file)) for spec, view in zip(specs, views, strict=True)]

    if found.redis_url is not None:
        from gateway.limits.glance import glancing

        async with glancing(found.redis_url) as glance:
            return await looked(glance.peek, glance.now_us)
    return await looked(*_embedded(url))


Peek = Callable[[Sequence["Rule"]], Awaitable[Sequence["RuleState"]]]


def _embedded(url: str) -> tuple[Peek, Callable[[], int]]:
    """The counters of a gateway without Redis, as its next start would rebuild them."""
    from gateway.ledger.embedded import EmbeddedLedger
    from gateway.ledger.migrations import sqlite_path
    from gateway.limits.embedded_store import EmbeddedStore
    from gateway.limits.periods import LONGEST_PERIOD_US

    def now_us() -> int:
        return time.time_ns() // 1000

    path = sqlite_path(url)
    ledger = EmbeddedLedger(path or Path())
    store = EmbeddedStore(now_us, ledger)
    store.restore(ledger.recent(now_us() - LONGEST_PERIOD_US))
    return store.peek, now_us


async def _of_key(connections: Any, present: Snapshot, id: str) -> Sequence[LimitSpec]:
    from gateway.auth.authenticate import holder_of, with_shared_limits
    from gateway.auth.keystore import KeyStore

    stated = next((one for one in present.declared_keys.values() if one.key_id == id), None)
    if stated is not None:
        return with_shared_limits(stated, present).limits
    record = await KeyStore(connections).find(id)
    if record is None:
        raise Refused(f"no key has the id {id!r}; see `switchyard keys list`")
    return holder_of(record, record.hash, present).limits


def _row(spec: LimitSpec, view: RuleView) -> dict[str, str]:
    used = spec.limit - view.remaining
    amounts = {"used": used, "left": view.remaining}
    shown = {name: usd(amount) if spec.unit == "nusd" else str(amount) for name, amount in amounts.items()}
    reset = f"{view.resets_in_s:.0f}s" if view.resets_in_s else "-"
    return {
        "scope": view.scope,
        "name": view.name,
        "limit": limit_text(spec),
        "resets_in": reset,
        "source": view.source,
        **shown,
    }
