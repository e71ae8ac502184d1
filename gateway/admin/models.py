"""/admin/v1/models: the local engines' models: see their state, load them, unload them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, Protocol

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from gateway.admin.caller import AdminParts, Caller, calling
from gateway.admin.errors import NotFound
from gateway.config.snapshot import EngineSpec, Snapshot
from gateway.domain.engines import EngineState, EngineStateName

_PATH = "/admin/v1/models"
#: States in which nothing more happens by itself.
_SETTLED: frozenset[EngineStateName] = frozenset({"ready", "failed", "unloaded"})
#: Between two looks while somebody waits.
_LOOK_S = 1.0


class Engines(Protocol):
    """The engines of this gateway."""

    @property
    def states(self) -> Sequence[EngineState]:
        """Every engine's state, as last told."""

    def load(self, name: str) -> None:
        """Have it loaded."""

    def unload(self, name: str, *, force: bool) -> None:
        """Have its memory freed."""

    async def change(self, most_s: float) -> None:
        """Wait for news of states, at most so long."""


class ModelView(BaseModel):
    """A local engine's model."""

    object: Literal["engine"] = "engine"
    name: str = Field(description="of the engine")
    models: list[str] = Field(description="public names that it serves")
    kind: str
    load: Literal["eager", "lazy"]
    state: EngineStateName
    code: str = Field(description="why it failed, in a word")
    reason: str = Field(description="why it failed")
    retry_ms: int = Field(description="until it is started again; 0: with the next request for it")
    memory_mb: int = Field(description="what it counts for in server.engine_memory_mb")
    loads: int = Field(description="how often its process was started")


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelView]


def router(parts: AdminParts, engines: Engines) -> APIRouter:
    """The routes. A name is an engine's, or a public model's: then all of its engines are meant."""
    routes = APIRouter(tags=["models"])
    called = Depends(calling(parts))

    def shown(names: Sequence[str]) -> ModelList:
        snapshot = parts.snapshot()
        return ModelList(data=[_view(snapshot, one) for one in engines.states if one.name in names])

    async def settled(names: Sequence[str], wait_s: float) -> ModelList:
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while (left_s := until - loop.time()) > 0:
            await engines.change(min(_LOOK_S, left_s))
            if all(one.state in _SETTLED for one in engines.states if one.name in names):
                break
        return shown(names)

    @routes.get(_PATH)
    async def list_models(caller: Caller = called) -> ModelList:
        """The local engines and their states. For `admin`, and for `viewer` of the whole gateway."""
        caller.need("admin", "viewer")
        caller.need_everything()
        return shown([one.name for one in engines.states])

    @routes.post(_PATH + "/{name:path}/load", status_code=202)
    async def load(name: str, caller: Caller = called, wait_s: float = Query(0, ge=0, le=600)) -> ModelList:
        """Load a model, as a request for it would. The answer comes after `wait_s` at the latest. Admins only."""
        caller.need("admin")
        names = _engines_of(parts.snapshot(), name)
        await _told(parts, caller, "load", name, {})
        for one in names:
            engines.load(one)
        return await settled(names, wait_s)

    @routes.post(_PATH + "/{name:path}/unload", status_code=202)
    async def unload(
        name: str, caller: Caller = called, force: bool = False, wait_s: float = Query(0, ge=0, le=600)
    ) -> ModelList:
        """Free a model's memory when its open requests have ended, or with `force` at once, which fails them. The next
        request loads it again. Admins only.
        """
        caller.need("admin")
        names = _engines_of(parts.snapshot(), name)
        await _told(parts, caller, "unload", name, {"force": force})
        for one in names:
            engines.unload(one, force=force)
        return await settled(names, wait_s)

    return routes


async def _told(parts: AdminParts, caller: Caller, action: str, name: str, changes: dict[str, object]) -> None:
    async with parts.database.changing(caller.by(parts.now_us())) as change:
        await change.audit(action, "model", name, changes)


def _engines_of(snapshot: Snapshot, name: str) -> list[str]:
    """Raises NotFound when no local engine is meant."""
    if name in snapshot.engines:
        return [name]
    route = snapshot.models.get(name)
    deployments = [one for tier in route.tiers for one in tier] if route is not None else []
    found = list(dict.fromkeys(one.engine for one in deployments if one.engine))
    if not found:
        raise NotFound("local model")
    return found


def _view(snapshot: Snapshot, state: EngineState) -> ModelView:
    spec = snapshot.engines.get(state.name, EngineSpec(state.name, "", ""))
    serving = {
        route.name for route in snapshot.models.values() for tier in route.tiers for one in tier if one.engine == state.name
    }
    return ModelView(
        name=state.name,
        models=sorted(serving),
        kind=spec.kind,
        load="eager" if spec.keep.eager else "lazy",
        state=state.state,
        code=state.code,
        reason=state.detail,
        retry_ms=state.retry_ms,
        memory_mb=state.memory_mb,
        loads=state.loads,
    )
