"""Bodies and answers of the admin API. Bodies list the fields that may be set: any other is a 400 that names it."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from backends.core.errors import BadRequest
from gateway.auth.records import LIMITS_MAX, MODELS_MAX, KeyLimit, stored_limits
from gateway.config.compiled_limits import compile_limits
from gateway.config.entries import Entry, Instant, Limit, Name, Zone
from gateway.config.shown_limits import shown_limit
from gateway.config.snapshot import Snapshot
from gateway.domain.principal import LimitSpec

Item = TypeVar("Item")
Source = Literal["file", "database"]
Scope = Literal["inference", "admin", "team-admin", "viewer"]
Text = Annotated[str, Field(max_length=128)]
Limits = Annotated[tuple[Limit, ...], Field(max_length=LIMITS_MAX, description="like `limits` in the configuration file")]
Models = Annotated[tuple[Name, ...], Field(max_length=MODELS_MAX)]


class Page(BaseModel, Generic[Item]):
    """A page of a list: ask again with `after` = `last_id` while `has_more`."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool = False
    last_id: str | None = None


class OrganisationView(BaseModel):
    """An organisation. What the file declares is read-only."""

    object: Literal["organisation"] = "organisation"
    name: str
    timezone: str | None = Field(default=None, description="of its calendar limits; null: the gateway's")
    limits: list[dict[str, Any]] = Field(description="shared by all its teams")
    source: Source
    created_at: str | None = None


class TeamView(BaseModel):
    """A team. What the file declares is read-only."""

    object: Literal["team"] = "team"
    name: str
    organisation: str | None = None
    timezone: str | None = Field(default=None, description="of its calendar limits; null: its organisation's or the gateway's")
    models: list[str] | None = Field(default=None, description="models its keys may use; null: all")
    limits: list[dict[str, Any]] = Field(description="shared by all keys of the team")
    source: Source
    created_at: str | None = None


class UserView(BaseModel):
    """A user with limits of its own. What the file declares is read-only."""

    object: Literal["user"] = "user"
    name: str
    limits: list[dict[str, Any]] = Field(description="over all keys that name the user")
    source: Source
    created_at: str | None = None


class KeyView(BaseModel):
    """A key, without any secret."""

    object: Literal["key"] = "key"
    id: str = Field(description="public: shown in logs, reports and the ledger")
    name: str
    team: str | None = None
    user: str | None = None
    models: list[str] | None = Field(default=None, description="models it may use; null: all that its team may")
    limits: list[dict[str, Any]] = Field(description="its own; empty: keys.default.limits of the configuration")
    scopes: list[Scope]
    state: Literal["active", "suspended", "revoked", "expired"]
    source: Source
    created_at: str | None = None
    expires_at: str | None = None
    usage_on_finish: bool = Field(default=False, description="its streams tell usage on the finish chunk")
    default_model: str | None = Field(default=None, description="the model that answers where it asks for an unknown one")
    previous_secret_until: str | None = Field(default=None, description="after a rotation: when the old secret ends")


class SecretView(KeyView):
    """A key with its secret, which is shown this once."""

    secret: str


class NewOrganisation(Entry):
    """An organisation to be made."""

    name: Name
    timezone: Zone | None = None
    limits: Limits = ()


class OrganisationPatch(Entry):
    """What to change; what is absent stays."""

    timezone: Zone | None = None
    limits: Limits = ()


class NewTeam(NewOrganisation):
    """A team to be made."""

    organisation: Name | None = None
    models: Models | None = None


class TeamPatch(OrganisationPatch):
    """What to change; what is absent stays."""

    organisation: Name | None = None
    models: Models | None = None


class NewUser(Entry):
    """A user to be given limits."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    limits: Limits = ()


class UserPatch(Entry):
    """What to change; what is absent stays."""

    limits: Limits = ()


class NewKeyBody(Entry):
    """A key to be minted."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    team: Text | None = None
    user: Text | None = None
    models: Models | None = None
    limits: Limits = ()
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=4)] = ("inference",)
    expires: Instant | None = None
    usage_on_finish: bool = False
    default_model: Text | None = None


class KeyPatch(Entry):
    """What to change; what is absent stays. `expires` null: never; `models` null: all."""

    name: Annotated[str, Field(min_length=1, max_length=128)] = ""
    team: Text | None = None
    user: Text | None = None
    models: Models | None = None
    limits: Limits = ()
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=4)] = ("inference",)
    expires: Instant | None = None
    usage_on_finish: bool = False
    default_model: Text | None = None


class Rotation(Entry):
    """How a key is rotated."""

    grace_s: int = Field(default=0, ge=0, le=30 * 86_400, description="seconds that the old secret goes on")


def page(items: Sequence[Item], ids: Sequence[str], limit: int) -> Page[Item]:
    """A page of at most `limit` of the items, which may be one more than that."""
    more = len(items) > limit
    shown = min(len(items), limit)
    return Page(data=list(items[:limit]), has_more=more, last_id=ids[shown - 1] if shown else None)


def instant(micros: int | None) -> str | None:
    """µs UTC as `2027-01-31T00:00:00Z`, with a fraction where there is one."""
    if micros is None:
        return None
    at = datetime.datetime.fromtimestamp(micros // 1_000_000, datetime.UTC).replace(microsecond=micros % 1_000_000)
    return at.isoformat().replace("+00:00", "Z")


def micros(at: datetime.datetime) -> int:
    """An instant as µs UTC."""
    return (at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def shown(limits: Iterable[LimitSpec]) -> list[dict[str, Any]]:
    """Limits as the configuration file writes them."""
    return [shown_limit(spec) for spec in limits]


def to_store(limits: Sequence[Limit], snapshot: Snapshot) -> tuple[KeyLimit, ...]:
    """Limits of a body as they are stored.

    Raises:
        BadRequest: one names a model that does not exist.
    """
    for number, limit in enumerate(limits):
        if limit.model is not None:
            public_names([limit.model], snapshot, f"limits.{number}.model")
    return stored_limits(compile_limits(limits, ""))


def public_names(names: Iterable[str], snapshot: Snapshot, param: str = "models") -> frozenset[str]:
    """An allow-list by the routes' public names: an alias stands for its model.

    Raises:
        BadRequest: a model does not exist.
    """
    found: set[str] = set()
    for name in names:
        route = snapshot.models.get(name)
        if route is None:
            raise BadRequest(f"{param}: there is no model named {name!r}.", param=param)
        found.add(route.name)
    return frozenset(found)
