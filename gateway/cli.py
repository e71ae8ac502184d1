"""The command line: `switchyard serve | check | doctor | capabilities | version`, and for what is managed `keys | teams |
orgs | users | prices | quota | usage | audit`.

Also `python -m gateway`.

What a command needs is imported when it runs, so that `version` and `check` stay quick. Exit status: 0 done, 1 refused
(the reason is on standard error), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backends.core.errors import GatewayError
from gateway.auth.records import SCOPES
from gateway.cli_accounts import add_commands, add_key_actions
from gateway.cli_import import add_import
from gateway.cli_models import add_models
from gateway.cli_prices import add_prices
from gateway.cli_quota import add_quota
from gateway.cli_reports import add_reports
from gateway.command_parts import (
    Refused,
    config_option,
    configuration,
    database,
    declared,
    default_model,
    expiry,
    limits,
    models,
    pepper,
    show,
    table,
)
from gateway.config.durations import instant_text
from gateway.config.loader import load
from gateway.config.problems import ConfigError
from gateway.config.settings import Configuration
from gateway.config.shown_limits import limit_text
from gateway.config.templates import try_templates
from gateway.config.validation import suggestion

if TYPE_CHECKING:
    from gateway.auth.keystore import KeyRecord


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    chosen = parser().parse_args(arguments)
    try:
        status: int = chosen.run(chosen)
        return status
    except ConfigError as error:
        _print_problems(error, as_json=getattr(chosen, "json", False))
        return 1
    except Refused as refused:
        print(f"switchyard: {refused}{_detail(refused.__cause__)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1


def _detail(cause: BaseException | None) -> str:
    """What the log would tell of an outage: whoever may run a command may know it."""
    return f" ({cause.detail})" if isinstance(cause, GatewayError) and cause.detail else ""


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(prog="switchyard", description="One OpenAI-compatible endpoint in front of every model.")
    commands = parser.add_subparsers(required=True, metavar="command")

    serve = commands.add_parser("serve", help="run the gateway")
    config_option(serve)
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="validate a configuration and say what to mend")
    check.add_argument("file", type=Path, help="configuration file")
    form = check.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--explain", action="store_true", help="show where each model leads, as a tree")
    check.set_defaults(run=_check)

    doctor = commands.add_parser("doctor", help="call each remote deployment and compare it with its configuration")
    config_option(doctor)
    doctor.add_argument("deployments", nargs="*", metavar="deployment", help="which ones (default: all)")
    doctor.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds that one probe may take (default: 60)"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)

    capabilities = commands.add_parser("capabilities", help="print what every dialect and engine can do, as Markdown")
    capabilities.set_defaults(run=_capabilities)

    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version)

    keys = commands.add_parser("keys", help="mint, list and revoke API keys").add_subparsers(required=True, metavar="action")
    _keys_new(keys.add_parser("new", help="mint a key; its secret is printed once"))
    listing = keys.add_parser("list", help="list the minted keys, without secrets")
    config_option(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)
    revoke = keys.add_parser("revoke", help="revoke a minted key for good")
    config_option(revoke)
    revoke.add_argument("id", help="the key's id, as `keys list` shows it")
    revoke.add_argument("--json", action="store_true", help="print JSON")
    revoke.set_defaults(run=_revoke)
    add_key_actions(keys)
    add_commands(commands)
    add_prices(commands)
    add_quota(commands)
    add_models(commands)
    add_import(commands)
    add_reports(commands)
    return parser


def _keys_new(parser: argparse.ArgumentParser) -> None:
    config_option(parser)
    parser.add_argument("--name", required=True, help="whose key it is; shown in logs and lists")
    parser.add_argument("--team", default="", help="a team of the configuration; its limits count too")
    parser.add_argument("--user", default="", help="the person, for usage reports")
    parser.add_argument("--rpm", type=int, metavar="N", help="requests per minute")
    parser.add_argument("--tpm", type=int, metavar="N", help="tokens per minute")
    parser.add_argument("--concurrent", type=int, metavar="N", help="requests at once")
    parser.add_argument("--limit", action="append", metavar="LIMIT", help="further ones: usd=5/month, tokens=1000/hour@MODEL …")
    parser.add_argument("--models", metavar="A,B", help="models that it may use (default: all)")
    parser.add_argument("--expires", metavar="WHEN", help="30d, 12h, 2027-01-31 … (default: never)")
    parser.add_argument("--usage-on-finish", action="store_true", help="its streams tell usage on the finish chunk")
    parser.add_argument("--default-model", default="", metavar="MODEL", help="answers where it asks for an unknown model")
    parser.add_argument("--admin", action="store_true", help="an admin key (the scope `admin`)")
    parser.add_argument(
        "--scope", action="append", choices=sorted(SCOPES), help="inference (default), team-admin, viewer, admin"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_new)


def _serve(chosen: argparse.Namespace) -> int:
    found = configuration(chosen)
    try_templates(found.snapshot, found.file)
    from gateway.app import serve

    return serve(found)


def _check(chosen: argparse.Namespace) -> int:
    found = load(chosen.file)
    snapshot = found.snapshot
    try_templates(snapshot, found.file)
    unfit = []
    if found.redis_url is not None:
        from gateway.limits.suitability import examined

        unfit = examined(found.redis_url)
    sound = all(finding.severity != "error" for finding in unfit)
    said = [{"severity": finding.severity, "key": "redis.url", "problem": finding.message} for finding in unfit]
    if chosen.json:
        head = {"file": str(chosen.file), "sound": sound, "version": snapshot.version}
        errors = [one for one in said if one["severity"] == "error"]
        print(json.dumps({**head, "problems": errors, "warnings": [one for one in said if one not in errors]}))
        return 0 if sound else 1
    for one in said:
        print(f"{chosen.file}: {one['key']}: {one['severity']}: {one['problem']}", file=sys.stderr)
    if not sound:
        return 1
    counts = {
        "models": len({route.name for route in snapshot.models.values()}),
        "deployments": len(snapshot.deployments),
        "engines": len(snapshot.engines),
        "teams": len(snapshot.teams),
        "declared keys": len(snapshot.declared_keys),
    }
    print(f"{chosen.file}: sound; version {snapshot.version}")
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    if chosen.explain:
        from gateway.explain import explanation

        print()
        print(explanation(snapshot), end="")
    return 0


def _doctor(chosen: argparse.Namespace) -> int:
    import msgspec

    from gateway.doctor import chosen_caps, examine

    found = configuration(chosen)
    snapshot = found.snapshot
    try_templates(snapshot, found.file)
    known = snapshot.deployments
    for name in chosen.deployments:
        if name not in known:
            raise Refused(
                f"there is no deployment named {name!r}; {suggestion(name, sorted(known)) or 'see the configuration'}"
            )
    caps = chosen_caps(snapshot.models.values())
    reports = asyncio.run(examine([known[name] for name in chosen.deployments or known], chosen.timeout, caps))
    rows = [msgspec.to_builtins(report) for report in reports]
    if chosen.json:
        print(json.dumps(rows, indent=2))
    else:
        columns = [
            "deployment",
            "reachable",
            "models",
            "streaming",
            "usage",
            "tools",
            "schema",
            "logprobs",
            "template",
            "server",
        ]
        shown = [{**row, "first token": "-" if (ms := row["first_token_ms"]) is None else f"{ms} ms"} for row in rows]
        print(table([*columns, "first token"], shown))
        for report in reports:
            for finding in report.findings:
                print(f"{report.deployment}: {finding}")
    return 0 if all(report.well for report in reports) else 1


def _capabilities(_: argparse.Namespace) -> int:
    from gateway.capabilities import page

    print(page(), end="")
    return 0


def _version(_: argparse.Namespace) -> int:
    from gateway.edge.web import VERSION

    print(f"switchyard {VERSION}")
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

    found = configuration(chosen)
    now_us = time.time_ns() // 1000
    new = NewKey(
        name=chosen.name,
        team=_team(chosen.team, found),
        user=chosen.user,
        models=models(chosen.models, found),
        rpm=chosen.rpm,
        tpm=chosen.tpm,
        concurrent=chosen.concurrent,
        scopes=frozenset(chosen.scope or ()) | ({"admin"} if chosen.admin else set()) or frozenset({"inference"}),
        limits=limits(chosen.limit or [], found),
        expires_us=expiry(chosen.expires, now_us),
        usage_on_finish=chosen.usage_on_finish,
        default_model=default_model(chosen.default_model, found),
    )
    try:
        new.check(now_us)
        minted = asyncio.run(create_key(database(found), pepper(found), new, declared(found)))
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

    found = configuration(chosen)
    try:
        records = asyncio.run(list_keys(database(found)))
    except GatewayError as error:
        raise Refused(error.message) from error
    now_us = time.time_ns() // 1000
    rows = [_row(record, now_us) for record in records]
    columns = ["id", "name", "team", "models", "limits", "created", "expires", "state"]
    print(show(columns, rows, "no keys were minted yet", as_json=chosen.json))
    return 0


def _revoke(chosen: argparse.Namespace) -> int:
    from gateway.auth.keystore import UnknownKey, revoke_key

    found = configuration(chosen)
    try:
        asyncio.run(revoke_key(database(found), chosen.id))
    except UnknownKey as error:
        raise Refused(f"no key has the id {chosen.id!r}; see `switchyard keys list`") from error
    except GatewayError as error:
        raise Refused(error.message) from error
    print(json.dumps({"id": chosen.id, "revoked": True}) if chosen.json else f"revoked {chosen.id}")
    return 0


def _team(name: str, found: Configuration) -> str:
    """A team of the file or of the database; a database that is not there yet has none, and is not made for this."""
    from gateway.auth.owners import list_owners
    from gateway.ledger.migrations import sqlite_path

    known = set(found.snapshot.teams)
    if name and name not in known:
        path = sqlite_path(found.ledger_url)
        if path is None or path.exists():
            try:
                known |= {one.name for one in asyncio.run(list_owners(database(found))) if one.kind == "team"}
            except GatewayError as error:
                raise Refused(error.message) from error
        if name not in known:
            hint = suggestion(name, sorted(known)) or f"teams: {', '.join(sorted(known)) or 'none'}"
            raise Refused(f"--team: there is no team {name!r}; {hint}")
    return name


def _row(record: KeyRecord, now_us: int) -> dict[str, str]:
    return {
        "id": record.id,
        "name": record.name,
        "team": record.team,
        "models": "all" if record.models is None else ", ".join(sorted(record.models)),
        "limits": ", ".join(limit_text(spec) for spec in record.limit_specs()) or "default",
        "created": instant_text(record.created_us),
        "expires": instant_text(record.expires_us),
        "user": record.user,
        "scopes": ", ".join(sorted(record.scopes)),
        "state": record.state(now_us),
    }


def _iso(micros: int | None) -> str | None:
    return None if micros is None else instant_text(micros)
