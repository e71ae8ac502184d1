"""/admin/v1/organisations: teams belong to them."""

from __future__ import annotations

from gateway.admin.caller import AdminParts, Caller
from gateway.admin.nouns import Noun
from gateway.admin.owned import Sees, declared_organisations
from gateway.admin.shapes import NewOrganisation, OrganisationPatch, OrganisationView


def _sees(parts: AdminParts, caller: Caller) -> Sees:
    team = parts.present().teams.get(caller.team or "")
    own = team.organisation if team is not None else ""
    return lambda one: caller.team is None or (bool(own) and one.name == own)


ORGANISATIONS = Noun(
    kind="organisation",
    view=OrganisationView,
    new=NewOrganisation,
    patch=OrganisationPatch,
    declared=declared_organisations,
    sees=_sees,
    says={
        "list": "Organisations by name: all, or that of the key's team.",
        "create": "Make an organisation. Admins only.",
        "change": "Change an organisation. Admins only.",
        "delete": "Delete an organisation that has no teams. Admins only.",
    },
)
