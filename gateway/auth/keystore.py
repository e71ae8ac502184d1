"""Minted keys in SQL: who holds which, and a counter that tells every worker that something changed.

Only hashes under the pepper are stored. Every change bumps the one row of `key_revision` first and writes the new
number into the key it changes, in one transaction: the row lock makes the order of numbers the order of commits, so a
reader that knows number n asks for "changed after n" and misses nothing. Tables are made by `gateway.ledger.migrations`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from backends.core.errors import GatewayError
from gateway.auth.keys import RANDOM_BYTES, MintedKey, mint, stored_hash
from gateway.domain.principal import LimitSpec, OnInsufficient, OnOutage, Period, Unit

METADATA = sa.MetaData()
KEYS = sa.Table(
    "keys",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("team", sa.String(128), nullable=False),
    sa.Column("user", sa.String(128), nullable=False),
    sa.Column("models", sa.Text, nullable=True),
    sa.Column("limits", sa.Text, nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("expires_us", sa.BigInteger, nullable=True),
    sa.Column("revoked_us", sa.BigInteger, nullable=True),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
)
REVISION = sa.Table(
    "key_revision",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
)
#: Limits are stored in Redis as doubles: above this they would be rounded.
LARGEST_LIMIT = 2**53
SCOPES = frozenset({"inference", "admin"})
_TEXT_CHARS = 128
_MODELS_MAX = 1000


class KeysUnavailable(GatewayError):
    """The key database does not answer and the key is not known in memory (503): neither right nor wrong."""

    status = 503
    default_code = "keys_unavailable"


class InvalidKey(ValueError):
    """A new key's description is wrong; the message names the field."""


class UnknownKey(LookupError):
    """No key has this public id."""


class KeyLimit(msgspec.Struct, frozen=True):
    """A limit as it is stored, without its owner: the fields of `LimitSpec`. Stored as JSON, so fields may be added."""

    unit: Unit
    limit: int
    window_ms: int = 0
    on_outage: OnOutage | None = None
    period: Period | None = None
    zone: str = ""
    model: str = ""
    shadow: bool = False
    on_insufficient: OnInsufficient | None = None

    def spec(self, scope: str) -> LimitSpec:
        """This limit as that of an owner (`key:<id>`)."""
        return LimitSpec(scope, *msgspec.structs.astuple(self))


class NewKey(msgspec.Struct, frozen=True):
    """What a key shall be. None = no such limit, every model, or never. Rates are per minute; `expires_us` µs UTC."""

    name: str
    team: str = ""
    user: str = ""
    models: frozenset[str] | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrent: int | None = None
    scopes: frozenset[str] = frozenset({"inference"})
    expires_us: int | None = None

    def limits(self) -> tuple[KeyLimit, ...]:
        """The limits as they are stored."""
        stated: tuple[tuple[Unit, int | None, int], ...] = (
            ("requests", self.rpm, 60_000),
            ("tokens", self.tpm, 60_000),
            ("slots", self.concurrent, 0),
        )
        return tuple(KeyLimit(unit, limit, window) for unit, limit, window in stated if limit is not None)

    def check(self, now_us: int) -> None:
        """Refuse what makes no sense.

        Raises:
            InvalidKey: naming the field.
        """
        for field, text in (("name", self.name), ("team", self.team), ("user", self.user)):
            if len(text) > _TEXT_CHARS or not text.isprintable():
                raise InvalidKey(f"{field}: at most {_TEXT_CHARS} printable characters")
        if not self.name.strip():
            raise InvalidKey("name: must not be empty")
        for field, limit in (("rpm", self.rpm), ("tpm", self.tpm), ("concurrent", self.concurrent)):
            if limit is not None and not 1 <= limit <= LARGEST_LIMIT:
                raise InvalidKey(f"{field}: from 1 to 2^53, not {limit}")
        if self.models is not None and not all(self.models):
            raise InvalidKey("models: an empty name")
        if self.models is not None and not 1 <= len(self.models) <= _MODELS_MAX:
            raise InvalidKey(f"models: from 1 to {_MODELS_MAX} names; leave it out for every model")
        if not self.scopes or self.scopes - SCOPES:
            raise InvalidKey(f"scopes: one or more of {', '.join(sorted(SCOPES))}")
        if self.expires_us is not None and self.expires_us <= now_us:
            raise InvalidKey("expires: already past")


class KeyRecord(msgspec.Struct, frozen=True):
    """A stored key. Instants µs UTC; `models` None = all. `repr` shows the public id alone."""

    id: str
    hash: str
    name: str
    team: str
    user: str
    models: frozenset[str] | None
    limits: tuple[KeyLimit, ...]
    scopes: frozenset[str]
    created_us: int
    expires_us: int | None
    revoked_us: int | None

    def __repr__(self) -> str:
        return f"KeyRecord({self.id!r})"

    def limit_specs(self) -> tuple[LimitSpec, ...]:
        """The key's own limits, under its own scope."""
        return tuple(each.spec(f"key:{self.id}") for each in self.limits)


class Changes(msgspec.Struct, frozen=True):
    """What changed since a revision. `ids` None: unknown (the counter went back), so anything may have changed."""

    revision: int
    ids: tuple[str, ...] | None


