"""The routes of a noun that shares limits (organisations, teams, users), made of what is its own: one mechanism for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from gateway.admin.caller import AdminParts, Caller, calling
from gateway.admin.owned import Owned, Sees
from gateway.admin.shapes import Page, instant, page, public_names, shown, to_store
from gateway.auth.records import Owner, OwnerChange, OwnerKind
from gateway.config.snapshot import Snapshot

#: Fields of bodies that are written otherwise in the database.
_STORED = {"timezone": "zone"}


@dataclass(frozen=True, kw_only=True)
class Noun:
    """What is a noun's own.

    `view`, `new`, `patch`: its shapes; the fields of `new` and `patch` are a choice of organisation, timezone, models and
    limits. `declared`: those of the configuration file. `sees`: which ones a caller may see. `says`: what the documentation
    tells of `list`, `create`, `change` and `delete`.
    """

    kind: OwnerKind
    view: type[BaseModel]
    new: type[BaseModel]
    patch: type[BaseModel]
    declared: Callable[[Snapshot], Sequence[Owner]]
    sees: Callable[[AdminParts, Caller], Sees]
    says: Mapping[str, str]


def routes_of(noun: Noun, parts: AdminParts) -> APIRouter:
    """The routes of a noun."""
    plural = f"{noun.kind}s"
    routes = APIRouter(tags=[plural])
    owned = Owned(parts, noun.kind, noun.declared)
    called = Depends(calling(parts))
    path, one_path = f"/admin/v1/{plural}", f"/admin/v1/{plural}/{{name:path}}"

    def view(one: Owner, declared: bool) -> BaseModel:
        return _view(noun.view, one, declared)

    async def listed(caller: Caller = called, after: str | None = None, limit: int = Query(100, ge=1, le=1000)) -> object:
        found = await owned.page(noun.sees(parts, caller), after, limit)
        return page([view(one, declared) for one, declared in found], [one.name for one, _ in found], limit)

    async def found(name: str, caller: Caller = called) -> object:
        return view(*await owned.one(name, noun.sees(parts, caller)))

    async def created(body: BaseModel, caller: Caller = called) -> object:
        name: str = body.name  # type: ignore[attr-defined]  # every `new` has one
        return view(await owned.create(Owner(noun.kind, name, **_fields(body, parts.snapshot())), caller), False)

    async def changed(name: str, body: BaseModel, caller: Caller = called) -> object:
        stated = {_STORED.get(field, field) for field in body.model_fields_set}
        told = {field: value for field, value in _fields(body, parts.snapshot()).items() if field in stated}
        return view(await owned.change(name, OwnerChange(**told), caller, noun.sees(parts, caller)), False)

    async def deleted(name: str, caller: Caller = called) -> dict[str, Any]:
        await owned.delete(name, caller, noun.sees(parts, caller))
        return {"object": noun.kind, "name": name, "deleted": True}

    created.__annotations__["body"] = noun.new  # FastAPI reads the shape of a body from here
    changed.__annotations__["body"] = noun.patch
    made = (
        (path, "GET", listed, f"list_{plural}", Page[noun.view], noun.says["list"]),  # type: ignore[name-defined]
        (one_path, "GET", found, f"get_{noun.kind}", noun.view, f"One {noun.kind}."),
        (path, "POST", created, f"create_{noun.kind}", noun.view, noun.says["create"]),
        (one_path, "PATCH", changed, f"change_{noun.kind}", noun.view, noun.says["change"]),
        (one_path, "DELETE", deleted, f"delete_{noun.kind}", dict[str, Any], noun.says["delete"]),
    )
    for where, method, answer, name, model, says in made:
        routes.add_api_route(where, answer, methods=[method], name=name, response_model=model, description=says)
    return routes


def _fields(body: BaseModel, snapshot: Snapshot) -> dict[str, Any]:
    """The fields of a body but its name, as they are stored."""
    fields: dict[str, Any] = {}
    for name in type(body).model_fields:
        value = getattr(body, name)
        if name == "limits":
            fields[name] = to_store(value, snapshot)
        elif name == "models":
            fields[name] = None if value is None else public_names(value, snapshot)
        elif name != "name":
            fields[_STORED.get(name, name)] = value or ""
    return fields


def _view(shape: type[BaseModel], one: Owner, declared: bool) -> BaseModel:
    told = {
        "name": one.name,
        "organisation": one.organisation or None,
        "timezone": one.zone or None,
        "models": None if one.models is None else sorted(one.models),
        "limits": shown(one.limit_specs()),
        "source": "file" if declared else "database",
        "created_at": None if declared else instant(one.created_us),
    }
    return shape(**{field: value for field, value in told.items() if field in shape.model_fields})
