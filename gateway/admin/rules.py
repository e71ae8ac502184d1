"""/admin/v1/rules: every limit with what is left of it, whoever owns it; and the limits of models and of the whole gateway.

The limits of keys, users, teams and organisations are changed where those are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from backends.core.errors import BadRequest
from gateway.admin.caller import AdminParts, Caller, calling
from gateway.admin.errors import NotFound, told
from gateway.admin.shapes import Limits, Page, Source, page, to_store
from gateway.admin.standing import LimitView, Scope, standing
from gateway.auth.authenticate import holder_of, with_shared_limits
from gateway.auth.records import OwnerKind
from gateway.config.compiled_limits import GATEWAY
from gateway.config.entries import Entry
from gateway.config.snapshot import Snapshot
from gateway.domain.principal import LimitSpec, Principal

_PATH = "/admin/v1/rules"


class RuleView(LimitView):
    """A limit of an owner."""

    object: Literal["rule"] = "rule"
    name: str = Field(description="the owner's; a key's public id")
    source: Source


class NewRules(Entry):
    """The limits instead of the present ones of the database; none takes them away."""

    limits: Annotated[Limits, Field(description="beside those of the configuration file, which are read-only")]


def router(parts: AdminParts) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["rules"])
    called = Depends(calling(parts))

    @routes.get(_PATH)
    async def list_rules(
        caller: Caller = called,
        scope: Scope | None = None,
        name: str | None = None,
        after: int = Query(0, ge=0, le=10_000_000, description="`last_id` of the page before"),
        limit: int = Query(100, ge=1, le=1000),
    ) -> Page[RuleView]:
        """Limits of the gateway, organisations, teams, users and models with what is left of each; with `scope=key` and a
        key's id as `name` those that a request with it meets."""
        present = parts.present()
        if scope == "key":
            if name is None:
                raise BadRequest("name: which key; write its id.", param="name")
            specs: Sequence[LimitSpec] = (await _holder(parts, caller, name)).limits
        else:
            specs = [spec for spec in shared_limits(present) if _wanted(spec, scope, name) and _visible(spec, caller, present)]
        some = specs[after : after + limit + 1]
        views = await standing(some, parts.peek, parts.store_now_us)
        of_file = frozenset(map(identity, parts.snapshot().limits()))
        found = [rule_view(spec, view, of_file) for spec, view in zip(some, views, strict=True)]
        return page(found, [str(after + number + 1) for number in range(len(found))], limit)

    @routes.put(_PATH + "/{scope}/{name:path}")
    async def set_rules(
        scope: Literal["model", "gateway"], name: str, body: NewRules, caller: Caller = called
    ) -> Page[RuleView]:
        """Limits of a model, or of the whole gateway (`gateway/gateway`), beside those of the file; acts within a second.
        Admins only."""
        caller.need("admin")
        owner = owner_name(parts.snapshot(), scope, name)
        if owner is None:
            raise NotFound(scope)
        limits = to_store(body.limits, parts.snapshot())
        if scope == "model" and any(one.model for one in limits):
            raise BadRequest("limits: a model's limit is of that model anyway.", param="limits")
        with told(scope):
            await parts.owners.set_limits(scope, owner, limits, caller.by(parts.now_us()))
        await parts.auth.refresh()
        specs = [spec for spec in shared_limits(parts.present()) if _wanted(spec, scope, owner)]
        of_file = frozenset(map(identity, parts.snapshot().limits()))
        views = await standing(specs, parts.peek, parts.store_now_us)
        return Page[RuleView](data=[rule_view(spec, view, of_file) for spec, view in zip(specs, views, strict=True)])

    return routes


def owner_name(snapshot: Snapshot, scope: OwnerKind, name: str) -> str | None:
    """The owner of a model's or the gateway's limits by its public name; None = there is none."""
    if scope == "gateway":
        return GATEWAY if name == GATEWAY else None
    route = snapshot.models.get(name)
    return None if route is None else route.name


def shared_limits(present: Snapshot) -> list[LimitSpec]:
    """Every limit that is not a key's own: the gateway's, then organisations', teams', users' and models', each by name."""
    found = list(present.gateway_limits)
    for _, specs in sorted(present.organisations.items()):
        found += specs
    for _, team in sorted(present.teams.items()):
        found += team.limits
    for _, specs in sorted(present.users.items()):
        found += specs
    for name, route in sorted(present.models.items()):
        found += route.limits if name == route.name else ()
    return found


def identity(spec: LimitSpec) -> tuple[object, ...]:
    """What makes two limits the same one, wherever they stand."""
    return spec.scope, spec.unit, spec.limit, spec.window_ms, spec.period, spec.model, spec.shadow


def rule_view(spec: LimitSpec, view: LimitView, of_file: Collection[tuple[object, ...]]) -> RuleView:
    """A limit's standing with its owner."""
    name = spec.scope.partition(":")[2] or GATEWAY
    known = identity(spec) in of_file
    if view.scope == "key":  # a key without limits of its own has the file's for each
        known = known or ("key", *identity(spec)[1:]) in of_file
    if view.scope == "user":
        known = known or ("user", *identity(spec)[1:]) in of_file
    return RuleView(**view.model_dump(), name=name, source="file" if known else "database")


def _wanted(spec: LimitSpec, scope: str | None, name: str | None) -> bool:
    kind, _, owner = spec.scope.partition(":")
    return scope in (None, kind) and name in (None, owner or GATEWAY)


def _visible(spec: LimitSpec, caller: Caller, present: Snapshot) -> bool:
    """Who sees one team sees what its keys meet, but for users': they may have keys in several teams."""
    kind, _, owner = spec.scope.partition(":")
    if caller.team is None or kind in ("gateway", "model"):
        return True
    team = present.teams.get(caller.team)
    return owner == (caller.team if kind == "team" else team.organisation if kind == "organisation" and team else None)


async def _holder(parts: AdminParts, caller: Caller, id: str) -> Principal:
    """The holder of a key, declared or minted, with every limit that it meets.

    Raises:
        NotFound: there is none, or it may not be seen.
    """
    present = parts.present()
    declared = next((one for one in parts.snapshot().declared_keys.values() if one.key_id == id), None)
    if declared is not None and caller.sees(declared.team_id):
        return with_shared_limits(declared, present)
    record = await parts.keys.find(id)
    if record is None or not caller.sees(record.team):
        raise NotFound("key")
    return holder_of(record, record.hash, present)
