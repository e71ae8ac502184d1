"""The configuration with the database's organisations, teams, users, limits and prices beside the file's. Pure.

The file's win where a name is in both: that is refused at start, at a reload and by the admin API, and can only come
about by two changes in the same moment, or by a reload while the database is out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from gateway.auth.records import Owner, OwnerKind, PriceRecord, declares_price
from gateway.config.compiled_limits import GATEWAY, bound
from gateway.config.snapshot import Snapshot, Team
from gateway.domain.principal import LimitSpec
from gateway.domain.route import Deployment, Route


def in_file(snapshot: Snapshot, kind: OwnerKind, name: str) -> bool:
    """Whether the configuration file has this name."""
    if kind == "team":
        return name in snapshot.teams
    if kind == "organisation":
        return name in snapshot.organisations
    return kind == "user" and name in snapshot.users  # limits of models and the gateway come beside the file's


def clashes(snapshot: Snapshot, owners: Iterable[tuple[OwnerKind, str]]) -> list[tuple[OwnerKind, str]]:
    """The database's owners whose names are in the file too."""
    return sorted((kind, name) for kind, name in owners if in_file(snapshot, kind, name))


def overlaid(snapshot: Snapshot, owners: Sequence[Owner], prices: Sequence[PriceRecord] = ()) -> Snapshot:
    """The snapshot as requests are judged by: the database's owners added, each limit in its owner's time zone; and what
    its deployments cost that say nothing of it in the file.
    """
    if not owners and not prices:
        return snapshot
    zones = {one.name: one.zone for one in owners if one.kind == "organisation"}
    teams: dict[str, Team] = {}
    kinds: tuple[OwnerKind, ...] = ("organisation", "user", "model", "gateway")
    shared: dict[OwnerKind, dict[str, tuple[LimitSpec, ...]]] = {kind: {} for kind in kinds}
    for one in owners:
        zone = one.zone or zones.get(one.organisation, "") or snapshot.zone
        limits = tuple(bound(spec, GATEWAY if one.kind == "gateway" else spec.scope, zone) for spec in one.limit_specs())
        if one.kind == "team":
            teams[one.name] = Team(one.name, one.models, limits, one.organisation, zone)
        else:
            shared[one.kind][one.name] = limits
    models = _limited(snapshot.models, shared["model"]) if shared["model"] else snapshot.models
    return msgspec.structs.replace(
        snapshot,
        models=_priced(models, prices) if prices else models,
        teams={**teams, **snapshot.teams},
        organisations={**shared["organisation"], **snapshot.organisations},
        users={**shared["user"], **snapshot.users},
        gateway_limits=snapshot.gateway_limits + shared["gateway"].get(GATEWAY, ()),
    )


def dated_prices(route: Route, deployment: Deployment, records: Iterable[PriceRecord]) -> list[PriceRecord]:
    """The database's prices of a model's deployment, by the instant from which each holds; none where the file has its own.

    Those of the deployment itself hold from their first on, before it those of the whole model.
    """
    if declares_price(deployment):
        return []
    listed = sorted((one for one in records if one.model == route.name), key=lambda one: one.from_us)
    own = [one for one in listed if one.deployment == deployment.id]
    return [one for one in listed if not one.deployment and not (own and one.from_us >= own[0].from_us)] + own


def _limited(models: Mapping[str, Route], limits: Mapping[str, tuple[LimitSpec, ...]]) -> dict[str, Route]:
    routes = {
        route.name: msgspec.structs.replace(route, limits=route.limits + limits.get(route.name, ()))
        for name, route in models.items()
        if name == route.name
    }
    return {name: routes[route.name] for name, route in models.items()}


def _priced(models: Mapping[str, Route], records: Sequence[PriceRecord]) -> dict[str, Route]:
    by_model: dict[str, list[PriceRecord]] = {}
    for record in records:
        by_model.setdefault(record.model, []).append(record)
    routes: dict[str, Route] = {}
    for route in models.values():
        if route.name not in routes:
            listed = by_model.get(route.name, ())
            dated = {one.id: dated_prices(route, one, listed) for tier in route.tiers for one in tier} if listed else {}
            prices = {id: tuple((one.from_us, one.price) for one in found) for id, found in dated.items() if found}
            routes[route.name] = msgspec.structs.replace(route, prices=prices) if prices else route
    return {name: routes[route.name] for name, route in models.items()}
