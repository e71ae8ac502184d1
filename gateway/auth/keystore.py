"""Minted keys in SQL: who holds which, and a counter that tells every worker that something changed.

Only hashes under the pepper are stored. Tables: `gateway.auth.tables`; transactions: `gateway.auth.database`.
"""

from __future__ import annotations

import secrets
import time
from base64 import b32decode
from collections.abc import Callable, Sequence
from contextlib import aclosing

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.auth.circle import Circle
from gateway.auth.database import By, Change, Database, KeysUnavailable, to_json
from gateway.auth.keys import PUBLIC_BYTES, RANDOM_BYTES, MintedKey, mint, stored_hash
from gateway.auth.owners import read_owners, require_owner
from gateway.auth.prices import read_prices
from gateway.auth.records import (
    SCOPES,
    Changes,
    InFile,
    InvalidKey,
    KeyChange,
    KeyLimit,
    KeyRecord,
    KeyRetired,
    NewKey,
    UnknownKey,
    check_limits,
    check_models,
    check_scopes,
    check_text,
    stated,
)
from gateway.auth.tables import KEYS, METADATA, REVISION

__all__ = [
    "KEYS", "METADATA", "REVISION", "SCOPES", "Changes", "InvalidKey", "KeyLimit", "KeyRecord", "KeyRetired", "KeyStore",
    "KeysUnavailable", "NewKey", "UnknownKey", "create_key", "list_keys", "revoke_key",
]  # fmt: skip
#: The longest that an old secret may go on after a rotation: 30 days.
MAX_GRACE_S = 30 * 86_400
_CLI = "cli"
#: Raises what speaks against changing a stored key.
Guard = Callable[[KeyRecord], None]


