"""`switchyard keys … | teams | orgs | users`: what the admin API does, from the shell, on the database itself."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import UNSET

from backends.core.errors import GatewayError
from gateway.auth.keys import RANDOM_BYTES, WeakPepper
from gateway.auth.records import (
    InvalidKey,
    KeyChange,
    KeyRetired,
    Owner,
    OwnerChange,
    OwnerExists,
    OwnerInUse,
    OwnerKind,
    UnknownKey,
    UnknownOwner,
)
from gateway.command_parts import (
    Refused,
    config_option,
    configuration,
    database,
    declared,
    default_model,
    expiry,
    json_option,
    limits,
    models,
    pepper,
    show,
)
from gateway.config.durations import instant_text, parse_duration
from gateway.config.shown_limits import limit_text
from gateway.config.snapshot import Snapshot

if TYPE_CHECKING:
    from gateway.auth.database import By
    from gateway.auth.keystore import KeyStore
    from gateway.auth.owners import OwnerStore

Done = TypeVar("Done")
Commands = Any  # argparse does not name the type of `add_subparsers`
_OWNERS: tuple[tuple[str, OwnerKind], ...] = (("teams", "team"), ("orgs", "organisation"), ("users", "user"))
_WRONG = (GatewayError, InvalidKey, KeyRetired, OwnerExists, OwnerInUse, UnknownKey, UnknownOwner, WeakPepper)


def add_key_actions(actions: Commands) -> None:
    """`keys suspend | resume | rotate | change`."""
    for name, help in (("suspend", "refuse a key until it is resumed"), ("resume", "let a suspended key in again")):
        parser = actions.add_parser(name, help=help)
        _id(parser)
        parser.set_defaults(run=_marker(name))
    rotate = actions.add_parser("rotate", help="a new secret under the same id; it is printed once")
    _id(rotate)
    rotate.add_argument("--grace", default="0s", metavar="TIME", help="how long the old secret goes on: 1h, 2d … (default: 0s)")
    rotate.set_defaults(run=_rotate)
    change = actions.add_parser("change", help="change what a key may do")
    _id(change)
    change.add_argument("--name", help="whose key it is")
    change.add_argument("--team", help="another team; '' for none")
    change.add_argument("--user", help="the person; '' for none")
    change.add_argument("--models", metavar="A,B", help="models that it may use; '' for all")
    change.add_argument("--limit", action="append", metavar="LIMIT", help="its limits instead of the present ones; '' for none")
    change.add_argument("--expires", metavar="WHEN", help="30d, 2027-01-31 … or `never`")
    change.add_argument(
        "--usage-on-finish", choices=("yes", "no"), help="whether its streams tell usage on the finish chunk, for older clients"
    )
    change.add_argument("--default-model", metavar="MODEL", help="answers where it asks for an unknown model; '' for none")
    change.set_defaults(run=_change)


def add_commands(commands: Commands) -> None:
    """`teams`, `orgs` and `users`."""
    for word, kind in _OWNERS:
        actions = commands.add_parser(word, help=f"list, make, change and delete {word}")
        actions = actions.add_subparsers(required=True, metavar="action")
        listing = actions.add_parser("list", help=f"list the {word}, of the file and of the database")
        config_option(listing)
        json_option(listing)
        listing.set_defaults(run=_lister(kind))
        for action, run in (("new", _maker(kind)), ("change", _changer(kind))):
            parser = actions.add_parser(action, help=f"{'make' if action == 'new' else 'change'} one")
            _owner_options(parser, kind)
            parser.set_defaults(run=run)
        delete = actions.add_parser("delete", help="delete one that nobody belongs to")
        config_option(delete)
        delete.add_argument("name")
        json_option(delete)
        delete.set_defaults(run=_deleter(kind))


def _id(parser: argparse.ArgumentParser) -> None:
    config_option(parser)
    parser.add_argument("id", help="the key's id, as `keys list` shows it")
    json_option(parser)


def _owner_options(parser: argparse.ArgumentParser, kind: OwnerKind) -> None:
    config_option(parser)
    parser.add_argument("name")
    parser.add_argument("--limit", action="append", metavar="LIMIT", help="tokens=1000/minute, usd=5/month, concurrent=4 …")
    if kind != "user":
        parser.add_argument("--timezone", help="of its calendar limits, for instance Europe/Berlin")
    if kind == "team":
        parser.add_argument("--organisation", help="which it belongs to")
        parser.add_argument("--models", metavar="A,B", help="models its keys may use (default: all)")
    json_option(parser)


def _marker(action: str) -> Callable[[argparse.Namespace], int]:
    def run(chosen: argparse.Namespace) -> int:
        def act(store: KeyStore) -> Awaitable[object]:
            return store.suspend(chosen.id, _by()) if action == "suspend" else store.resume(chosen.id, _by())

        _with_keys(chosen, act)
        done = "suspended" if action == "suspend" else "resumed"
        print(json.dumps({"id": chosen.id, "done": done}) if chosen.json else f"{done} {chosen.id}")
        return 0

    return run


def _rotate(chosen: argparse.Namespace) -> int:
    try:
        grace_s = 0 if chosen.grace in ("0", "0s") else parse_duration(chosen.grace)
    except ValueError as error:
        raise Refused(f"--grace: {error}") from error
    secret_of = pepper(configuration(chosen))
    minted, _ = _with_keys(
        chosen, lambda store: store.rotate(chosen.id, secret_of, _by(), secrets.token_bytes(RANDOM_BYTES), grace_s)
    )
    if chosen.json:
        print(json.dumps({"id": minted.id, "secret": minted.secret, "grace_s": grace_s}))
    else:
        print(f"id      {minted.id}\nsecret  {minted.secret}\n")
        print("Keep the secret now: it is stored as a hash and never shown again.")
    return 0


def _change(chosen: argparse.Namespace) -> int:
    found = configuration(chosen)
    never = chosen.expires == "never"
    change = KeyChange(
        name=UNSET if chosen.name is None else chosen.name,
        team=UNSET if chosen.team is None else chosen.team,
        user=UNSET if chosen.user is None else chosen.user,
        models=UNSET if chosen.models is None else models(chosen.models or None, found),
        limits=UNSET if chosen.limit is None else limits([one for one in chosen.limit if one], found),
        expires_us=UNSET if chosen.expires is None else None if never else expiry(chosen.expires, time.time_ns() // 1000),
        usage_on_finish=UNSET if chosen.usage_on_finish is None else chosen.usage_on_finish == "yes",
        default_model=UNSET if chosen.default_model is None else default_model(chosen.default_model, found),
    )
    _with_keys(chosen, lambda store: store.change(chosen.id, change, _by(), declared(found)))
    print(json.dumps({"id": chosen.id, "done": "changed"}) if chosen.json else f"changed {chosen.id}")
    return 0


def _lister(kind: OwnerKind) -> Callable[[argparse.Namespace], int]:
    def run(chosen: argparse.Namespace) -> int:
        found = configuration(chosen)
        stored = [one for one in _with_owners(chosen, lambda store: store.list()) if one.kind == kind]
        rows = [*_declared_rows(found.snapshot, kind), *(_row(one) for one in stored)]
        columns = ["name", "source", "limits"]
        if kind == "team":
            columns[1:1] = ["organisation", "models"]
        print(show(columns, rows, f"there are no {kind}s", as_json=chosen.json))
        return 0

    return run


def _maker(kind: OwnerKind) -> Callable[[argparse.Namespace], int]:
    def run(chosen: argparse.Namespace) -> int:
        found = configuration(chosen)
        if declared(found)(kind, chosen.name):
            raise Refused(f"the {kind} {chosen.name!r} stands in the configuration file")
        owner = Owner(
            kind,
            chosen.name,
            organisation=getattr(chosen, "organisation", None) or "",
            zone=_zone(getattr(chosen, "timezone", None)) or "",
            models=models(getattr(chosen, "models", None), found),
            limits=limits(chosen.limit or [], found),
        )
        _with_owners(chosen, lambda store: store.create(owner, _by()))
        print(json.dumps({"name": chosen.name, "done": "made"}) if chosen.json else f"made the {kind} {chosen.name}")
        return 0

    return run


def _changer(kind: OwnerKind) -> Callable[[argparse.Namespace], int]:
    def run(chosen: argparse.Namespace) -> int:
        found = configuration(chosen)
        if declared(found)(kind, chosen.name):
            raise Refused(f"the {kind} {chosen.name!r} stands in the configuration file; change it there")
        organisation, zone = getattr(chosen, "organisation", None), getattr(chosen, "timezone", None)
        allowed = getattr(chosen, "models", None)
        change = OwnerChange(
            organisation=UNSET if organisation is None else organisation,
            zone=UNSET if zone is None else _zone(zone) or "",
            models=UNSET if allowed is None else models(allowed or None, found),
            limits=UNSET if chosen.limit is None else limits([one for one in chosen.limit if one], found),
        )
        _with_owners(chosen, lambda store: store.change(kind, chosen.name, change, _by()))
        print(json.dumps({"name": chosen.name, "done": "changed"}) if chosen.json else f"changed the {kind} {chosen.name}")
        return 0

    return run


def _deleter(kind: OwnerKind) -> Callable[[argparse.Namespace], int]:
    def run(chosen: argparse.Namespace) -> int:
        if declared(configuration(chosen))(kind, chosen.name):
            raise Refused(f"the {kind} {chosen.name!r} stands in the configuration file; delete it there")
        _with_owners(chosen, lambda store: store.delete(kind, chosen.name, _by()))
        print(json.dumps({"name": chosen.name, "done": "deleted"}) if chosen.json else f"deleted the {kind} {chosen.name}")
        return 0

    return run


def _with_keys(chosen: argparse.Namespace, act: Callable[[KeyStore], Awaitable[Done]]) -> Done:
    """Do something with the keys of the configured database.

    Raises:
        Refused: it was not done; nothing was changed.
    """
    from gateway.auth.keystore import KeyStore

    url = database(configuration(chosen))

    async def run() -> Done:
        async with aclosing(KeyStore(url)) as store:
            return await act(store)

    try:
        return asyncio.run(run())
    except UnknownKey as error:
        raise Refused(f"no key has the id {chosen.id!r}; see `switchyard keys list`") from error
    except _WRONG as error:
        raise Refused(str(error)) from error


def _with_owners(chosen: argparse.Namespace, act: Callable[[OwnerStore], Awaitable[Done]]) -> Done:
    """Do something with the owners of the configured database.

    Raises:
        Refused: it was not done; nothing was changed.
    """
    from gateway.auth.database import Database
    from gateway.auth.owners import OwnerStore

    found = configuration(chosen)
    url = database(found)

    async def run() -> Done:
        async with aclosing(Database(url)) as connections:
            return await act(OwnerStore(connections, declared(found)))

    try:
        return asyncio.run(run())
    except _WRONG as error:
        raise Refused(str(error)) from error


def _declared_rows(snapshot: Snapshot, kind: OwnerKind) -> list[dict[str, str]]:
    from gateway.admin.owned import declared_organisations, declared_teams, declared_users

    of = {"team": declared_teams, "organisation": declared_organisations, "user": declared_users}[kind]
    return [{**_row(one), "source": "file"} for one in sorted(of(snapshot), key=lambda one: one.name)]


def _row(one: Owner) -> dict[str, str]:
    return {
        "name": one.name,
        "organisation": one.organisation,
        "models": "all" if one.models is None else ", ".join(sorted(one.models)),
        "limits": ", ".join(limit_text(spec) for spec in one.limit_specs()) or "none",
        "source": "database",
        "created": instant_text(one.created_us) if one.created_us else "-",
    }


def _by() -> By:
    from gateway.auth.keystore import by_cli

    return by_cli()


def _zone(text: str | None) -> str | None:
    import zoneinfo

    if text:
        try:
            zoneinfo.ZoneInfo(text)
        except (OSError, ValueError, KeyError):
            raise Refused(f"--timezone: there is no time zone {text!r}; write an IANA name such as Europe/Berlin") from None
    return text
