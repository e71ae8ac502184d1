"""Teams, organisations, users and the life of a key, in a real SQLite file and a real PostgreSQL."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.auth import keys
from gateway.auth.authenticate import Authenticator, NotAuthenticated
from gateway.auth.database import By, Database
from gateway.auth.keystore import KeyStore
from gateway.auth.overlay import clashes, in_file
from gateway.auth.owners import OwnerStore, owner_names
from gateway.auth.records import (
    InvalidKey,
    KeyChange,
    KeyLimit,
    KeyRetired,
    NewKey,
    Owner,
    OwnerChange,
    OwnerExists,
    OwnerInUse,
    UnknownKey,
    UnknownOwner,
)
from gateway.auth.tables import AUDIT, KEYS, OWNERS, REVISION
from gateway.config.snapshot import Snapshot, Team
from gateway.domain.principal import LimitSpec, Principal
from gateway.ledger.migrations import migrate, sync_url
from tests.servers import PostgresServer

PEPPER = b"p" * 32
NOW = 1_700_000_000_000_000
BY = By("tester", NOW)
SNAPSHOT = Snapshot(version="1", models={}, deployments={}, engines={}, teams={"of-file": Team("of-file")})


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}"
        migrate(url)
        yield url
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    migrate(server.url)
    engine = sa.create_engine(sync_url(server.url), poolclass=sa.NullPool)
    with engine.begin() as connection:
        for table in (KEYS, OWNERS, AUDIT):
            connection.execute(sa.delete(table))
    yield server.url
    with engine.begin() as connection:
        for table in (KEYS, OWNERS, AUDIT):
            connection.execute(sa.delete(table))


class Office:
    """The stores over one database, an authenticator, and randomness that never repeats."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.keys = KeyStore(self.database)
        self.owners = OwnerStore(self.database, self.in_file)
        self.auth = Authenticator(lambda: SNAPSHOT, self.keys, PEPPER)
        self._count = 0

    @staticmethod
    def in_file(kind: str, name: str) -> bool:
        return in_file(SNAPSHOT, kind, name)

    def random(self) -> bytes:
        self._count += 1
        return hashlib.sha512(self._count.to_bytes(4)).digest()[: keys.RANDOM_BYTES]

    async def mint(self, name: str = "k", **fields: object) -> tuple[str, str]:
        minted, _ = await self.keys.create(PEPPER, NewKey(name, **fields), BY, self.random(), self.in_file)  # type: ignore[arg-type]
        return minted.id, minted.secret

    async def ask(self, secret: str, now_us: int = NOW) -> Principal:
        return await self.auth.authenticate([(b"x-api-key", secret.encode())], now_us)

    async def refused(self, secret: str, now_us: int = NOW) -> bool:
        try:
            await self.ask(secret, now_us)
        except NotAuthenticated:
            return True
        return False

    async def trail(self) -> list[tuple[str, str, str]]:
        async with self.database.reading() as connection:
            rows = await connection.execute(sa.select(AUDIT.c.action, AUDIT.c.noun, AUDIT.c.name).order_by(AUDIT.c.id))
            return [(row[0], row[1], row[2]) for row in rows]

    async def everything(self) -> list[list[tuple[object, ...]]]:
        async with self.database.reading() as connection:
            return [[tuple(row) for row in await connection.execute(sa.select(t))] for t in (KEYS, OWNERS, AUDIT, REVISION)]


@pytest.fixture
async def office(url: str) -> AsyncIterator[Office]:
    office = Office(url)
    yield office
    await office.database.aclose()