class KeyStore:
    """Reads and writes keys. One per process, made after a fork; `aclose` it.

    Args:
        database_url: `sqlite+aiosqlite:///path` or `postgresql+asyncpg://…`.
        timeout_s: how long one call may take before it counts as an outage.
    """

    def __init__(self, database_url: str, timeout_s: float = 2.0) -> None:
        self._engine = _engine(database_url, timeout_s)
        self._timeout_s = timeout_s

    async def create(self, pepper: bytes, new: NewKey, now_us: int, randomness: bytes) -> MintedKey:
        """Mint a key and store its hash.

        Raises:
            InvalidKey: the description is wrong; nothing was written.
            KeysUnavailable: the database does not answer.
        """
        new.check(now_us)
        minted = mint(pepper, randomness)
        async with self._change() as (connection, revision):
            row = {
                "id": minted.id,
                "hash": stored_hash(pepper, minted.secret.encode()),
                "name": new.name,
                "team": new.team,
                "user": new.user,
                "models": None if new.models is None else _json(sorted(new.models)),
                "limits": _json(new.limits()),
                "scopes": _json(sorted(new.scopes)),
                "created_us": now_us,
                "expires_us": new.expires_us,
                "revoked_us": None,
                "revision": revision,
            }
            await connection.execute(sa.insert(KEYS).values(row))
        return minted

    async def revoke(self, id: str, now_us: int) -> None:
        """Revoke a key for good; revoking it again keeps the first instant.

        Raises:
            UnknownKey: no such key; nothing was changed.
            KeysUnavailable: the database does not answer.
        """
        async with self._change() as (connection, revision):
            revoked = sa.func.coalesce(KEYS.c.revoked_us, now_us)
            done = await connection.execute(
                sa.update(KEYS).where(KEYS.c.id == id).values(revoked_us=revoked, revision=revision)
            )
            if done.rowcount == 0:
                raise UnknownKey("no key has this id")

    async def list(self) -> Sequence[KeyRecord]:
        """All keys, oldest first.

        Raises:
            KeysUnavailable: the database does not answer.
        """
        async with self._reading() as connection:
            rows = await connection.execute(sa.select(KEYS).order_by(KEYS.c.created_us, KEYS.c.id))
            return tuple(_record(row) for row in rows)

    async def find_by_hash(self, hash: str) -> KeyRecord | None:
        """The key with this stored hash, revoked and expired ones too.

        Raises:
            KeysUnavailable: the database does not answer.
        """
        async with self._reading() as connection:
            row = (await connection.execute(sa.select(KEYS).where(KEYS.c.hash == hash))).first()
            return None if row is None else _record(row)

    async def changes(self, since: int | None) -> Changes:
        """The present revision, and the ids changed after `since` (None: any may have).

        Raises:
            KeysUnavailable: the database does not answer.
        """
        async with self._reading() as connection:
            revision = int((await connection.execute(sa.select(REVISION.c.revision))).scalar_one())
            if since is None or revision < since:
                return Changes(revision, None)
            if revision == since:
                return Changes(revision, ())
            rows = await connection.execute(sa.select(KEYS.c.id).where(KEYS.c.revision > since))
            return Changes(revision, tuple(str(id) for id in rows.scalars()))

    async def aclose(self) -> None:
        """Close the pooled connections."""
        await self._engine.dispose()

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        with _outage():
            async with asyncio.timeout(self._timeout_s), self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[tuple[AsyncConnection, int]]:
        """One transaction with a new revision, taken first: its row lock (in SQLite, the write lock) orders changes."""
        with _outage():
            async with asyncio.timeout(self._timeout_s + 5.0), self._engine.begin() as connection:
                await connection.execute(sa.update(REVISION).values(revision=REVISION.c.revision + 1))
                yield connection, int((await connection.execute(sa.select(REVISION.c.revision))).scalar_one())


async def create_key(database_url: str, pepper: bytes, new: NewKey) -> MintedKey:
    """Mint and store a key from a short-lived program (the command line). The database must be migrated.

    Raises:
        InvalidKey, WeakPepper, KeysUnavailable: see `KeyStore.create`.
    """
    async with aclosing(KeyStore(database_url)) as store:
        return await store.create(pepper, new, time.time_ns() // 1000, secrets.token_bytes(RANDOM_BYTES))


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
        await store.revoke(id, time.time_ns() // 1000)


@contextmanager
def _outage() -> Iterator[None]:
    """Turn whatever a database driver raises into `KeysUnavailable`, without its text (it may hold an address)."""
    try:
        yield
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise KeysUnavailable("Keys cannot be checked at the moment.", detail=type(error).__name__) from error


def _engine(database_url: str, timeout_s: float) -> AsyncEngine:
    url = sa.make_url(database_url)
    if url.get_backend_name() == "sqlite":
        # The wait for another process's write lock, in seconds.
        return create_async_engine(url, pool_size=1, max_overflow=1, pool_timeout=timeout_s, connect_args={"timeout": 5.0})
    return create_async_engine(
        url,
        pool_size=2,
        max_overflow=2,
        pool_timeout=timeout_s,
        pool_pre_ping=True,
        connect_args={"timeout": timeout_s, "command_timeout": timeout_s},
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


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
