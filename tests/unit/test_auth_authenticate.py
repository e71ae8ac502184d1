"""Authentication with a store in memory: carriers, one 401, caches, outage. No clock, no network."""

import asyncio
import hashlib
import hmac

import msgspec
import pytest

from backends.core.errors import BadRequest
from gateway.auth import keys
from gateway.auth.authenticate import Authenticator, NotAuthenticated
from gateway.auth.keystore import Changes, KeyLimit, KeyRecord, KeysUnavailable
from gateway.auth.records import Owner
from gateway.config.snapshot import Snapshot, Team
from gateway.domain.principal import LimitSpec, Principal

PEPPER = b"p" * 32
NOW = 1_700_000_000_000_000


class Store:
    """A key store in memory that counts its queries and can be stopped or held."""

    def __init__(self) -> None:
        self.records: dict[str, KeyRecord] = {}
        self.revision = 1
        self.changed: list[tuple[int, str]] = []
        self.queries = 0
        self.out = False
        self.gate = asyncio.Event()
        self.gate.set()

    def put(self, record: KeyRecord) -> None:
        self.revision += 1
        self.changed.append((self.revision, record.id))
        self.records[record.hash] = record

    async def find_by_hash(self, hash: str) -> KeyRecord | None:
        self.queries += 1
        found = self.records.get(hash)
        await self.gate.wait()
        if self.out:
            raise KeysUnavailable("out")
        return found

    async def changes(self, since: int | None) -> Changes:
        if self.out:
            raise KeysUnavailable("out")
        if since is None or self.revision < since:
            return Changes(self.revision, None)
        return Changes(self.revision, tuple(id for n, id in self.changed if n > since))


class House:
    """An authenticator with its store and snapshot, and a key or two."""

    def __init__(self, **options: int) -> None:
        self.store = Store()
        self.snapshot = Snapshot(version="1", models={}, deployments={}, engines={})
        self.auth = Authenticator(lambda: self.snapshot, self.store, PEPPER, **options)
        self.count = 0

    def key(self, **fields: object) -> bytes:
        self.count += 1
        minted = keys.mint(PEPPER, bytes([self.count]) * keys.RANDOM_BYTES)
        values: dict[str, object] = {
            "id": minted.id,
            "hash": keys.stored_hash(PEPPER, minted.secret.encode()),
            "name": "n",
            "team": "",
            "user": "",
            "models": None,
            "limits": (),
            "scopes": frozenset({"inference"}),
            "created_us": NOW,
            "expires_us": None,
            "revoked_us": None,
        }
        self.store.put(KeyRecord(**{**values, **fields}))  # type: ignore[arg-type]
        return minted.secret.encode()

    def change(self, key: bytes, **fields: object) -> None:
        record = self.store.records[keys.stored_hash(PEPPER, key)]
        self.store.put(msgspec.structs.replace(record, **fields))

    async def ask(self, *headers: tuple[bytes, bytes], now_us: int = NOW) -> Principal:
        return await self.auth.authenticate(headers, now_us)

    async def bearer(self, key: bytes, now_us: int = NOW) -> Principal:
        return await self.ask((b"authorization", b"Bearer " + key), now_us=now_us)


def unknown_key() -> bytes:
    return keys.mint(PEPPER, b"\xee" * keys.RANDOM_BYTES).secret.encode()


@pytest.mark.parametrize(
    "header",
    [
        lambda key: (b"authorization", b"Bearer " + key),
        lambda key: (b"authorization", b"bearer   " + key + b" "),
        lambda key: (b"x-api-key", key),
        lambda key: (b"api-key", b" " + key),
    ],
)
async def test_every_carrier_obeys_the_same_rules(header: object) -> None:
    house = House()
    limit = KeyLimit("requests", 5, 60_000)
    good = house.key(models=frozenset({"chat"}), limits=(limit,), expires_us=NOW + 1)
    revoked = house.key(revoked_us=NOW - 1)
    principal = await house.ask(header(good))  # type: ignore[operator]
    assert principal.models == {"chat"} and principal.limits == (LimitSpec(f"key:{principal.key_id}", "requests", 5, 60_000),)
    with pytest.raises(NotAuthenticated):
        await house.ask(header(good), now_us=NOW + 1)  # type: ignore[operator]
    with pytest.raises(NotAuthenticated):
        await house.ask(header(revoked))  # type: ignore[operator]


