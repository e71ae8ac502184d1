"""/admin/v1/users: limits over all keys that name a person. A user without an entry has `users.default.limits`."""

from __future__ import annotations

from gateway.admin.nouns import Noun
from gateway.admin.owned import declared_users
from gateway.admin.shapes import NewUser, UserPatch, UserView

USERS = Noun(
    kind="user",
    view=UserView,
    new=NewUser,
    patch=UserPatch,
    declared=declared_users,
    sees=lambda _parts, caller: lambda _: caller.team is None,
    says={
        "list": "Users by name. A key that sees one team only sees none: a user may have keys in several.",
        "create": "Give a user limits. Admins only.",
        "change": "Change a user's limits. Admins only.",
        "delete": "Take a user's limits away: those of `users.default` hold again. Admins only.",
    },
)
