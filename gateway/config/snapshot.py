"""The compiled configuration: one immutable value, swapped by one assignment, pinned by every stream it serves."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from backends.core.errors import GatewayError
from gateway.domain.engines import EngineKeep
from gateway.domain.principal import LimitSpec, Principal
from gateway.domain.route import Deployment, Route


class UnknownModel(GatewayError):
    """No such model, or the key may not know of it (404)."""

    status = 404
    type = "invalid_request_error"
    default_code = "model_not_found"


class EngineSpec(msgspec.Struct, frozen=True):
    """A local engine: one host process, one model.

    `options` go to the engine as they are validated (threads, context, slots, embedding …). `context` is tokens per
    slot. `python` "" = the gateway's own interpreter.
    `keep` says when it is loaded; its `memory_mb` 0 = not stated. `memory_limit_mb` 0 = unlimited.
    """

    name: str
    kind: str
    model: str
    slots: int = 4
    context: int = 4096
    queue: int = 64
    options: dict[str, object] = {}
    python: str = ""
    environment: dict[str, str] = {}
    keep: EngineKeep = EngineKeep("")
    memory_limit_mb: int = 0


class Team(msgspec.Struct, frozen=True):
    """A team of the configuration file. `zone` (IANA) is that of its keys' calendar limits; "" = the gateway's."""

    name: str
    models: frozenset[str] | None = None
    limits: tuple[LimitSpec, ...] = ()
    organisation: str = ""
    zone: str = ""


class Snapshot(msgspec.Struct, frozen=True):
    """Everything dynamic. `models` includes aliases. `declared_keys` maps a key's hash (hex) to its principal.

    `key_limits` are of each key without limits of its own, `user_limits` of each user whom `users` does not name.
    `zone` (IANA) is that of calendar limits whose owner has none.
    """

    version: str
    models: dict[str, Route]
    deployments: dict[str, Deployment]
    engines: dict[str, EngineSpec]
    teams: dict[str, Team] = {}
    declared_keys: dict[str, Principal] = {}
    key_limits: tuple[LimitSpec, ...] = ()
    user_limits: tuple[LimitSpec, ...] = ()
    users: dict[str, tuple[LimitSpec, ...]] = {}
    organisations: dict[str, tuple[LimitSpec, ...]] = {}
    gateway_limits: tuple[LimitSpec, ...] = ()
    zone: str = "UTC"

    def limits(self) -> Iterator[LimitSpec]:
        """Every limit of the file, whoever owns it."""
        yield from (*self.key_limits, *self.user_limits, *self.gateway_limits)
        for specs in (*self.users.values(), *self.organisations.values()):
            yield from specs
        for team in self.teams.values():
            yield from team.limits
        for route in self.models.values():
            yield from route.limits
        for key in self.declared_keys.values():
            yield from key.limits

    def resolve(self, model: str, principal: Principal) -> Route:
        """The route of a model name, or of the principal's own default where there is no such model.

        Raises:
            UnknownModel: it does not exist, or this principal may not use it (the two look alike).
        """
        route = self.models.get(model) or self.models.get(principal.default_model)
        if route is None or not self.allowed(route, principal):
            raise UnknownModel(f"The model {model[:128]!r} does not exist or you do not have access to it.", param="model")
        return route

    def allowed(self, route: Route, principal: Principal) -> bool:
        """Whether a principal may use a route: its own and its team's allow-list, by the route's public name."""
        if principal.models is not None and route.name not in principal.models:
            return False
        team = self.teams.get(principal.team_id)
        return team is None or team.models is None or route.name in team.models