async def test_the_same_key_twice_is_fine_and_two_keys_are_a_400() -> None:
    house = House()
    one, other = house.key(), house.key()
    assert await house.ask((b"authorization", b"Bearer " + one), (b"x-api-key", one), (b"api-key", b""))
    for pair in [(b"x-api-key", other), (b"authorization", b"Bearer " + other), (b"api-key", b"nonsense")]:
        with pytest.raises(BadRequest, match="two different") as caught:
            await house.ask((b"authorization", b"Bearer " + one), pair)
        assert one.decode() not in str(caught.value) + caught.value.detail


def fields(error: NotAuthenticated) -> tuple[object, ...]:
    return (error.status, error.type, error.code, error.param, error.message, error.retry_after_ms, error.detail)


async def test_all_refusals_are_the_same() -> None:
    house = House()
    expired, revoked = house.key(expires_us=NOW), house.key(revoked_us=NOW)
    forged = house.key()[:-1] + b"!"
    attempts = [
        (),
        ((b"authorization", b""),),
        ((b"authorization", b"Bearer"),),
        ((b"authorization", b"Bearer " + expired),),
        ((b"authorization", b"Bearer " + revoked),),
        ((b"authorization", b"Bearer " + revoked),),
        ((b"authorization", b"Bearer " + forged),),
        ((b"authorization", b"Bearer " + unknown_key()),),
        ((b"authorization", b"Basic dXNlcjpwYXNz"),),
        ((b"authorization", house.key()),),
        ((b"x-api-key", b"a" * 8192),),
    ]
    seen = set()
    for headers in attempts:
        with pytest.raises(NotAuthenticated) as caught:
            await house.ask(*headers)
        seen.add(fields(caught.value))
    assert len(seen) == 1
    assert seen.pop()[:3] == (401, "invalid_request_error", "invalid_api_key")


@pytest.mark.parametrize(
    "text",
    [
        b"' OR 1=1 --",
        b"'; DROP TABLE keys; --",
        b'" UNION SELECT * FROM keys --',
        b"sk-sy-\x00" + b"a" * 85,
        b"\x00",
        b"x" * 8192,
        "schlüssel-ключ".encode(),
        b"\xff\xfe" * 46,
        b"%s%n%x",
    ],
)
async def test_hostile_texts_are_401_and_reach_no_store(text: bytes) -> None:
    house = House()
    for header in [(b"authorization", b"Bearer " + text), (b"x-api-key", text), (b"api-key", text)]:
        with pytest.raises(NotAuthenticated):
            await house.ask(header)
    assert house.store.queries == 0


async def test_forged_keys_cost_no_query_even_in_an_outage() -> None:
    house = House()
    house.store.out = True
    good = house.key()
    for byte in b"abcdefg":
        with pytest.raises(NotAuthenticated):
            await house.bearer(good[:-20] + bytes([byte]) * 20)
    assert house.store.queries == 0


async def test_declared_keys_need_no_store_and_any_text_may_be_one() -> None:
    house = House()
    text = b"team key with 30 characters ..."
    own = LimitSpec("key:ci", "requests", 3, 60_000)
    ci = Principal("ci", team_id="red", limits=(own,), expires_us=NOW + 5)
    team = Team("red", limits=(LimitSpec("", "slots", 2),))
    house.snapshot = msgspec.structs.replace(
        house.snapshot, declared_keys={hashlib.sha256(text).hexdigest(): ci}, teams={"red": team}
    )
    house.store.out = True
    principal = await house.bearer(text)
    assert principal.key_id == "ci" and principal.limits == (own, LimitSpec("team:red", "slots", 2))
    assert await house.bearer(text) is principal
    with pytest.raises(NotAuthenticated):
        await house.bearer(text, now_us=NOW + 5)
    house.snapshot = msgspec.structs.replace(house.snapshot, declared_keys={})
    with pytest.raises(NotAuthenticated):
        await house.bearer(text)


