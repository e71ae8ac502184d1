"""From request headers to a Principal, or the one 401 that says nothing.

The order is: hashes declared in the configuration (memory), keys seen before (memory), the key's own MAC (arithmetic:
a flood of forged keys costs no round trip), and only then SQL, once per key however many requests wait for it. A cache
entry is found by the SHA-256 of the whole key text, never by a part of it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from backends.core.errors import BadRequest, GatewayError
from gateway.auth.database import KeysUnavailable
from gateway.auth.keys import check_pepper, is_genuine, stored_hash, text_hash
from gateway.auth.overlay import overlaid
from gateway.auth.records import Changes, KeyRecord, Owner, PriceRecord
from gateway.config.compiled_limits import GATEWAY, bound
from gateway.config.snapshot import Snapshot
from gateway.domain.principal import LimitSpec, Principal

Headers = Sequence[tuple[bytes, bytes]]
#: A longer text is no key; 512 leaves room for declared keys of any usual form.
KEY_MAX_BYTES = 512
_CARRIERS = frozenset({b"authorization", b"x-api-key", b"api-key"})
#: A request that has one of these is not let in without a key: a page in a browser could have been made to send it.
_CARRIERS_AND_ORIGIN = _CARRIERS | {b"origin", b"sec-fetch-site"}
#: The name of who needs no key, where the configuration lets them in.
ANONYMOUS = "anonymous"
_log = logging.getLogger(__name__)


class NotAuthenticated(GatewayError):
    """No valid key (401). Always the same words: absent, malformed, forged, unknown, expired and revoked look alike."""

    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("Incorrect API key provided. Send a valid key as a bearer token in the Authorization header.")


def presented_key(headers: Headers) -> bytes:
    """The one key text of a request's headers (names in lower case, as ASGI has them).

    `Authorization: Bearer`, `x-api-key` and `api-key` mean the same; other schemes are no key. The query is never read.

    Raises:
        BadRequest: two different keys.
        NotAuthenticated: none, or one over 512 bytes.
    """
    key: bytes | None = None
    for name, value in headers:
        if name not in _CARRIERS:
            continue
        text = value.strip(b" \t")
        if name == b"authorization":
            scheme, _, text = text.partition(b" ")
            if scheme.lower() != b"bearer":
                continue
            text = text.strip(b" \t")
        if not text or text == key:
            continue
        if key is not None:
            raise BadRequest("The request carries two different API keys.", code="conflicting_api_keys")
        key = text
    if key is None or len(key) > KEY_MAX_BYTES:
        raise NotAuthenticated()
    return key


class KeySource(Protocol):
    """What the authenticator reads of a key store; both raise KeysUnavailable when it does not answer."""

    async def find_by_hash(self, hash: str) -> KeyRecord | None:
        """The key with this stored hash, in whatever state it is."""

    async def changes(self, since: int | None) -> Changes:
        """The present revision, and what changed after `since`."""


class _Known:
    """A minted key seen before, and the Principal made of it under one snapshot. `hash` is that of the secret shown."""

    __slots__ = ("hash", "principal", "record", "snapshot")

    def __init__(self, record: KeyRecord, hash: str, snapshot: Snapshot) -> None:
        self.record = record
        self.hash = hash
        self.snapshot = snapshot
        self.principal = holder_of(record, hash, snapshot)


class _Flight:
    """One lookup under way. `settled` stays False when the request that made it was cancelled: another one retries."""

    __slots__ = ("done", "outage", "record", "settled")

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.settled = False
        self.record: KeyRecord | None = None
        self.outage: KeysUnavailable | None = None


class Authenticator:
    """Authenticates requests of one worker.

    Args:
        snapshot: the present configuration.
        store: minted keys, or None where there are only declared ones.
        pepper: at least 32 bytes; the same on every gateway.
        anonymous: requests without a key are let in.
        known_max: minted keys kept in memory.
        unknown_max: genuine but unknown, revoked or expired keys kept in memory.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        store: KeySource | None,
        pepper: bytes,
        *,
        anonymous: bool = False,
        known_max: int = 50_000,
        unknown_max: int = 10_000,
    ) -> None:
        self._snapshot = snapshot
        self._anonymous = anonymous
        self._store = store
        self._pepper = check_pepper(pepper)
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._known_max = known_max
        self._by_id: dict[str, set[str]] = {}
        self._unknown: OrderedDict[str, None] = OrderedDict()
        self._unknown_max = unknown_max
        self._declared: dict[str, Principal] = {}
        self._declared_of: Snapshot | None = None
        self._owners: tuple[Owner, ...] = ()
        self._prices: tuple[PriceRecord, ...] = ()
        self._overlaid: tuple[Snapshot, Snapshot] | None = None  # of the owners and prices of now
        self._refreshing = asyncio.Lock()
        self._refreshed = 0
        self._flights: dict[str, _Flight] = {}
        self._revision: int | None = None
        # Counts refreshes that dropped something: an answer asked for before one may be older than it.
        self._generation = 0
        self._watching = True

    async def authenticate(self, headers: Headers, now_us: int) -> Principal:
        """The holder of the presented key. Awaits only for a genuine key that is not in memory.

        Args:
            headers: of the request, names in lower case.
            now_us: the instant that expiry is judged by, µs UTC.

        Raises:
            NotAuthenticated: any reason; the answers are alike.
            BadRequest: two different keys.
            KeysUnavailable: a genuine key, unknown here, while the database does not answer.
        """
        snapshot = self.snapshot()
        if self._anonymous and not _CARRIERS_AND_ORIGIN & {name for name, _ in headers}:
            return anonymous(snapshot)
        key = presented_key(headers)
        digest = text_hash(key)
        principal = self._find_declared(digest, snapshot) or self._find_known(digest, snapshot)
        if principal is None:
            principal = await self._find_stored(key, digest)
        if principal.expires_us is not None and now_us >= principal.expires_us:
            raise NotAuthenticated()
        return principal

    def snapshot(self) -> Snapshot:
        """The present configuration with the database's organisations, teams, users and prices."""
        base, known = self._snapshot(), self._overlaid
        if known is None or known[0] is not base:
            known = self._overlaid = (base, overlaid(base, self._owners, self._prices))
        return known[1]

    @property
    def knows_database(self) -> bool:
        """Whether owners and prices were read once; before, the configuration file's alone hold."""
        return self._store is None or self._revision is not None

    async def watch(self, every_s: float = 0.5) -> None:
        """Follow the store's revision for ever. Run it in the worker's TaskGroup; a change acts within `every_s`."""
        while True:
            await self.refresh()
            await asyncio.sleep(every_s)

    async def refresh(self) -> None:
        """Forget what changed since the last call. While the database is out, known keys go on."""
        async with self._refreshing:
            await self._refresh()

    async def _refresh(self) -> None:
        """One at a time: an older answer must not take back a newer one."""
        if self._store is None:
            return
        self._refreshed += 1
        try:
            changes = await self._store.changes(self._revision)
        except KeysUnavailable as outage:
            if self._watching:
                _log.warning("key database out, known keys go on", extra={"reason": outage.detail})
            self._watching = False
            return
        if not self._watching:
            _log.info("key database back")
        self._watching = True
        if changes.revision == self._revision:
            return
        self._revision = changes.revision
        self._generation += 1
        self._unknown.clear()
        if changes.owners is not None:
            self._owners, self._overlaid = changes.owners, None
        if changes.prices is not None:
            self._prices, self._overlaid = changes.prices, None
        if changes.ids is None:
            self._known.clear()
            self._by_id.clear()
            return
        for id in changes.ids:
            for digest in self._by_id.pop(id, ()):
                self._known.pop(digest, None)

    def _find_declared(self, digest: str, snapshot: Snapshot) -> Principal | None:
        if self._declared_of is not snapshot:
            self._declared_of = snapshot
            self._declared = {}
        principal = self._declared.get(digest)
        if principal is None and (declared := snapshot.declared_keys.get(digest)) is not None:
            principal = self._declared[digest] = with_shared_limits(declared, snapshot)
        return principal

    def _find_known(self, digest: str, snapshot: Snapshot) -> Principal | None:
        known = self._known.get(digest)
        if known is None:
            return None
        self._known.move_to_end(digest)
        if known.snapshot is not snapshot:
            known = self._known[digest] = _Known(known.record, known.hash, snapshot)
        return known.principal

    async def _find_stored(self, key: bytes, digest: str) -> Principal:
        if self._store is None or not is_genuine(self._pepper, key) or digest in self._unknown:
            raise NotAuthenticated()
        await self._loaded()
        generation = self._generation
        hash = stored_hash(self._pepper, key)
        record = await self._look_up(self._store, digest, hash)
        usable = record is not None and record.revoked_us is None and record.suspended_us is None and _opens(record, hash)
        # An answer that was asked for before a change became known here serves this request, but is not remembered.
        if generation == self._generation:
            self._remember(digest, record if usable else None, hash)
        if record is None or not usable:
            raise NotAuthenticated()
        if record.team and record.team not in self.snapshot().teams:
            await self.refresh()  # a team may be as new as its key
        return holder_of(record, hash, self.snapshot())

    async def _loaded(self) -> None:
        """Wait until the owners are known: without them a key's shared limits would be missing.

        Raises:
            KeysUnavailable: the database does not answer.
        """
        if self._revision is not None:
            return
        before = self._refreshed
        async with self._refreshing:
            if self._revision is None and self._refreshed == before:  # else another request has just asked in vain
                await self._refresh()
        if self._revision is None:
            raise KeysUnavailable("Keys cannot be checked at the moment.", detail="owners not read yet")

    async def _look_up(self, store: KeySource, digest: str, hash: str) -> KeyRecord | None:
        """One query per key at a time; the others wait for its answer."""
        while (flight := self._flights.get(digest)) is not None:
            await flight.done.wait()
            if flight.outage is not None:
                raise KeysUnavailable(flight.outage.message)
            if flight.settled:
                return flight.record
        flight = self._flights[digest] = _Flight()
        try:
            flight.record = await store.find_by_hash(hash)
            flight.settled = True
        except KeysUnavailable as outage:
            flight.outage = outage
            raise
        finally:
            del self._flights[digest]
            flight.done.set()
        return flight.record

    def _remember(self, digest: str, record: KeyRecord | None, hash: str) -> None:
        if record is None:
            self._unknown[digest] = None
            if len(self._unknown) > self._unknown_max:
                self._unknown.popitem(last=False)
            return
        self._known[digest] = _Known(record, hash, self.snapshot())
        self._by_id.setdefault(record.id, set()).add(digest)
        if len(self._known) > self._known_max:
            digest, oldest = self._known.popitem(last=False)
            others = self._by_id.get(oldest.record.id, set())
            others.discard(digest)
            if not others:
                self._by_id.pop(oldest.record.id, None)


