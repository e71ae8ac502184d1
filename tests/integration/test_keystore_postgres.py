"""Minted keys in a real PostgreSQL, over its restarts and outages."""

import asyncio

import sqlalchemy as sa

from gateway.auth.authenticate import Authenticator, NotAuthenticated
from gateway.auth.keystore import KEYS, KeyStore, KeysUnavailable, NewKey, create_key, list_keys, revoke_key
from gateway.config.snapshot import Snapshot
from gateway.ledger.migrations import migrate, sync_url
from tests.servers import PostgresServer

PEPPER = b"p" * 32
NOW = 1_700_000_000_000_000


def headers(secret: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-api-key", secret.encode())]


async def refusal(auth: Authenticator, secret: str) -> type[Exception] | None:
    try:
        await auth.authenticate(headers(secret), NOW)
    except (NotAuthenticated, KeysUnavailable) as error:
        return type(error)
    return None


async def test_keys_through_an_outage_and_back(postgres_server: PostgresServer) -> None:
    await asyncio.to_thread(migrate, postgres_server.url)
    admin = sa.create_engine(sync_url(postgres_server.url), poolclass=sa.NullPool)
    with admin.begin() as connection:
        connection.execute(sa.delete(KEYS))
    known = await create_key(postgres_server.url, PEPPER, NewKey("known", rpm=60, models=frozenset({"a"})))
    fresh = await create_key(postgres_server.url, PEPPER, NewKey("fresh"))
    store = KeyStore(postgres_server.url, timeout_s=1.0)
    snapshot = Snapshot(version="1", models={}, deployments={}, engines={})
    auth = Authenticator(lambda: snapshot, store, PEPPER)
    await auth.refresh()
    assert (await auth.authenticate(headers(known.secret), NOW)).models == {"a"}
    await asyncio.to_thread(postgres_server.stop)
    try:
        await auth.refresh()
        assert await refusal(auth, known.secret) is None
        assert await refusal(auth, fresh.secret) is KeysUnavailable
        assert await refusal(auth, fresh.secret[:-1] + "!") is NotAuthenticated
    finally:
        await asyncio.to_thread(postgres_server.start)
    assert await refusal(auth, fresh.secret) is None
    await revoke_key(postgres_server.url, known.id)
    await auth.refresh()
    assert await refusal(auth, known.secret) is NotAuthenticated
    assert {record.name: record.revoked_us is None for record in await list_keys(postgres_server.url)} == {
        "known": False,
        "fresh": True,
    }
    await store.aclose()


async def test_a_database_that_hangs_costs_a_bounded_wait(postgres_server: PostgresServer) -> None:
    await asyncio.to_thread(migrate, postgres_server.url)
    known, fresh, other = [await create_key(postgres_server.url, PEPPER, NewKey(name)) for name in ("a", "b", "c")]
    store = KeyStore(postgres_server.url, timeout_s=0.5)
    snapshot = Snapshot(version="1", models={}, deployments={}, engines={})
    auth = Authenticator(lambda: snapshot, store, PEPPER)
    await auth.refresh()
    assert await refusal(auth, known.secret) is None
    postgres_server.pause()
    try:
        async with asyncio.timeout(0.1):
            assert await refusal(auth, known.secret) is None
        async with asyncio.timeout(3.0), asyncio.TaskGroup() as group:
            group.create_task(auth.refresh())
            waiting = [group.create_task(refusal(auth, key.secret)) for key in (fresh, other) for _ in range(20)]
        assert {task.result() for task in waiting} == {KeysUnavailable}
    finally:
        postgres_server.resume()
    assert await refusal(auth, fresh.secret) is None
    await store.aclose()


async def test_changes_made_at_once_each_have_their_number(postgres_server: PostgresServer) -> None:
    await asyncio.to_thread(migrate, postgres_server.url)
    store = KeyStore(postgres_server.url)
    start = (await store.changes(None)).revision
    async with asyncio.TaskGroup() as group:
        for n in range(10):
            group.create_task(create_key(postgres_server.url, PEPPER, NewKey(f"k{n}")))
    changes = await store.changes(start)
    assert changes.revision == start + 10 and len(changes.ids or ()) == 10
    await store.aclose()
