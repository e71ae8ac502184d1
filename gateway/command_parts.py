"""What the commands share: options, the configuration and its database, values as people type them, and tables."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gateway.auth.overlay import in_file
from gateway.auth.records import InFile, KeyLimit, OwnerKind, stored_limits
from gateway.config.compiled_limits import compile_limits
from gateway.config.csv_text import csv_text
from gateway.config.durations import parse_expiry
from gateway.config.embedded import embedded_configuration
from gateway.config.loader import load
from gateway.config.settings import Configuration
from gateway.config.validation import suggestion

if TYPE_CHECKING:
    from pydantic import BaseModel

Body = TypeVar("Body", bound="BaseModel")
_LIMIT = re.compile(r"([a-z_]+)=([0-9.]+)(?:/([a-z_]+))?(?:@(.+))?")


class Refused(Exception):
    """A command cannot be carried out; the text is for the person who typed it."""


def config_option(parser: argparse.ArgumentParser) -> None:
    """`--config`."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration file (default: the embedded configuration, in this folder)"
    )


def json_option(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def configuration(chosen: argparse.Namespace) -> Configuration:
    """The configuration that the options name.

    Raises:
        ConfigError: it cannot be used.
    """
    return load(chosen.config) if chosen.config is not None else embedded_configuration(Path.cwd())


def database(found: Configuration) -> str:
    """The key database's URL, brought to the newest form first.

    Raises:
        Refused: it cannot be used.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from gateway.ledger.migrations import UnsupportedDatabase, migrate

    try:
        migrate(found.ledger_url)
    except (UnsupportedDatabase, SQLAlchemyError, OSError) as error:
        # A driver's own words may hold the database's address: only the kind of error is shown.
        words = str(error) if isinstance(error, UnsupportedDatabase) else type(error).__name__
        raise Refused(f"ledger.url: the database cannot be used: {words}") from error
    return found.ledger_url


def pepper(found: Configuration) -> bytes:
    """The key pepper, made at its first use.

    Raises:
        Refused: it can be neither read nor made. WeakPepper: it is too short.
    """
    from gateway.auth.pepper import load_or_create_pepper

    configured = found.static.auth.pepper
    if configured is not None:
        return configured.get_secret_value().encode()
    try:
        return load_or_create_pepper(found.state_dir / "pepper")
    except OSError as error:
        raise Refused(f"the pepper in {found.state_dir} can be neither read nor made: {error.strerror}") from error


def declared(found: Configuration) -> InFile:
    """Which names the configuration file has."""

    def has(kind: OwnerKind, name: str) -> bool:
        return in_file(found.snapshot, kind, name)

    return has


def models(text: str | None, found: Configuration) -> frozenset[str] | None:
    """`a,b` as the public names; an alias stands for its model.

    Raises:
        Refused: there is no such model.
    """
    if text is None:
        return None
    known = found.snapshot.models
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            hint = suggestion(name, sorted(known)) or f"models: {', '.join(sorted(known)) or 'none'}"
            raise Refused(f"--models: the configuration has no model {name!r}; {hint}")
    return frozenset(known[name].name for name in names)


def default_model(text: str, found: Configuration) -> str:
    """The public name of the model that answers for unknown ones; "" for none.

    Raises:
        Refused: there is no such model.
    """
    known = found.snapshot.models
    if text and text not in known:
        raise Refused(f"--default-model: the configuration has no model {text!r}; {suggestion(text, sorted(known))}")
    return known[text].name if text else ""


def expiry(text: str | None, now_us: int) -> int | None:
    """`30d` or a date as an instant, µs UTC.

    Raises:
        Refused: neither, or past.
    """
    if text is None:
        return None
    try:
        return parse_expiry(text, now_us)
    except ValueError as error:
        raise Refused(f"--expires: {error}") from error


def limits(texts: Sequence[str], found: Configuration) -> tuple[KeyLimit, ...]:
    """`tokens=1000/minute`, `usd=5/month`, `concurrent=4`, each with `@model` where it counts one model's requests.

    Raises:
        Refused: one is no limit.
    """
    from gateway.config.entries import Limit

    entries: list[Limit] = []
    for text in texts:
        match = _LIMIT.fullmatch(text)
        if match is None:
            raise Refused(f"--limit {text}: write tokens=1000/minute, usd=5/month or concurrent=4, and @MODEL behind it")
        unit, amount, per, model = match.groups()
        if model is not None and model not in found.snapshot.models:
            raise Refused(f"--limit {text}: the configuration has no model {model!r}")
        fields = {unit: amount, "per": per, "model": found.snapshot.models[model].name if model else None}
        try:
            entries.append(validated(Limit, {name: value for name, value in fields.items() if value is not None}))
        except Refused as refused:
            raise Refused(f"--limit {text}: {refused}") from refused
    return stored_limits(compile_limits(entries, ""))


def validated(model: type[Body], fields: dict[str, object]) -> Body:
    """What was typed, checked as a body of the admin API is.

    Raises:
        Refused: naming the option.
    """
    from pydantic import ValidationError

    from gateway.config.validation import suggestion, words_of

    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        words = words_of(first)
        if first["type"] == "extra_forbidden":
            words = f"{words}; {suggestion(where, list(model.model_fields)) or 'known are ' + ', '.join(model.model_fields)}"
        raise Refused(f"{where}: {words}" if where else words) from error


def show(columns: Sequence[str], rows: Sequence[dict[str, str]], nothing: str, *, as_json: bool) -> str:
    """Rows as JSON or as a table; `nothing` when there are none."""
    if as_json:
        return json.dumps(list(rows), indent=2)
    return table(columns, rows) if rows else nothing


def row_options(parser: argparse.ArgumentParser) -> None:
    """`--csv` and `--json`, of a command that `print_rows`."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print CSV")
    form.add_argument("--json", action="store_true", help="print JSON")


def print_rows(
    chosen: argparse.Namespace,
    columns: Sequence[str],
    rows: Sequence[dict[str, str]],
    nothing: str,
    whole: Sequence[object] | None = None,
) -> int:
    """Rows in the form that was asked for; `whole` is what JSON shows of them. Returns the exit status."""
    if chosen.json:
        print(json.dumps(list(rows if whole is None else whole), indent=2))
    elif chosen.csv:
        print(csv_text(columns, [[row[name] for name in columns] for row in rows]), end="")
    else:
        print(table(columns, rows) if rows else nothing)
    return 0


def table(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> str:
    """Aligned columns under a header."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    lines = ["  ".join(name.upper().ljust(widths[name]) for name in columns)]
    lines += ["  ".join(row[name].ljust(widths[name]) for name in columns) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
