"""The command line: `switchyard serve | check | keys | version`, also `python -m gateway`.

What a command needs is imported when it runs, so that `version` and `check` stay quick. Exit status: 0 done, 1 refused
(the reason is on standard error), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backends.core.errors import GatewayError
from gateway.config.durations import instant_text, parse_expiry
from gateway.config.embedded import embedded_configuration
from gateway.config.loader import load
from gateway.config.problems import ConfigError
from gateway.config.settings import Configuration
from gateway.config.validation import suggestion

if TYPE_CHECKING:
    from gateway.auth.keystore import KeyRecord


class Refused(Exception):
    """A command cannot be carried out; the text is for the person who typed it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        status: int = chosen.run(chosen)
        return status
    except ConfigError as error:
        _print_problems(error, as_json=getattr(chosen, "json", False))
        return 1
    except Refused as refused:
        print(f"switchyard: {refused}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="switchyard", description="One OpenAI-compatible endpoint in front of every model.")
    commands = parser.add_subparsers(required=True, metavar="command")

    serve = commands.add_parser("serve", help="run the gateway")
    _config_option(serve)
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="validate a configuration and say what to mend")
    check.add_argument("file", type=Path, help="configuration file")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=_check)

    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version)

    keys = commands.add_parser("keys", help="mint, list and revoke API keys").add_subparsers(required=True, metavar="action")
    _keys_new(keys.add_parser("new", help="mint a key; its secret is printed once"))
    listing = keys.add_parser("list", help="list the minted keys, without secrets")
    _config_option(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)
    revoke = keys.add_parser("revoke", help="revoke a minted key for good")
    _config_option(revoke)
    revoke.add_argument("id", help="the key's id, as `keys list` shows it")
    revoke.add_argument("--json", action="store_true", help="print JSON")
    revoke.set_defaults(run=_revoke)
    return parser


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration file (default: the embedded configuration, in this folder)"
    )


def _keys_new(parser: argparse.ArgumentParser) -> None:
    _config_option(parser)
    parser.add_argument("--name", required=True, help="whose key it is; shown in logs and lists")
    parser.add_argument("--team", default="", help="a team of the configuration; its limits count too")
    parser.add_argument("--user", default="", help="the person, for usage reports")
    parser.add_argument("--rpm", type=int, metavar="N", help="requests per minute")
    parser.add_argument("--tpm", type=int, metavar="N", help="tokens per minute")
    parser.add_argument("--concurrent", type=int, metavar="N", help="requests at once")
    parser.add_argument("--models", metavar="A,B", help="models that it may use (default: all)")
    parser.add_argument("--expires", metavar="WHEN", help="30d, 12h, 2027-01-31 … (default: never)")
    parser.add_argument("--admin", action="store_true", help="an admin key")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_new)


def _configuration(chosen: argparse.Namespace) -> Configuration:
    return load(chosen.config) if chosen.config is not None else embedded_configuration(Path.cwd())


def _serve(chosen: argparse.Namespace) -> int:
    found = _configuration(chosen)
    from gateway.app import serve

    return serve(found)


def _check(chosen: argparse.Namespace) -> int:
    found = load(chosen.file)
    snapshot = found.snapshot
    if chosen.json:
        print(json.dumps({"file": str(chosen.file), "sound": True, "version": snapshot.version, "problems": []}))
    else:
        counts = {
            "models": len({route.name for route in snapshot.models.values()}),
            "deployments": len(snapshot.deployments),
            "engines": len(snapshot.engines),
            "teams": len(snapshot.teams),
            "declared keys": len(snapshot.declared_keys),
        }
        print(f"{chosen.file}: sound; version {snapshot.version}")
        print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return 0


def _version(_: argparse.Namespace) -> int:
    print(f"switchyard {importlib.metadata.version('switchyard')}")
    return 0


def _print_problems(error: ConfigError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"sound": False, "problems": [problem._asdict() for problem in error.problems]}, indent=2))
        return
    for problem in error.problems:
        print(problem, file=sys.stderr)


def _new(chosen: argparse.Namespace) -> int:
    from gateway.auth.keys import WeakPepper
    from gateway.auth.keystore import InvalidKey, NewKey, create_key

    found = _configuration(chosen)
    now_us = time.time_ns() // 1000
    new = NewKey(
        name=chosen.name,
        team=_team(chosen.team, found),
        user=chosen.user,
        models=_models(chosen.models, found),
        rpm=chosen.rpm,
        tpm=chosen.tpm,
        concurrent=chosen.concurrent,
        scopes=frozenset({"admin"}) if chosen.admin else frozenset({"inference"}),
        expires_us=_expiry(chosen.expires, now_us),
    )
    try:
        new.check(now_us)
        minted = asyncio.run(create_key(_database(found), _pepper(found), new))
    except (InvalidKey, WeakPepper, GatewayError) as error:
        raise Refused(str(error)) from error
    if chosen.json:
        print(json.dumps({"id": minted.id, "secret": minted.secret, "name": new.name, "expires": _iso(new.expires_us)}))
    else:
        print(f"id      {minted.id}\nsecret  {minted.secret}\n")
        print("Keep the secret now: it is stored as a hash and never shown again.")
    return 0