async def test_a_declared_hash_is_no_credential() -> None:
    house = House()
    digest = hashlib.sha256(b"a declared key").hexdigest()
    house.snapshot = msgspec.structs.replace(house.snapshot, declared_keys={digest: Principal("ci")})
    for text in (digest, "sha256:" + digest):
        with pytest.raises(NotAuthenticated):
            await house.bearer(text.encode())


async def test_limits_are_the_keys_own_or_the_default_and_the_teams() -> None:
    house = House()
    house.snapshot = msgspec.structs.replace(
        house.snapshot,
        key_limits=(LimitSpec("key", "requests", 120, 60_000, "allow"),),
        teams={"red": Team("red", limits=(LimitSpec("team", "tokens", 9, 60_000),))},
    )
    plain = await house.bearer(house.key())
    assert plain.limits == (LimitSpec(f"key:{plain.key_id}", "requests", 120, 60_000, "allow"),)
    own = await house.bearer(house.key(team="red", limits=(KeyLimit("slots", 1),)))
    assert own.limits == (LimitSpec(f"key:{own.key_id}", "slots", 1), LimitSpec("team:red", "tokens", 9, 60_000))
    assert own.team_id == "red"


async def test_a_request_is_bound_by_every_scope_that_its_key_shares() -> None:
    house = House()
    house.snapshot = msgspec.structs.replace(
        house.snapshot,
        key_limits=(LimitSpec("key", "nusd", 5, period="month"),),
        user_limits=(LimitSpec("user", "tokens", 7, period="day", zone="Asia/Tokyo"),),
        users={"eve": (LimitSpec("user:eve", "tokens", 8, 1000),)},
        teams={"red": Team("red", organisation="acme", zone="Europe/Berlin", limits=(LimitSpec("team:red", "slots", 9),))},
        organisations={"acme": (LimitSpec("organisation:acme", "requests", 3, 1000),)},
        gateway_limits=(LimitSpec("gateway", "requests", 4, 1000),),
        zone="Asia/Tokyo",
    )
    eve = await house.bearer(house.key(team="red", user="eve"))
    assert eve.org_id == "acme"
    assert eve.limits == (
        LimitSpec(f"key:{eve.key_id}", "nusd", 5, period="month", zone="Europe/Berlin"),
        LimitSpec("user:eve", "tokens", 8, 1000),
        LimitSpec("team:red", "slots", 9),
        LimitSpec("organisation:acme", "requests", 3, 1000),
        LimitSpec("gateway", "requests", 4, 1000),
    )
    bob = await house.bearer(house.key(user="bob"))
    assert bob.limits == (
        LimitSpec(f"key:{bob.key_id}", "nusd", 5, period="month", zone="Asia/Tokyo"),
        LimitSpec("user:bob", "tokens", 7, period="day", zone="Asia/Tokyo"),
        LimitSpec("gateway", "requests", 4, 1000),
    )


def test_a_stored_limit_has_every_field_of_a_limit() -> None:
    stored = KeyLimit("nusd", 5, 0, "allow", "month", "UTC", "m", shadow=True, on_insufficient="clamp")
    spec = stored.spec("key:a")
    assert {name: getattr(spec, name) for name in KeyLimit.__struct_fields__} == msgspec.structs.asdict(stored)
    assert spec.scope == "key:a"
    assert {"scope", *KeyLimit.__struct_fields__} == set(LimitSpec.__struct_fields__)


async def test_a_new_snapshot_acts_on_known_keys_at_once() -> None:
    house = House()
    key = house.key()
    assert (await house.bearer(key)).limits == ()
    house.snapshot = msgspec.structs.replace(house.snapshot, key_limits=(LimitSpec("", "slots", 4),))
    assert [spec.limit for spec in (await house.bearer(key)).limits] == [4]
    assert house.store.queries == 1


