"""Organisations, teams and users in SQL: what shares limits beside what the configuration file declares.

The file's objects are read-only and win; a name in both is an error at start (`clashes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.auth.database import By, Database, to_json
from gateway.auth.records import (
    InFile,
    InvalidKey,
    KeyLimit,
    Owner,
    OwnerChange,
    OwnerExists,
    OwnerInUse,
    OwnerKind,
    UnknownOwner,
    stated,
)
from gateway.auth.tables import KEYS, OWNERS


class OwnerStore:
    """Reads and writes owners, through connections that others share.

    Args:
        database: of a migrated database.
        in_file: which names the configuration file has.
    """

    def __init__(self, database: Database, in_file: InFile) -> None:
        self._database = database
        self._in_file = in_file

    async def list(self) -> tuple[Owner, ...]:
        """All, by kind and name.

        Raises:
            KeysUnavailable: the database does not answer.
        """
        async with self._database.reading() as connection:
            return await read_owners(connection)

    async def create(self, owner: Owner, by: By) -> Owner:
        """Store a new one.

        Raises:
            InvalidKey: a value is wrong. OwnerExists: the name is taken.
            KeysUnavailable: the database does not answer.
        """
        owner = msgspec.structs.replace(owner, created_us=by.at_us)
        owner.check()
        async with self._database.changing(by) as change:
            if await _find(change.connection, owner.kind, owner.name) is not None:
                raise OwnerExists(f"there is a {owner.kind} named {owner.name!r} already")
            if owner.organisation:
                await require_owner(change.connection, "organisation", owner.organisation, self._in_file)
            try:
                await change.connection.execute(sa.insert(OWNERS).values(_columns(owner)))
            except IntegrityError:
                raise OwnerExists(f"there is a {owner.kind} named {owner.name!r} already") from None
            await change.owners_changed()
            await change.audit("create", owner.kind, owner.name, _shown(owner), _team(owner))
        return owner

    async def change(self, kind: OwnerKind, name: str, change: OwnerChange, by: By) -> Owner:
        """Change its fields, all or none.

        Raises:
            InvalidKey: a value is wrong. UnknownOwner: there is none.
            KeysUnavailable: the database does not answer.
        """
        async with self._database.changing(by) as transaction:
            before = await _find(transaction.connection, kind, name)
            if before is None:
                raise UnknownOwner(f"there is no {kind} named {name!r}")
            after = msgspec.structs.replace(before, **stated(change))
            after.check()
            if after.organisation and after.organisation != before.organisation:
                await require_owner(transaction.connection, "organisation", after.organisation, self._in_file)
            where = sa.and_(OWNERS.c.kind == kind, OWNERS.c.name == name)
            await transaction.connection.execute(sa.update(OWNERS).where(where).values(_columns(after)))
            await transaction.owners_changed()
            shown = {field: value for field, value in _shown(after).items() if field in stated(change)}
            await transaction.audit("change", kind, name, shown, _team(after))
        return after

    async def set_limits(self, kind: OwnerKind, name: str, limits: tuple[KeyLimit, ...], by: By) -> None:
        """Replace the limits of an owner that the configuration knows, such as a model; none takes them away.

        Raises:
            InvalidKey: a value is wrong.
            KeysUnavailable: the database does not answer.
        """
        owner = Owner(kind, name, limits=limits, created_us=by.at_us)
        owner.check()
        where = sa.and_(OWNERS.c.kind == kind, OWNERS.c.name == name)
        async with self._database.changing(by) as change:
            await change.connection.execute(sa.delete(OWNERS).where(where))
            if limits:
                await change.connection.execute(sa.insert(OWNERS).values(_columns(owner)))
            await change.owners_changed()
            await change.audit("change", kind, name, {"limits": limits})

    async def delete(self, kind: OwnerKind, name: str, by: By) -> None:
        """Delete one that nobody belongs to.

        Raises:
            UnknownOwner: there is none. OwnerInUse: keys or teams belong to it.
            KeysUnavailable: the database does not answer.
        """
        async with self._database.changing(by) as change:
            before = await _find(change.connection, kind, name)
            if before is None:
                raise UnknownOwner(f"there is no {kind} named {name!r}")
            used: sa.Select[tuple[str]] | None = None
            if kind == "team":
                used = sa.select(KEYS.c.id).where(KEYS.c.team == name, KEYS.c.revoked_us.is_(None))
            elif kind == "organisation":
                used = sa.select(OWNERS.c.name).where(OWNERS.c.kind == "team", OWNERS.c.organisation == name)
            if used is not None and (await change.connection.execute(used.limit(1))).first() is not None:
                who = "keys that are not revoked" if kind == "team" else "teams"
                raise OwnerInUse(f"the {kind} {name!r} still has {who}")
            await change.connection.execute(sa.delete(OWNERS).where(OWNERS.c.kind == kind, OWNERS.c.name == name))
            await change.owners_changed()
            await change.audit("delete", kind, name, {}, _team(before))


async def list_owners(database_url: str) -> Sequence[Owner]:
    """All owners, for a short-lived program or a start."""
    async with aclosing(Database(database_url)) as database, database.reading() as connection:
        return await read_owners(connection)


def owner_names(url: sa.URL, timeout_s: float = 2.0) -> list[tuple[OwnerKind, str]]:
    """Kind and name of all owners, read without asyncio and threads: for a process that forks.

    Args:
        url: of a migrated database, with a driver that is not asyncio's.
        timeout_s: for connecting and for the query.

    Raises:
        SQLAlchemyError: the database does not answer.
    """
    limits: dict[str, object] = {"timeout": timeout_s}
    if url.get_backend_name() == "postgresql":
        limits = {"connect_timeout": max(1, round(timeout_s)), "options": f"-c statement_timeout={round(timeout_s * 1000)}"}
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=limits)
    try:
        with engine.connect() as connection:
            return [(row[0], row[1]) for row in connection.execute(sa.select(OWNERS.c.kind, OWNERS.c.name))]
    finally:
        engine.dispose()


async def read_owners(connection: AsyncConnection) -> tuple[Owner, ...]:
    """All owners, by kind and name."""
    rows = await connection.execute(sa.select(OWNERS).order_by(OWNERS.c.kind, OWNERS.c.name))
    return tuple(_owner(row) for row in rows)


async def require_owner(connection: AsyncConnection, kind: OwnerKind, name: str, in_file: InFile) -> None:
    """Refuse a reference that leads nowhere.

    Raises:
        InvalidKey: neither the file nor the database has it.
    """
    if not in_file(kind, name) and await _find(connection, kind, name) is None:
        raise InvalidKey(f"{kind}: there is no {kind} named {name!r}")


async def _find(connection: AsyncConnection, kind: OwnerKind, name: str) -> Owner | None:
    query = sa.select(OWNERS).where(OWNERS.c.kind == kind, OWNERS.c.name == name)
    row = (await connection.execute(query)).first()
    return None if row is None else _owner(row)


def _team(owner: Owner) -> str:
    return owner.name if owner.kind == "team" else ""


def _shown(owner: Owner) -> dict[str, object]:
    """What the audit row tells of it."""
    models = None if owner.models is None else sorted(owner.models)
    fields: dict[str, object] = {
        "organisation": owner.organisation,
        "zone": owner.zone,
        "models": models,
        "limits": owner.limits,
    }
    return fields


def _columns(owner: Owner) -> dict[str, object]:
    return {
        **msgspec.structs.asdict(owner),
        "models": None if owner.models is None else to_json(sorted(owner.models)),
        "limits": to_json(owner.limits),
    }


def _owner(row: sa.Row[tuple[object, ...]]) -> Owner:
    fields = dict(row._mapping)
    models, limits = fields.pop("models"), fields.pop("limits")
    return Owner(
        **fields,
        models=None if models is None else msgspec.json.decode(models, type=frozenset[str]),
        limits=msgspec.json.decode(limits, type=tuple[KeyLimit, ...]),
    )
