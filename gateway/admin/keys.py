"""/admin/v1/keys: mint, change, suspend, rotate and revoke API keys. Keys of the configuration file are read-only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends, Query
from msgspec import UNSET

from backends.core.errors import BadRequest
from gateway.admin.caller import AdminParts, Caller, calling
from gateway.admin.errors import NotFound, ReadOnly, told
from gateway.admin.shapes import (
    KeyPatch,
    KeyView,
    NewKeyBody,
    Page,
    Rotation,
    SecretView,
    instant,
    micros,
    page,
    public_names,
    shown,
    to_store,
)
from gateway.auth.circle import Circle, circle_of
from gateway.auth.database import By
from gateway.auth.keys import RANDOM_BYTES
from gateway.auth.keystore import Guard
from gateway.auth.overlay import in_file
from gateway.auth.records import KeyChange, KeyRecord, NewKey, OwnerKind
from gateway.config.snapshot import Snapshot
from gateway.domain.principal import NotAllowed, Principal

_PATH = "/admin/v1/keys"
#: What a team's administrator may grant: nothing beyond its own.
_GRANTED_BY_TEAM_ADMIN = frozenset({"inference", "viewer", "team-admin"})
Marks = Callable[[str, By, Guard], Awaitable[KeyRecord]]


def router(parts: AdminParts) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["keys"])
    called = Depends(calling(parts))
    desk = _Desk(parts)

    @routes.get(_PATH)
    async def list_keys(
        caller: Caller = called,
        team: str | None = None,
        user: str | None = None,
        after: str | None = None,
        limit: int = Query(100, ge=1, le=1000),
    ) -> Page[KeyView]:
        """Keys: the file's by name, then the minted ones, oldest first; filtered by team and user."""
        found = await desk.page(caller, team, user, after, limit)
        return page(found, [one.id for one in found], limit)

    @routes.get(_PATH + "/{id:path}")
    async def get_key(id: str, caller: Caller = called) -> KeyView:
        """One key."""
        return await desk.one(id, caller)

    @routes.post(_PATH)
    async def create_key(body: NewKeyBody, caller: Caller = called) -> SecretView:
        """Mint a key. Its secret is in this answer and nowhere else. Admins, and team-admins for their team."""
        return await desk.mint(body, caller)

    @routes.patch(_PATH + "/{id}")
    async def change_key(id: str, body: KeyPatch, caller: Caller = called) -> KeyView:
        """Change a key; acts on every worker of every gateway within a second. Admins, and team-admins for their team."""
        return await desk.change(id, body, caller)

    @routes.post(_PATH + "/{id}/rotate")
    async def rotate_key(id: str, body: Rotation, caller: Caller = called) -> SecretView:
        """A new secret under the same id; the old one goes on for `grace_s`. Admins, and team-admins for their team."""
        return await desk.rotate(id, body.grace_s, caller)

    @routes.post(_PATH + "/{id}/suspend")
    async def suspend_key(id: str, caller: Caller = called) -> KeyView:
        """Refuse the key until it is resumed. Admins, and team-admins for their team."""
        return await desk.mark(id, caller, parts.keys.suspend)

    @routes.post(_PATH + "/{id}/resume")
    async def resume_key(id: str, caller: Caller = called) -> KeyView:
        """Let a suspended key in again. Admins, and team-admins for their team."""
        return await desk.mark(id, caller, parts.keys.resume)

    @routes.post(_PATH + "/{id}/revoke")
    async def revoke_key(id: str, caller: Caller = called) -> KeyView:
        """Revoke the key for good. Admins, and team-admins for their team."""
        return await desk.mark(id, caller, parts.keys.revoke)

    return routes