def anonymous(snapshot: Snapshot) -> Principal:
    """Who sends no key, with the limits of a key that has none of its own."""
    limits = tuple(bound(spec, f"key:{ANONYMOUS}", "") for spec in snapshot.key_limits)
    return with_shared_limits(Principal(ANONYMOUS, limits=limits), snapshot)


def with_shared_limits(principal: Principal, snapshot: Snapshot) -> Principal:
    """The principal with every limit that it shares: its user's, team's, organisation's and the whole gateway's.

    Each rule is there once. What the configuration lacks adds none. Calendar periods of a key begin in its team's zone.
    """
    team = snapshot.teams.get(principal.team_id)
    zone = (team.zone if team is not None else "") or snapshot.zone
    organisation = principal.org_id or (team.organisation if team is not None else "")
    limits = [bound(spec, spec.scope, zone) for spec in principal.limits]
    known = {_counter(spec) for spec in limits}
    shared: list[tuple[str, Iterable[LimitSpec]]] = []
    if principal.user:
        named = snapshot.users.get(principal.user)
        shared.append((f"user:{principal.user}", snapshot.user_limits if named is None else named))
    if team is not None:
        shared.append((f"team:{team.name}", team.limits))
    shared.append((f"organisation:{organisation}", snapshot.organisations.get(organisation, ())))
    shared.append((GATEWAY, snapshot.gateway_limits))
    for scope, specs in shared:
        limits += [one for spec in specs if _counter(one := bound(spec, scope, zone)) not in known]
    return msgspec.structs.replace(principal, org_id=organisation, limits=tuple(limits))


