"""`switchyard models list | load | unload`: the local engines of a running gateway, asked through its admin API."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gateway.command_parts import Refused, config_option, configuration, json_option, show
from gateway.config.secrets import BadReference, resolve_reference
from gateway.config.settings import Configuration

Commands = Any  # argparse does not name the type of `add_subparsers`
_COLUMNS = ("name", "models", "kind", "load", "state", "memory", "loads", "reason")


def add_models(commands: Commands) -> None:
    """`models`."""
    actions = commands.add_parser("models", help="see, load and unload the local models of the running gateway")
    actions = actions.add_subparsers(required=True, metavar="action")
    _action(actions.add_parser("list", help="list them with their states")).set_defaults(run=_list)
    load = _action(actions.add_parser("load", help="load one, and wait until it is ready"), named=True)
    load.set_defaults(run=_load)
    unload = _action(actions.add_parser("unload", help="unload one when its open requests have ended"), named=True)
    unload.add_argument("--force", action="store_true", help="at once: its open requests fail")
    unload.set_defaults(run=_unload)


def _action(parser: argparse.ArgumentParser, *, named: bool = False) -> argparse.ArgumentParser:
    config_option(parser)
    json_option(parser)
    parser.add_argument("--url", help="address of the gateway (default: by server.listen)")
    parser.add_argument(
        "--key",
        default="env:SWITCHYARD_ADMIN_KEY",
        metavar="REF",
        help="env:NAME or file:PATH of an admin key (default: env:SWITCHYARD_ADMIN_KEY)",
    )
    if named:
        parser.add_argument("name", help="an engine, or a public model: then all of its engines")
        parser.add_argument(
            "--wait", type=float, default=300.0, metavar="S", help="seconds to wait (default: 300, at most 600)"
        )
    return parser


def _list(chosen: argparse.Namespace) -> int:
    return _show(chosen, _ask(chosen, "GET", "", {}))


def _load(chosen: argparse.Namespace) -> int:
    rows = _ask(chosen, "POST", f"/{chosen.name}/load", {"wait_s": chosen.wait})
    _show(chosen, rows)
    return 0 if all(row["state"] == "ready" for row in rows) else 1


def _unload(chosen: argparse.Namespace) -> int:
    query = {"wait_s": chosen.wait, "force": str(chosen.force).lower()}
    return _show(chosen, _ask(chosen, "POST", f"/{chosen.name}/unload", query))


def _show(chosen: argparse.Namespace, rows: list[dict[str, Any]]) -> int:
    shown = [
        {**row, "models": ", ".join(row["models"]), "memory": f"{row['memory_mb']} MiB", "loads": str(row["loads"])}
        for row in rows
    ]
    print(show(_COLUMNS, rows if chosen.json else shown, "no local engine is configured", as_json=chosen.json))
    return 0


def _ask(chosen: argparse.Namespace, method: str, path: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    """The admin API's answer.

    Raises:
        Refused: no key, nobody there, or a no.
    """
    import httpx

    url = (chosen.url or _address(configuration(chosen))).rstrip("/") + "/admin/v1/models" + path
    try:
        key = resolve_reference(chosen.key, Path.cwd())
    except BadReference as bad:
        raise Refused(f"--key: {bad.problem}; {bad.mend}") from bad
    try:
        timeout_s = float(query.get("wait_s", 0)) + 15
        answer = httpx.request(method, url, params=query, headers={"authorization": f"Bearer {key}"}, timeout=timeout_s)
        found = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Refused(f"the gateway at {url} does not answer: {type(error).__name__} (is it running? see --url)") from error
    if answer.status_code >= 400:
        raise Refused(str(found.get("error", {}).get("message", answer.status_code)))
    return list(found["data"])


def _address(found: Configuration) -> str:
    """Where the configuration has it listen; a wildcard is reached by loopback."""
    server = found.static.server
    host, port = server.address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # no binding here
    return f"{'https' if server.tls_cert_file else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