class _Desk:
    """What the routes do."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts

    async def page(self, caller: Caller, team: str | None, user: str | None, after: str | None, limit: int) -> list[KeyView]:
        """Up to `limit` + 1 keys."""
        if caller.team is not None:
            if team not in (None, caller.team):
                return []
            team = caller.team
        declared = sorted(self._declared().values(), key=lambda one: one.key_id)
        names = [one.key_id for one in declared]
        begun = after is None or after in names
        found = [
            _declared_view(one, self._parts.now_us())
            for one in declared
            if begun and (after is None or one.key_id > after)
            if (team is None or one.team_id == team) and (user is None or one.user == user)
        ][: limit + 1]
        if len(found) <= limit:
            start = None if begun else after
            more = await self._parts.keys.list(team=team, user=user, after=start, limit=limit + 1 - len(found))
            found += [self._view(record) for record in more]
        return found

    async def one(self, id: str, caller: Caller) -> KeyView:
        """One that may be seen."""
        if (declared := self._declared().get(id)) is not None and caller.sees(declared.team_id):
            return _declared_view(declared, self._parts.now_us())
        record = await self._parts.keys.find(id)
        if record is None or not caller.sees(record.team):
            raise NotFound("key")
        return self._view(record)

    async def mint(self, body: NewKeyBody, caller: Caller) -> SecretView:
        """A new key."""
        caller.need("admin", "team-admin")
        snapshot = self._parts.snapshot()
        new = NewKey(
            name=body.name,
            team=_team(body.team, caller),
            user=body.user or "",
            models=None if body.models is None else public_names(body.models, snapshot),
            limits=to_store(body.limits, snapshot),
            scopes=_granted(body.scopes, caller),
            expires_us=None if body.expires is None else micros(body.expires),
            usage_on_finish=body.usage_on_finish,
            default_model=_default_model(body.default_model, snapshot),
        )
        with told("key"):
            minted, record = await self._parts.keys.create(
                self._parts.pepper,
                new,
                self._by(caller),
                self._parts.randomness(RANDOM_BYTES),
                self._in_file,
                self._circle(caller),
            )
        await self._parts.auth.refresh()
        return SecretView(**self._view(record).model_dump(), secret=minted.secret)

    async def change(self, id: str, body: KeyPatch, caller: Caller) -> KeyView:
        """Change fields."""
        self._may(id, caller)
        stated, snapshot = body.model_fields_set, self._parts.snapshot()
        if "team" in stated and caller.role != "admin":
            raise NotAllowed("Only an admin moves a key to another team.", param="team")
        models = None if body.models is None else public_names(body.models, snapshot)
        change = KeyChange(
            name=body.name if "name" in stated else UNSET,
            team=(body.team or "") if "team" in stated else UNSET,
            user=(body.user or "") if "user" in stated else UNSET,
            models=models if "models" in stated else UNSET,
            limits=to_store(body.limits, snapshot) if "limits" in stated else UNSET,
            scopes=_granted(body.scopes, caller) if "scopes" in stated else UNSET,
            expires_us=(None if body.expires is None else micros(body.expires)) if "expires" in stated else UNSET,
            usage_on_finish=body.usage_on_finish if "usage_on_finish" in stated else UNSET,
            default_model=_default_model(body.default_model, snapshot) if "default_model" in stated else UNSET,
        )
        with told("key"):
            record = await self._parts.keys.change(
                id, change, self._by(caller), self._in_file, _guard(caller), self._circle(caller)
            )
        await self._parts.auth.refresh()
        return self._view(record)

    async def rotate(self, id: str, grace_s: int, caller: Caller) -> SecretView:
        """A new secret."""
        self._may(id, caller)
        with told("key"):
            minted, record = await self._parts.keys.rotate(
                id, self._parts.pepper, self._by(caller), self._parts.randomness(RANDOM_BYTES), grace_s, _guard(caller)
            )
        await self._parts.auth.refresh()
        return SecretView(**self._view(record).model_dump(), secret=minted.secret)

    async def mark(self, id: str, caller: Caller, act: Marks) -> KeyView:
        """Suspend, resume or revoke."""
        self._may(id, caller)
        with told("key"):
            record = await act(id, self._by(caller), _guard(caller))
        await self._parts.auth.refresh()
        return self._view(record)

    def _may(self, id: str, caller: Caller) -> None:
        """Refuse roles that change nothing, and changes of the file's keys."""
        declared = self._declared().get(id)
        caller.need("admin", "team-admin")
        if declared is not None and caller.sees(declared.team_id):
            raise ReadOnly("key")

    def _declared(self) -> dict[str, Principal]:
        return {one.key_id: one for one in self._parts.snapshot().declared_keys.values()}

    def _in_file(self, kind: OwnerKind, name: str) -> bool:
        return in_file(self._parts.snapshot(), kind, name)

    def _circle(self, caller: Caller) -> Circle | None:
        """Whose users the caller may name."""
        return None if caller.team is None else circle_of(caller.team, self._parts.present())

    def _by(self, caller: Caller) -> By:
        return caller.by(self._parts.now_us())

    def _view(self, record: KeyRecord) -> KeyView:
        now_us = self._parts.now_us()
        until = record.previous_until_us
        return KeyView(
            id=record.id,
            name=record.name,
            team=record.team or None,
            user=record.user or None,
            models=None if record.models is None else sorted(record.models),
            limits=shown(record.limit_specs()),
            scopes=sorted(record.scopes),  # type: ignore[arg-type]  # checked when it was stored
            state=record.state(now_us),
            source="database",
            created_at=instant(record.created_us),
            expires_at=instant(record.expires_us),
            usage_on_finish=record.usage_on_finish,
            default_model=record.default_model or None,
            previous_secret_until=instant(until) if until is not None and until > now_us else None,
        )


def _declared_view(one: Principal, now_us: int) -> KeyView:
    expired = one.expires_us is not None and one.expires_us <= now_us
    return KeyView(
        id=one.key_id,
        name=one.key_id,
        team=one.team_id or None,
        user=one.user or None,
        models=None if one.models is None else sorted(one.models),
        limits=shown(one.limits),
        scopes=sorted(one.scopes),  # type: ignore[arg-type]  # checked when the file was loaded
        state="expired" if expired else "active",
        source="file",
        expires_at=instant(one.expires_us),
        usage_on_finish=one.usage_on_finish,
        default_model=one.default_model or None,
    )


def _default_model(name: str | None, snapshot: Snapshot) -> str:
    """The public name of a model; "" for none."""
    return next(iter(public_names([name], snapshot, "default_model"))) if name else ""


def _guard(caller: Caller) -> Guard:
    """What speaks against a caller's changing a stored key; judged inside the transaction."""

    def check(record: KeyRecord) -> None:
        if not caller.sees(record.team):
            raise NotFound("key")
        if caller.role != "admin" and "admin" in record.scopes:
            raise NotAllowed("Only an admin changes an admin's key.")

    return check


def _team(stated: str | None, caller: Caller) -> str:
    """The team of a new key: a team-admin's own."""
    if caller.team is None:
        return stated or ""
    if stated not in (None, caller.team):
        raise BadRequest(f"team: there is no team named {stated!r}.", param="team")
    return caller.team


def _granted(scopes: tuple[str, ...], caller: Caller) -> frozenset[str]:
    wanted = frozenset(scopes)
    if caller.role != "admin" and wanted - _GRANTED_BY_TEAM_ADMIN:
        raise NotAllowed("Only an admin grants the scope admin.", param="scopes")
    return wanted