class KeyStore:
    """Reads and writes keys. One per process, made after a fork; `aclose` it.

    Args:
        database: a URL (`sqlite+aiosqlite:///path` or `postgresql+asyncpg://…`), or connections that others share.
        timeout_s: how long one call may take before it counts as an outage.
    """

    def __init__(self, database: str | Database, timeout_s: float = 2.0) -> None:
        self.database = Database(database, timeout_s) if isinstance(database, str) else database

    async def create(
        self,
        pepper: bytes,
        new: NewKey,
        by: By,
        randomness: bytes,
        in_file: InFile | None = None,
        circle: Circle | None = None,
    ) -> tuple[MintedKey, KeyRecord]:
        """Mint a key and store its hash.

        Args:
            in_file: which teams the configuration file has; None leaves the team unchecked.
            circle: whose users it may name; None = anybody.

        Raises:
            InvalidKey: the description is wrong; nothing was written.
            KeysUnavailable: the database does not answer.
        """
        new.check(by.at_us)
        minted = mint(pepper, randomness)
        record = KeyRecord(
            id=minted.id,
            hash=stored_hash(pepper, minted.secret.encode()),
            name=new.name,
            team=new.team,
            user=new.user,
            models=new.models,
            limits=new.all_limits(),
            scopes=new.scopes,
            created_us=by.at_us,
            expires_us=new.expires_us,
            revoked_us=None,
            usage_on_finish=new.usage_on_finish,
            default_model=new.default_model,
        )
        async with self.database.changing(by) as change:
            if in_file is not None and new.team:
                await require_owner(change.connection, "team", new.team, in_file)
            if circle is not None:
                await circle.require(change.connection, new.user)
            await change.connection.execute(sa.insert(KEYS).values({**_columns(record), "revision": change.revision}))
            await change.audit("create", "key", record.id, _shown(_told(record)), record.team)
        return minted, record

    async def change(
        self,
        id: str,
        change: KeyChange,
        by: By,
        in_file: InFile | None = None,
        guard: Guard | None = None,
        circle: Circle | None = None,
    ) -> KeyRecord:
        """Change a key's fields, all or none.

        Args:
            in_file, circle: as for `create`.
            guard: sees the stored key inside the transaction and raises what speaks against the change.

        Raises:
            InvalidKey: a value is wrong.
            UnknownKey, KeyRetired: there is nothing to change.
            KeysUnavailable: the database does not answer.
        """
        fields = stated(change)
        async with self.database.changing(by) as transaction:
            before = await _locked(transaction, id, guard)
            after = msgspec.structs.replace(before, **fields)
            _check(after, fields, by.at_us)
            if in_file is not None and after.team and after.team != before.team:
                await require_owner(transaction.connection, "team", after.team, in_file)
            if circle is not None and after.user != before.user:
                await circle.require(transaction.connection, after.user)
            await _write(transaction, after)
            await transaction.audit("change", "key", id, _shown(fields), after.team)
        return after

    async def suspend(self, id: str, by: By, guard: Guard | None = None) -> KeyRecord:
        """Refuse the key until `resume`; again keeps the first instant.

        Raises:
            UnknownKey, KeyRetired, KeysUnavailable: see `change`.
        """
        return await self._mark(id, by, "suspend", guard)

    async def resume(self, id: str, by: By, guard: Guard | None = None) -> KeyRecord:
        """Let a suspended key in again.

        Raises:
            UnknownKey, KeyRetired, KeysUnavailable: see `change`.
        """
        return await self._mark(id, by, "resume", guard)

    async def revoke(self, id: str, by: By, guard: Guard | None = None) -> KeyRecord:
        """Revoke a key for good; revoking it again keeps the first instant.

        Raises:
            UnknownKey: no such key; nothing was changed.
            KeysUnavailable: the database does not answer.
        """
        return await self._mark(id, by, "revoke", guard)

    async def rotate(
        self, id: str, pepper: bytes, by: By, randomness: bytes, grace_s: int, guard: Guard | None = None
    ) -> tuple[MintedKey, KeyRecord]:
        """A new secret under the same public id. The old one is good for `grace_s` seconds more; one that an earlier
        rotation left in its grace ends now.

        Raises:
            InvalidKey: `grace_s` is not from 0 to 30 days.
            UnknownKey, KeyRetired, KeysUnavailable: see `change`.
        """
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise InvalidKey(f"grace_s: from 0 to {MAX_GRACE_S} seconds")
        async with self.database.changing(by) as change:
            before = await _locked(change, id, guard)
            minted = mint(pepper, b32decode(id.upper()) + randomness[PUBLIC_BYTES:])
            after = msgspec.structs.replace(
                before,
                hash=stored_hash(pepper, minted.secret.encode()),
                previous_hash=before.hash if grace_s else None,
                previous_until_us=by.at_us + grace_s * 1_000_000 if grace_s else None,
            )
            await _write(change, after)
            await change.audit("rotate", "key", id, {"grace_s": grace_s}, after.team)
        return minted, after

    async def list(
        self, *, team: str | None = None, user: str | None = None, after: str | None = None, limit: int | None = None
    ) -> Sequence[KeyRecord]:
        """Keys, oldest first.

        Args:
            team, user: only theirs.
            after: begin after the key with this id; an unknown one gives none.
            limit: at most so many.

        Raises:
            KeysUnavailable: the database does not answer.
        """
        query = sa.select(KEYS).order_by(KEYS.c.created_us, KEYS.c.id).limit(limit)
        if team is not None:
            query = query.where(KEYS.c.team == team)
        if user is not None:
            query = query.where(KEYS.c.user == user)
        if after is not None:
            at = sa.select(KEYS.c.created_us).where(KEYS.c.id == after).scalar_subquery()
            query = query.where(sa.or_(KEYS.c.created_us > at, sa.and_(KEYS.c.created_us == at, KEYS.c.id > after)))
        async with self.database.reading() as connection:
            return tuple(_record(row) for row in await connection.execute(query))

    async def find(self, id: str) -> KeyRecord | None:
        """The key with this public id, in whatever state.

        Raises:
            KeysUnavailable: the database does not answer.
        """
        async with self.database.reading() as connection:
            return await _find(connection, id)

    async def find_by_hash(self, hash: str) -> KeyRecord | None:
        """The key with this stored hash, now or before its last rotation; revoked and expired ones too.

        Raises:
            KeysUnavailable: the database does not answer.
        """
        query = sa.select(KEYS).where(sa.or_(KEYS.c.hash == hash, KEYS.c.previous_hash == hash))
        async with self.database.reading() as connection:
            row = (await connection.execute(query)).first()
            return None if row is None else _record(row)

    async def changes(self, since: int | None) -> Changes:
        """The present revision, and what changed after `since` (None: anything may have).

        Raises:
            KeysUnavailable: the database does not answer.
        """
        async with self.database.reading() as connection:
            found = (await connection.execute(sa.select(REVISION.c.revision, REVISION.c.owners, REVISION.c.prices))).one()
            revision, owners_at, prices_at = int(found[0]), int(found[1]), int(found[2])
            if revision == since:
                return Changes(revision, ())
            everything = since is None or revision < since
            owners = await read_owners(connection) if since is None or everything or owners_at > since else None
            prices = await read_prices(connection) if since is None or everything or prices_at > since else None
            if since is None or everything:
                return Changes(revision, None, owners, prices)
            rows = await connection.execute(sa.select(KEYS.c.id).where(KEYS.c.revision > since))
            return Changes(revision, tuple(str(id) for id in rows.scalars()), owners, prices)

    async def aclose(self) -> None:
        """Close the pooled connections."""
        await self.database.aclose()

    async def _mark(self, id: str, by: By, action: str, guard: Guard | None) -> KeyRecord:
        async with self.database.changing(by) as change:
            before = await _locked(change, id, guard, retired_too=action == "revoke")
            if action == "revoke":
                after = msgspec.structs.replace(
                    before,
                    revoked_us=by.at_us if before.revoked_us is None else before.revoked_us,
                    previous_hash=None,
                    previous_until_us=None,
                )
            else:
                first = by.at_us if before.suspended_us is None else before.suspended_us
                after = msgspec.structs.replace(before, suspended_us=first if action == "suspend" else None)
            await _write(change, after)
            await change.audit(action, "key", id, {}, after.team)
        return after