def _counter(spec: LimitSpec) -> tuple[object, ...]:
    return spec.scope, spec.unit, spec.window_ms, spec.period, spec.model, spec.shadow


def _opens(record: KeyRecord, hash: str) -> bool:
    """Whether a secret with this hash is the key's, now or before its last rotation; compared in constant time."""
    now = hmac.compare_digest(record.hash, hash)
    return now or (record.previous_hash is not None and hmac.compare_digest(record.previous_hash, hash))


def _expires_us(record: KeyRecord, hash: str) -> int | None:
    """When this secret of the key ends: a rotated one with its grace."""
    if record.hash == hash or record.previous_until_us is None:
        return record.expires_us
    return record.previous_until_us if record.expires_us is None else min(record.expires_us, record.previous_until_us)


def _allowed(record: KeyRecord, snapshot: Snapshot) -> frozenset[str] | None:
    """What both the key's and its team's allow-list hold: the route's check does not know the database's teams."""
    team = snapshot.teams.get(record.team)
    shared = None if team is None else team.models
    return record.models if shared is None else shared if record.models is None else record.models & shared


def holder_of(record: KeyRecord, hash: str, snapshot: Snapshot) -> Principal:
    """The principal of a stored key, asked for by the secret with this hash, with every limit that it meets."""
    own = record.limit_specs() or tuple(bound(spec, f"key:{record.id}", "") for spec in snapshot.key_limits)
    principal = Principal(
        key_id=record.id,
        team_id=record.team,
        user=record.user,
        scopes=record.scopes,
        models=_allowed(record, snapshot),
        limits=own,
        expires_us=_expires_us(record, hash),
        usage_on_finish=record.usage_on_finish,
        default_model=record.default_model,
    )
    return with_shared_limits(principal, snapshot)