async def test_known_and_unknown_keys_are_asked_for_once() -> None:
    house = House()
    key = house.key()
    first = await house.bearer(key)
    assert await house.bearer(key) is await house.bearer(key)
    assert first == await house.bearer(key)
    for _ in range(3):
        with pytest.raises(NotAuthenticated):
            await house.bearer(unknown_key())
    assert house.store.queries == 2


async def test_a_hit_never_suspends() -> None:
    house = House()
    key = house.key()
    await house.bearer(key)
    step = house.auth.authenticate([(b"authorization", b"Bearer " + key)], NOW)
    with pytest.raises(StopIteration):
        step.send(None)


async def test_keys_that_share_forty_characters_are_never_confused() -> None:
    house = House()
    one = keys.mint(PEPPER, b"\xab" * 41 + b"\x00").secret.encode()
    other = keys.mint(PEPPER, b"\xab" * 41 + b"\x01").secret.encode()
    assert one[:70] == other[:70] and one != other
    record = house.store.records[keys.stored_hash(PEPPER, house.key())]
    house.store.put(msgspec.structs.replace(record, id="one", hash=keys.stored_hash(PEPPER, one)))
    assert (await house.bearer(one)).key_id == "one"
    with pytest.raises(NotAuthenticated):
        await house.bearer(other)
    assert (await house.bearer(one)).key_id == "one"


async def test_a_store_that_answers_with_another_hash_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    stolen = house.store.records[keys.stored_hash(PEPPER, house.key())]
    key = unknown_key()
    house.store.records[keys.stored_hash(PEPPER, key)] = stolen
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    with pytest.raises(NotAuthenticated):
        await house.bearer(key)
    assert (stolen.hash, keys.stored_hash(PEPPER, key)) in compared


async def test_a_change_acts_at_the_next_refresh_and_leaves_other_keys_alone() -> None:
    house = House()
    one, other = house.key(), house.key()
    await house.auth.refresh()
    await house.bearer(one)
    await house.bearer(other)
    house.change(one, revoked_us=NOW)
    await house.auth.refresh()
    with pytest.raises(NotAuthenticated):
        await house.bearer(one)
    await house.bearer(other)
    assert house.store.queries == 3


async def test_a_key_made_after_it_was_refused_is_found_at_the_next_refresh() -> None:
    house = House()
    await house.auth.refresh()
    late = unknown_key()
    with pytest.raises(NotAuthenticated):
        await house.bearer(late)
    record = house.store.records[keys.stored_hash(PEPPER, house.key())]
    house.store.put(msgspec.structs.replace(record, hash=keys.stored_hash(PEPPER, late)))
    with pytest.raises(NotAuthenticated):
        await house.bearer(late)
    await house.auth.refresh()
    assert await house.bearer(late)


async def test_a_counter_that_went_back_forgets_everything() -> None:
    house = House()
    key = house.key()
    await house.auth.refresh()
    await house.bearer(key)
    house.store.revision = 0
    house.store.records.clear()
    await house.auth.refresh()
    with pytest.raises(NotAuthenticated):
        await house.bearer(key)


async def test_an_answer_older_than_a_change_is_not_remembered() -> None:
    house = House()
    await house.auth.refresh()
    key = house.key()
    house.store.gate.clear()
    async with asyncio.TaskGroup() as group:
        slow = group.create_task(house.bearer(key))
        await asyncio.sleep(0)
        house.change(key, revoked_us=NOW)
        await house.auth.refresh()
        house.store.gate.set()
    assert slow.result().key_id
    with pytest.raises(NotAuthenticated):
        await house.bearer(key)


async def test_many_requests_with_one_new_key_make_one_query() -> None:
    house = House()
    key = house.key()
    house.store.gate.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(house.bearer(key)) for _ in range(20)]
        for _ in range(3):
            await asyncio.sleep(0)
        house.store.gate.set()
    assert house.store.queries == 1 and len({task.result().key_id for task in tasks}) == 1


