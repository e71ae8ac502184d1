"""/admin/v1/teams: keys belong to them and share their limits."""

from __future__ import annotations

from gateway.admin.nouns import Noun
from gateway.admin.owned import declared_teams
from gateway.admin.shapes import NewTeam, TeamPatch, TeamView

TEAMS = Noun(
    kind="team",
    view=TeamView,
    new=NewTeam,
    patch=TeamPatch,
    declared=declared_teams,
    sees=lambda _parts, caller: lambda one: caller.sees(one.name),
    says={
        "list": "Teams by name: all, or the key's own.",
        "create": "Make a team. Admins only.",
        "change": "Change a team. Admins only.",
        "delete": "Delete a team that has no keys but revoked ones. Admins only.",
    },
)