async def create_key(database_url: str, pepper: bytes, new: NewKey, in_file: InFile | None = None) -> MintedKey:
    """Mint and store a key from a short-lived program (the command line). The database must be migrated.

    Raises:
        InvalidKey, WeakPepper, KeysUnavailable: see `KeyStore.create`.
    """
    async with aclosing(KeyStore(database_url)) as store:
        minted, _ = await store.create(pepper, new, by_cli(), secrets.token_bytes(RANDOM_BYTES), in_file)
        return minted


async def list_keys(database_url: str) -> Sequence[KeyRecord]:
    """All keys, oldest first, for a short-lived program."""
    async with aclosing(KeyStore(database_url)) as store:
        return await store.list()


async def revoke_key(database_url: str, id: str) -> None:
    """Revoke a key from a short-lived program.

    Raises:
        UnknownKey, KeysUnavailable: see `KeyStore.revoke`.
    """
    async with aclosing(KeyStore(database_url)) as store:
        await store.revoke(id, by_cli())


def by_cli() -> By:
    """Who changes something from the command line, now."""
    return By(_CLI, time.time_ns() // 1000)


def _check(after: KeyRecord, fields: dict[str, object], now_us: int) -> None:
    check_text("name", after.name, required=True)
    check_text("team", after.team)
    check_text("user", after.user)
    check_text("default_model", after.default_model)
    check_models(after.models)
    check_limits(after.limits)
    check_scopes(after.scopes, after.team)
    if "expires_us" in fields and after.expires_us is not None and after.expires_us <= now_us:
        raise InvalidKey("expires: already past")


async def _find(connection: AsyncConnection, id: str) -> KeyRecord | None:
    row = (await connection.execute(sa.select(KEYS).where(KEYS.c.id == id))).first()
    return None if row is None else _record(row)


async def _locked(change: Change, id: str, guard: Guard | None, *, retired_too: bool = False) -> KeyRecord:
    """The key in a transaction; the revision's lock keeps others from changing it."""
    found = await _find(change.connection, id)
    if found is None:
        raise UnknownKey("no key has this id")
    if guard is not None:
        guard(found)
    if found.revoked_us is not None and not retired_too:
        raise KeyRetired("the key was revoked for good; mint another one")
    return found


async def _write(change: Change, record: KeyRecord) -> None:
    values = {**_columns(record), "revision": change.revision}
    await change.connection.execute(sa.update(KEYS).where(KEYS.c.id == record.id).values(values))


def _told(record: KeyRecord) -> dict[str, object]:
    fields = msgspec.structs.asdict(record)
    told = ("name", "team", "user", "models", "limits", "scopes", "expires_us", "usage_on_finish", "default_model")
    return {name: fields[name] for name in told}


def _shown(fields: dict[str, object]) -> dict[str, object]:
    """Fields as the audit row tells them."""
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in fields.items()}


def _columns(record: KeyRecord) -> dict[str, object]:
    fields = msgspec.structs.asdict(record)
    return {
        **fields,
        "models": None if record.models is None else to_json(sorted(record.models)),
        "limits": to_json(record.limits),
        "scopes": to_json(sorted(record.scopes)),
    }


def _record(row: sa.Row[tuple[object, ...]]) -> KeyRecord:
    fields = dict(row._mapping)
    fields.pop("revision")
    models, limits, scopes = fields.pop("models"), fields.pop("limits"), fields.pop("scopes")
    return KeyRecord(
        **fields,
        models=None if models is None else msgspec.json.decode(models, type=frozenset[str]),
        limits=msgspec.json.decode(limits, type=tuple[KeyLimit, ...]),
        scopes=msgspec.json.decode(scopes, type=frozenset[str]),
    )