async def test_a_cancelled_lookup_does_not_fail_those_who_wait_for_it() -> None:
    house = House()
    key = house.key()
    house.store.gate.clear()
    async with asyncio.TaskGroup() as group:
        leader = group.create_task(house.bearer(key))
        await asyncio.sleep(0)
        follower = group.create_task(house.bearer(key))
        await asyncio.sleep(0)
        leader.cancel()
        await asyncio.sleep(0)
        house.store.gate.set()
    assert leader.cancelled() and follower.result().key_id and house.store.queries == 2


async def test_in_an_outage_known_keys_go_on_and_others_are_503_not_401() -> None:
    house = House()
    known, fresh = house.key(), house.key()
    await house.auth.refresh()
    await house.bearer(known)
    house.store.out = True
    await house.auth.refresh()
    assert await house.bearer(known)
    with pytest.raises(KeysUnavailable) as caught:
        await house.bearer(fresh)
    assert caught.value.status == 503
    house.store.out = False
    await house.auth.refresh()
    assert await house.bearer(fresh)


async def test_the_memory_is_bounded() -> None:
    house = House(known_max=2, unknown_max=2)
    one, two, three = house.key(), house.key(), house.key()
    for key in (one, two, one, three):
        await house.bearer(key)
    assert house.store.queries == 3
    await house.bearer(one)
    assert house.store.queries == 3
    await house.bearer(two)
    assert house.store.queries == 4
    strangers = [keys.mint(PEPPER, bytes([n]) * 42).secret.encode() for n in range(100, 103)]
    for key in [*strangers, strangers[0]]:
        with pytest.raises(NotAuthenticated):
            await house.bearer(key)
    assert house.store.queries == 8


def test_a_short_pepper_is_refused() -> None:
    snapshot = Snapshot(version="1", models={}, deployments={}, engines={})
    for pepper in (b"", b"short"):
        with pytest.raises(keys.WeakPepper):
            Authenticator(lambda: snapshot, None, pepper)


async def test_requests_that_wait_for_the_owners_ask_a_stopped_database_no_more_than_twice() -> None:
    house = House()
    key = house.key()
    house.store.out = True
    asked = 0
    changes = house.store.changes

    async def slowly(since: int | None) -> Changes:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return await changes(since)

    house.store.changes = slowly  # type: ignore[method-assign]
    answers = await asyncio.gather(*(house.bearer(key) for _ in range(50)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {KeysUnavailable} and asked <= 2
    house.store.out = False
    assert (await house.bearer(key)).key_id


async def test_owners_limits_come_and_go_with_a_refresh() -> None:
    house = House()
    key = house.key(team="red")
    owner = Owner("team", "red", models=frozenset({"chat"}), limits=(KeyLimit("slots", 3),))
    changes = house.store.changes

    async def with_owners(since: int | None) -> Changes:
        return msgspec.structs.replace(await changes(since), owners=(owner,) if owner else ())

    house.store.changes = with_owners  # type: ignore[method-assign]
    principal = await house.bearer(key)
    assert principal.limits == (LimitSpec("team:red", "slots", 3),) and principal.models == {"chat"}
    owner = None
    house.store.revision += 1
    await house.auth.refresh()
    principal = await house.bearer(key)
    assert principal.limits == () and principal.models is None


async def test_a_suspended_key_is_the_same_401_and_a_rotated_one_ends_with_its_grace() -> None:
    house = House()
    key, other = house.key(), house.key()
    record = house.store.records[keys.stored_hash(PEPPER, key)]
    assert await house.bearer(key)
    new = keys.mint(PEPPER, b"\x77" * keys.RANDOM_BYTES).secret.encode()
    rotated = msgspec.structs.replace(
        record, hash=keys.stored_hash(PEPPER, new), previous_hash=record.hash, previous_until_us=NOW + 5
    )
    house.store.put(rotated)
    house.store.records[record.hash] = rotated
    await house.auth.refresh()
    assert (await house.bearer(key)).expires_us == NOW + 5 and (await house.bearer(new)).expires_us is None
    with pytest.raises(NotAuthenticated):
        await house.bearer(key, NOW + 5)
    house.change(other, suspended_us=NOW)
    await house.auth.refresh()
    with pytest.raises(NotAuthenticated):
        await house.bearer(other)
