"""The configuration with the database's organisations, teams and users beside the file's. Pure.

The file's win where a name is in both: that is refused at start, at a reload and by the admin API, and can only come
about by two changes in the same moment, or by a reload while the database is out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from gateway.auth.records import Owner, OwnerKind
from gateway.config.compiled_limits import bound
from gateway.config.snapshot import Snapshot, Team
from gateway.domain.principal import LimitSpec


def in_file(snapshot: Snapshot, kind: OwnerKind, name: str) -> bool:
    """Whether the configuration file has this name."""
    if kind == "team":
        return name in snapshot.teams
    return name in (snapshot.organisations if kind == "organisation" else snapshot.users)


def clashes(snapshot: Snapshot, owners: Iterable[tuple[OwnerKind, str]]) -> list[tuple[OwnerKind, str]]:
    """The database's owners whose names are in the file too."""
    return sorted((kind, name) for kind, name in owners if in_file(snapshot, kind, name))


def overlaid(snapshot: Snapshot, owners: Sequence[Owner]) -> Snapshot:
    """The snapshot as keys are judged by: the database's owners added, each limit in its owner's time zone."""
    if not owners:
        return snapshot
    zones = {one.name: one.zone for one in owners if one.kind == "organisation"}
    teams: dict[str, Team] = {}
    shared: dict[OwnerKind, dict[str, tuple[LimitSpec, ...]]] = {"organisation": {}, "user": {}, "team": {}}
    for one in owners:
        zone = one.zone or zones.get(one.organisation, "") or snapshot.zone
        limits = tuple(bound(spec, spec.scope, zone) for spec in one.limit_specs())
        if one.kind == "team":
            teams[one.name] = Team(one.name, one.models, limits, one.organisation, zone)
        else:
            shared[one.kind][one.name] = limits
    return msgspec.structs.replace(
        snapshot,
        teams={**teams, **snapshot.teams},
        organisations={**shared["organisation"], **snapshot.organisations},
        users={**shared["user"], **snapshot.users},
    )