async def test_a_key_is_suspended_resumed_and_revoked(office: Office) -> None:
    id, secret = await office.mint()
    assert not await office.refused(secret)
    assert (await office.keys.suspend(id, BY)).suspended_us == NOW
    assert (await office.keys.suspend(id, By("other", NOW + 5))).suspended_us == NOW
    await office.auth.refresh()
    assert await office.refused(secret)
    await office.keys.resume(id, BY)
    await office.auth.refresh()
    assert not await office.refused(secret)
    await office.keys.revoke(id, BY)
    await office.auth.refresh()
    assert await office.refused(secret)
    for change in (office.keys.resume(id, BY), office.keys.change(id, KeyChange(name="x"), BY)):
        with pytest.raises(KeyRetired):
            await change
    with pytest.raises(UnknownKey):
        await office.keys.suspend("nobody", BY)
    assert [action for action, _, _ in await office.trail()] == ["create", "suspend", "suspend", "resume", "revoke"]


async def test_a_rotated_key_keeps_its_id_and_the_old_secret_ends_with_its_grace(office: Office) -> None:
    id, first = await office.mint(rpm=5)
    await office.ask(first)
    minted, _ = await office.keys.rotate(id, PEPPER, BY, office.random(), 60)
    await office.auth.refresh()
    assert minted.id == id and minted.secret != first
    for secret in (first, minted.secret):
        principal = await office.ask(secret)
        assert (principal.key_id, principal.limits) == (id, (LimitSpec(f"key:{id}", "requests", 5, 60_000),))
    after = NOW + 60_000_000
    assert not await office.refused(first, after - 1) and await office.refused(first, after)
    assert not await office.refused(minted.secret, after)
    third, _ = await office.keys.rotate(id, PEPPER, BY, office.random(), 0)
    await office.auth.refresh()
    assert await office.refused(first) and await office.refused(minted.secret) and not await office.refused(third.secret)
    await office.keys.rotate(id, PEPPER, BY, office.random(), 60)
    await office.keys.revoke(id, BY)
    await office.auth.refresh()
    assert await office.refused(third.secret), "revoking ends the old secret's grace too"
    with pytest.raises(InvalidKey, match=r"^grace_s:"):
        await office.keys.rotate(id, PEPPER, BY, office.random(), -1)


async def test_limits_of_teams_and_their_changes_reach_the_principal(office: Office) -> None:
    await office.owners.create(Owner("organisation", "acme"), BY)
    limits = (KeyLimit("tokens", 1000, 60_000),)
    await office.owners.create(Owner("team", "red", "acme", models=frozenset({"a", "b"}), limits=limits), BY)
    id, secret = await office.mint(team="red", rpm=5, models=frozenset({"b", "c"}))
    principal = await office.ask(secret)
    assert principal.limits == (
        LimitSpec(f"key:{id}", "requests", 5, 60_000),
        LimitSpec("team:red", "tokens", 1000, 60_000),
    )
    assert principal.models == {"b"}
    await office.owners.change("team", "red", OwnerChange(limits=(KeyLimit("tokens", 7, 60_000),), models=None), BY)
    await office.keys.change(id, KeyChange(limits=()), BY)
    await office.auth.refresh()
    principal = await office.ask(secret)
    assert principal.limits == (LimitSpec("team:red", "tokens", 7, 60_000),)
    assert principal.models == {"b", "c"}


async def test_a_change_reaches_other_workers_within_a_second(office: Office, url: str) -> None:
    await office.owners.create(Owner("team", "red"), BY)
    _, secret = await office.mint(team="red")
    other = Office(url)
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(other.auth.watch())
        assert (await other.ask(secret)).limits == ()
        await office.owners.change("team", "red", OwnerChange(limits=(KeyLimit("slots", 3),)), BY)
        async with asyncio.timeout(1.0):
            while not (await other.ask(secret)).limits:
                await asyncio.sleep(0.01)
        watch.cancel()
    await other.database.aclose()