def _list(chosen: argparse.Namespace) -> int:
    from gateway.auth.keystore import list_keys

    found = _configuration(chosen)
    try:
        records = asyncio.run(list_keys(_database(found)))
    except GatewayError as error:
        raise Refused(error.message) from error
    now_us = time.time_ns() // 1000
    rows = [_row(record, now_us) for record in records]
    if chosen.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        print(_table(["id", "name", "team", "models", "limits", "created", "expires", "state"], rows))
    else:
        print("no keys were minted yet")
    return 0


def _revoke(chosen: argparse.Namespace) -> int:
    from gateway.auth.keystore import UnknownKey, revoke_key

    found = _configuration(chosen)
    try:
        asyncio.run(revoke_key(_database(found), chosen.id))
    except UnknownKey as error:
        raise Refused(f"no key has the id {chosen.id!r}; see `switchyard keys list`") from error
    except GatewayError as error:
        raise Refused(error.message) from error
    print(json.dumps({"id": chosen.id, "revoked": True}) if chosen.json else f"revoked {chosen.id}")
    return 0


def _database(found: Configuration) -> str:
    """The key database's URL, brought to the newest form first."""
    from sqlalchemy.exc import SQLAlchemyError

    from gateway.ledger.migrations import UnsupportedDatabase, migrate

    try:
        migrate(found.ledger_url)
    except (UnsupportedDatabase, SQLAlchemyError, OSError) as error:
        # A driver's own words may hold the database's address: only the kind of error is shown.
        words = str(error) if isinstance(error, UnsupportedDatabase) else type(error).__name__
        raise Refused(f"ledger.url: the database cannot be used: {words}") from error
    return found.ledger_url


def _pepper(found: Configuration) -> bytes:
    from gateway.auth.pepper import load_or_create_pepper

    configured = found.static.auth.pepper
    if configured is not None:
        return configured.get_secret_value().encode()
    try:
        return load_or_create_pepper(found.state_dir / "pepper")
    except OSError as error:
        raise Refused(f"the pepper in {found.state_dir} can be neither read nor made: {error.strerror}") from error


def _team(name: str, found: Configuration) -> str:
    if name and name not in found.snapshot.teams:
        hint = suggestion(name, sorted(found.snapshot.teams)) or f"teams: {', '.join(sorted(found.snapshot.teams)) or 'none'}"
        raise Refused(f"--team: the configuration has no team {name!r}; {hint}")
    return name


def _models(text: str | None, found: Configuration) -> frozenset[str] | None:
    """The public names; an alias stands for its model."""
    if text is None:
        return None
    known = found.snapshot.models
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            hint = suggestion(name, sorted(known)) or f"models: {', '.join(sorted(known)) or 'none'}"
            raise Refused(f"--models: the configuration has no model {name!r}; {hint}")
    return frozenset(known[name].name for name in names)


def _expiry(text: str | None, now_us: int) -> int | None:
    if text is None:
        return None
    try:
        return parse_expiry(text, now_us)
    except ValueError as error:
        raise Refused(f"--expires: {error}") from error


def _row(record: KeyRecord, now_us: int) -> dict[str, str]:
    state = "active"
    if record.revoked_us is not None:
        state = "revoked"
    elif record.expires_us is not None and record.expires_us <= now_us:
        state = "expired"
    windows = {0: "", 1000: "/s", 60_000: "/min", 3_600_000: "/h", 86_400_000: "/day"}
    limits = [f"{one.limit} {one.unit}{windows.get(one.window_ms, f'/{one.window_ms} ms')}" for one in record.limits]
    return {
        "id": record.id,
        "name": record.name,
        "team": record.team,
        "models": "all" if record.models is None else ", ".join(sorted(record.models)),
        "limits": ", ".join(limits) or "default",
        "created": instant_text(record.created_us),
        "expires": instant_text(record.expires_us),
        "state": state,
    }


def _iso(micros: int | None) -> str | None:
    return None if micros is None else instant_text(micros)


def _table(columns: list[str], rows: list[dict[str, str]]) -> str:
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    lines = ["  ".join(name.upper().ljust(widths[name]) for name in columns)]
    lines += ["  ".join(row[name].ljust(widths[name]) for name in columns) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
