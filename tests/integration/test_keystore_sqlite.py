"""Minted keys in a real SQLite file."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.auth import keys
from gateway.auth.authenticate import Authenticator, NotAuthenticated
from gateway.auth.database import By
from gateway.auth.keystore import (
    InvalidKey,
    KeyLimit,
    KeyStore,
    KeysUnavailable,
    NewKey,
    UnknownKey,
    create_key,
    list_keys,
    revoke_key,
)
from gateway.auth.records import KeyChange
from gateway.config.snapshot import Snapshot
from gateway.ledger.migrations import migrate

PEPPER = b"p" * 32
NOW = 1_700_000_000_000_000


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}"
    migrate(url)
    return url


@pytest.fixture
async def store(url: str) -> AsyncIterator[KeyStore]:
    store = KeyStore(url)
    yield store
    await store.aclose()


def headers(secret: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + secret.encode())]


def authenticator(store: KeyStore) -> Authenticator:
    snapshot = Snapshot(version="1", models={}, deployments={}, engines={})
    return Authenticator(lambda: snapshot, store, PEPPER)


async def test_a_key_comes_back_as_it_was_made(url: str, store: KeyStore, tmp_path: Path) -> None:
    new = NewKey("ci", "red", "ann", frozenset({"a", "b"}), 60, 1000, 8, frozenset({"admin", "inference"}), NOW * 2)
    minted = await create_key(url, PEPPER, new)
    (record,) = await list_keys(url)
    assert record == await store.find_by_hash(keys.stored_hash(PEPPER, minted.secret.encode()))
    assert (record.id, record.name, record.team, record.user) == (minted.id, "ci", "red", "ann")
    assert record.limits == (KeyLimit("requests", 60, 60_000), KeyLimit("tokens", 1000, 60_000), KeyLimit("slots", 8, 0))
    assert record.models == {"a", "b"} and record.scopes == {"admin", "inference"} and record.expires_us == NOW * 2
    secret = minted.secret.split("-")[3].encode()
    assert not any(secret in path.read_bytes() for path in tmp_path.iterdir())
    assert await store.find_by_hash("0" * 64) is None


async def test_what_an_older_client_needs_reaches_its_principal(url: str, store: KeyStore) -> None:
    minted = await create_key(url, PEPPER, NewKey("old", usage_on_finish=True, default_model="chat"))
    found = await authenticator(store).authenticate(headers(minted.secret), NOW)
    assert (found.usage_on_finish, found.default_model) == (True, "chat")
    await store.change(minted.id, KeyChange(usage_on_finish=False, default_model=""), By("test", NOW))
    (record,) = await list_keys(url)
    assert (record.usage_on_finish, record.default_model) == (False, "")


async def test_every_change_bumps_the_revision_in_its_own_transaction(url: str, store: KeyStore) -> None:
    start = (await store.changes(None)).revision
    one = await create_key(url, PEPPER, NewKey("one"))
    two = await create_key(url, PEPPER, NewKey("two"))
    changes = await store.changes(start)
    assert changes.revision == start + 2 and set(changes.ids or ()) == {one.id, two.id}
    await revoke_key(url, one.id)
    assert (await store.changes(start + 2)).ids == (one.id,)
    with pytest.raises(UnknownKey):
        await revoke_key(url, "nobody")
    assert (await store.changes(start + 3)).ids == ()
    first = next(record.revoked_us for record in await store.list() if record.id == one.id)
    await revoke_key(url, one.id)
    assert next(record.revoked_us for record in await store.list() if record.id == one.id) == first


@pytest.mark.parametrize(
    ("new", "field"),
    [
        (NewKey(""), "name"),
        (NewKey("x" * 129), "name"),
        (NewKey("a\nb"), "name"),
        (NewKey("n", team="t" * 129), "team"),
        (NewKey("n", rpm=0), "rpm"),
        (NewKey("n", tpm=-5), "tpm"),
        (NewKey("n", concurrent=2**53 + 1), "concurrent"),
        (NewKey("n", models=frozenset()), "models"),
        (NewKey("n", models=frozenset({""})), "models"),
        (NewKey("n", scopes=frozenset({"root"})), "scopes"),
        (NewKey("n", expires_us=1), "expires"),
    ],
)
async def test_a_bad_description_names_its_field_and_writes_nothing(url: str, new: NewKey, field: str) -> None:
    with pytest.raises(InvalidKey, match=f"^{field}:"):
        await create_key(url, PEPPER, new)
    assert await list_keys(url) == ()


async def test_a_revocation_acts_within_a_second(url: str, store: KeyStore) -> None:
    auth = authenticator(store)
    minted = await create_key(url, PEPPER, NewKey("one"))
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(auth.watch())
        assert (await auth.authenticate(headers(minted.secret), NOW)).key_id == minted.id
        await revoke_key(url, minted.id)
        async with asyncio.timeout(1.0):
            while True:
                try:
                    await auth.authenticate(headers(minted.secret), NOW)
                except NotAuthenticated:
                    break
                await asyncio.sleep(0.01)
        watch.cancel()


async def test_hostile_keys_reach_no_statement(url: str, store: KeyStore, tmp_path: Path) -> None:
    auth = authenticator(store)
    kept = await create_key(url, PEPPER, NewKey("kept'; DROP TABLE keys; --"))
    for text in ["'; DROP TABLE keys; --", "' OR '1'='1", kept.id, kept.secret[:-1], "x" * 8192]:
        with pytest.raises(NotAuthenticated):
            await auth.authenticate(headers(text), NOW)
    assert (await auth.authenticate(headers(kept.secret), NOW)).key_id == kept.id
    with sqlite3.connect(tmp_path / "gateway.db") as database:
        assert database.execute("SELECT count(*) FROM keys").fetchone() == (1,)
    database.close()


async def test_a_database_that_fails_is_an_outage_without_its_words(tmp_path: Path) -> None:
    store = KeyStore(f"sqlite+aiosqlite:///{tmp_path / 'not-migrated.db'}")
    with pytest.raises(KeysUnavailable) as caught:
        await store.find_by_hash("0" * 64)
    assert str(tmp_path) not in caught.value.message + caught.value.detail
    await store.aclose()