async def test_what_is_wrong_is_named_and_leaves_nothing(office: Office) -> None:
    await office.owners.create(Owner("organisation", "acme"), BY)
    await office.owners.create(Owner("team", "red", "acme"), BY)
    id, _ = await office.mint(team="red")
    before = await office.everything()
    limit = KeyLimit("requests", 5, 1000)
    wrong = [
        (lambda: office.mint(team="blue"), InvalidKey, "^team:"),
        (lambda: office.mint(limits=(limit, limit)), InvalidKey, "^limits:"),
        (lambda: office.mint(limits=(KeyLimit("requests", 0, 1000),)), InvalidKey, r"^limits\.0:"),
        (lambda: office.mint(scopes=frozenset({"team-admin"})), InvalidKey, "^scopes:"),
        (lambda: office.keys.change(id, KeyChange(team="blue"), BY, office.in_file), InvalidKey, "^team:"),
        (lambda: office.keys.change(id, KeyChange(name="x", models=frozenset()), BY), InvalidKey, "^models:"),
        (lambda: office.keys.change(id, KeyChange(expires_us=NOW), BY), InvalidKey, "^expires:"),
        (lambda: office.owners.create(Owner("team", "red"), BY), OwnerExists, "red"),
        (lambda: office.owners.create(Owner("team", "new", "nobody"), BY), InvalidKey, "^organisation:"),
        (lambda: office.owners.create(Owner("user", "a\nb"), BY), InvalidKey, "^name:"),
        (lambda: office.owners.change("team", "red", OwnerChange(organisation="nobody"), BY), InvalidKey, "^organisation:"),
        (lambda: office.owners.change("team", "blue", OwnerChange(), BY), UnknownOwner, "blue"),
        (lambda: office.owners.delete("team", "red", BY), OwnerInUse, "keys"),
        (lambda: office.owners.delete("organisation", "acme", BY), OwnerInUse, "teams"),
        (lambda: office.owners.delete("user", "ann", BY), UnknownOwner, "ann"),
    ]
    for act, error, words in wrong:
        with pytest.raises(error, match=words):
            await act()
    assert await office.everything() == before
    await office.mint(team="of-file")
    await office.keys.revoke(id, BY)
    await office.owners.delete("team", "red", BY)
    await office.owners.delete("organisation", "acme", BY)
    assert (await office.trail())[-2:] == [("delete", "team", "red"), ("delete", "organisation", "acme")]


async def test_every_change_has_one_audit_row_without_secrets(office: Office) -> None:
    await office.owners.create(Owner("team", "red", limits=(KeyLimit("slots", 3),)), BY)
    id, secret = await office.mint(team="red", models=frozenset({"b", "a"}))
    rotated, _ = await office.keys.rotate(id, PEPPER, By("k2", NOW + 1), office.random(), 60)
    async with office.database.reading() as connection:
        rows = (await connection.execute(sa.select(AUDIT).order_by(AUDIT.c.id))).all()
    assert [(r.actor, r.at_us, r.action, r.noun, r.name, r.team) for r in rows] == [
        ("tester", NOW, "create", "team", "red", "red"),
        ("tester", NOW, "create", "key", id, "red"),
        ("k2", NOW + 1, "rotate", "key", id, "red"),
    ]
    assert json.loads(rows[1].changes)["models"] == ["a", "b"]
    text = " ".join(row.changes for row in rows)
    for key in (secret, rotated.secret):
        assert key.split("-")[3] not in text and keys.stored_hash(PEPPER, key.encode()) not in text


async def test_pages_of_keys_are_whole_and_in_order(office: Office) -> None:
    for number in range(7):
        await office.keys.create(PEPPER, NewKey(f"k{number}", user="ann"), By("t", NOW + number // 3), office.random())
    await office.mint("other")
    seen: list[str] = []
    after = None
    while page := await office.keys.list(user="ann", after=after, limit=3):
        seen += [one.id for one in page]
        after = page[-1].id
    assert seen == [one.id for one in await office.keys.list(user="ann")] and len(set(seen)) == 7
    assert await office.keys.list(after="nobody") == ()


async def test_one_name_in_file_and_database_is_told(office: Office, url: str) -> None:
    await office.owners.create(Owner("team", "of-file"), BY)
    await office.owners.create(Owner("user", "of-file"), BY)
    found = await asyncio.to_thread(owner_names, sync_url(url))
    assert set(found) == {("team", "of-file"), ("user", "of-file")}
    assert clashes(SNAPSHOT, found) == [("team", "of-file")]
