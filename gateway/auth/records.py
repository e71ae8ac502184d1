"""What the key database holds, as values: keys, the owners of limits, prices, and what is asked of them. Pure.

Instants are µs UTC. `models` None = every model. Limits are stored without the scope that names their counters: that is
their holder's (`key:<id>`, `team:<name>` …).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from gateway.domain.principal import LimitSpec, OnInsufficient, OnOutage, Period, Unit
from gateway.domain.route import Deployment, Price

#: Limits are stored in Redis as doubles: above this they would be rounded.
LARGEST_LIMIT = 2**53
#: What a key may be used for: `inference`, and the roles of the admin API.
SCOPES = frozenset({"inference", "admin", "team-admin", "viewer"})
#: Whose limits are stored. Models are the file's: the database has but further limits of them, and of the whole gateway.
OwnerKind = Literal["organisation", "team", "user", "model", "gateway"]
TEXT_CHARS = 128
MODELS_MAX = 1000
LIMITS_MAX = 32


class InvalidKey(ValueError):
    """A description is wrong; the message begins with the field."""


class UnknownKey(LookupError):
    """No key has this public id."""


class UnknownOwner(LookupError):
    """No organisation, team or user has this name."""


class OwnerExists(ValueError):
    """The name is taken."""


class OwnerInUse(ValueError):
    """It cannot be deleted: others belong to it."""


class UnknownPrice(LookupError):
    """No price has this id."""


class PriceExists(ValueError):
    """There is a price of this model from this instant on."""


class PriceDeclared(ValueError):
    """The price stands in the configuration file."""


class KeyRetired(ValueError):
    """The key was revoked for good, so nothing about it can be changed."""


class KeyLimit(msgspec.Struct, frozen=True):
    """A limit as it is stored, without its owner: the fields of `LimitSpec`. Stored as JSON, so fields may be added."""

    unit: Unit
    limit: int
    window_ms: int = 0
    on_outage: OnOutage | None = None
    period: Period | None = None
    zone: str = ""
    model: str = ""
    shadow: bool = False
    on_insufficient: OnInsufficient | None = None

    def spec(self, scope: str) -> LimitSpec:
        """This limit as that of an owner (`key:<id>`)."""
        return LimitSpec(scope, *msgspec.structs.astuple(self))


class NewKey(msgspec.Struct, frozen=True):
    """What a key shall be. None = no such limit, every model, or never. Rates are per minute; `expires_us` µs UTC.

    `limits` are further ones beside `rpm`, `tpm` and `concurrent`. `usage_on_finish`, `default_model`: see `Principal`.
    """

    name: str
    team: str = ""
    user: str = ""
    models: frozenset[str] | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrent: int | None = None
    scopes: frozenset[str] = frozenset({"inference"})
    expires_us: int | None = None
    limits: tuple[KeyLimit, ...] = ()
    usage_on_finish: bool = False
    default_model: str = ""

    def all_limits(self) -> tuple[KeyLimit, ...]:
        """The limits as they are stored."""
        stated: tuple[tuple[Unit, int | None, int], ...] = (
            ("requests", self.rpm, 60_000),
            ("tokens", self.tpm, 60_000),
            ("slots", self.concurrent, 0),
        )
        return tuple(KeyLimit(unit, limit, window) for unit, limit, window in stated if limit is not None) + self.limits

    def check(self, now_us: int) -> None:
        """Refuse what makes no sense.

        Raises:
            InvalidKey: naming the field.
        """
        for field, limit in (("rpm", self.rpm), ("tpm", self.tpm), ("concurrent", self.concurrent)):
            if limit is not None and not 1 <= limit <= LARGEST_LIMIT:
                raise InvalidKey(f"{field}: from 1 to 2^53, not {limit}")
        check_text("name", self.name, required=True)
        check_text("team", self.team)
        check_text("user", self.user)
        check_text("default_model", self.default_model)
        check_models(self.models)
        check_limits(self.all_limits())
        check_scopes(self.scopes, self.team)
        if self.expires_us is not None and self.expires_us <= now_us:
            raise InvalidKey("expires: already past")


class KeyChange(msgspec.Struct, frozen=True):
    """New values of a key's fields; what is UNSET stays."""

    name: str | UnsetType = UNSET
    team: str | UnsetType = UNSET
    user: str | UnsetType = UNSET
    models: frozenset[str] | UnsetType | None = UNSET
    limits: tuple[KeyLimit, ...] | UnsetType = UNSET
    scopes: frozenset[str] | UnsetType = UNSET
    expires_us: int | UnsetType | None = UNSET
    usage_on_finish: bool | UnsetType = UNSET
    default_model: str | UnsetType = UNSET


class KeyRecord(msgspec.Struct, frozen=True):
    """A stored key. After a rotation `previous_hash` is good too until `previous_until_us`. `repr` shows the id alone."""

    id: str
    hash: str
    name: str
    team: str
    user: str
    models: frozenset[str] | None
    limits: tuple[KeyLimit, ...]
    scopes: frozenset[str]
    created_us: int
    expires_us: int | None
    revoked_us: int | None
    suspended_us: int | None = None
    previous_hash: str | None = None
    previous_until_us: int | None = None
    usage_on_finish: bool = False
    default_model: str = ""

    def __repr__(self) -> str:
        return f"KeyRecord({self.id!r})"

    def limit_specs(self) -> tuple[LimitSpec, ...]:
        """The key's own limits, under its own scope."""
        return tuple(each.spec(f"key:{self.id}") for each in self.limits)

    def state(self, now_us: int) -> Literal["active", "suspended", "revoked", "expired"]:
        """What it is good for now."""
        if self.revoked_us is not None:
            return "revoked"
        if self.expires_us is not None and self.expires_us <= now_us:
            return "expired"
        return "active" if self.suspended_us is None else "suspended"


class Owner(msgspec.Struct, frozen=True):
    """An organisation, team or user that shares limits. `organisation` and `models` are a team's.

    `zone`: IANA name of its calendar periods' time zone; "" = its organisation's or the gateway's.
    """

    kind: OwnerKind
    name: str
    organisation: str = ""
    zone: str = ""
    models: frozenset[str] | None = None
    limits: tuple[KeyLimit, ...] = ()
    created_us: int = 0

    def limit_specs(self) -> tuple[LimitSpec, ...]:
        """Its limits, under its own scope."""
        return tuple(each.spec(f"{self.kind}:{self.name}") for each in self.limits)

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            InvalidKey: naming the field.
        """
        check_text("name", self.name, required=True)
        check_text("organisation", self.organisation)
        check_models(self.models)
        check_limits(self.limits)


class OwnerChange(msgspec.Struct, frozen=True):
    """New values of an owner's fields; what is UNSET stays."""

    organisation: str | UnsetType = UNSET
    zone: str | UnsetType = UNSET
    models: frozenset[str] | UnsetType | None = UNSET
    limits: tuple[KeyLimit, ...] | UnsetType = UNSET


class PriceRecord(msgspec.Struct, frozen=True):
    """What a model's tokens cost requests that are admitted from `from_us` (µs UTC) on.

    `deployment` "" = at each of its deployments whose price stands neither in the file nor in a record of its own.
    """

    id: str
    model: str
    deployment: str
    from_us: int
    price: Price


class Changes(msgspec.Struct, frozen=True):
    """What changed since a revision.

    `ids` None: unknown (the counter went back), so any key may have changed. `owners`, `prices`: all of them, when one
    changed; None = none did.
    """

    revision: int
    ids: tuple[str, ...] | None
    owners: tuple[Owner, ...] | None = None
    prices: tuple[PriceRecord, ...] | None = None


def stated(change: KeyChange | OwnerChange) -> dict[str, object]:
    """The fields that a change states."""
    return {name: value for name, value in msgspec.structs.asdict(change).items() if value is not UNSET}


def stored_limits(specs: Iterable[LimitSpec]) -> tuple[KeyLimit, ...]:
    """Compiled limits as they are stored."""
    names = KeyLimit.__struct_fields__
    return tuple(KeyLimit(**{name: getattr(spec, name) for name in names}) for spec in specs)


def check_text(field: str, text: str, *, required: bool = False) -> None:
    """Refuse text that no log or table shows well.

    Raises:
        InvalidKey: naming the field.
    """
    if len(text) > TEXT_CHARS or not text.isprintable():
        raise InvalidKey(f"{field}: at most {TEXT_CHARS} printable characters")
    if required and not text.strip():
        raise InvalidKey(f"{field}: must not be empty")


def check_models(models: Collection[str] | None) -> None:
    """Refuse an allow-list that allows nothing or is too long.

    Raises:
        InvalidKey: naming the field.
    """
    if models is not None and not all(models):
        raise InvalidKey("models: an empty name")
    if models is not None and not 1 <= len(models) <= MODELS_MAX:
        raise InvalidKey(f"models: from 1 to {MODELS_MAX} names; leave it out for every model")


def check_limits(limits: Collection[KeyLimit]) -> None:
    """Refuse limits that cannot be counted.

    Raises:
        InvalidKey: naming the field.
    """
    if len(limits) > LIMITS_MAX:
        raise InvalidKey(f"limits: at most {LIMITS_MAX}")
    for number, one in enumerate(limits):
        if not 1 <= one.limit <= LARGEST_LIMIT:
            raise InvalidKey(f"limits.{number}: from 1 to 2^53, not {one.limit}")
    counters = [(one.unit, one.window_ms, one.period, one.model, one.shadow) for one in limits]
    if len(set(counters)) < len(counters):
        raise InvalidKey("limits: two count the same thing over the same period")


def check_scopes(scopes: frozenset[str], team: str) -> None:
    """Refuse unknown scopes, and a team's administrator without a team.

    Raises:
        InvalidKey: naming the field.
    """
    if not scopes or scopes - SCOPES:
        raise InvalidKey(f"scopes: one or more of {', '.join(sorted(SCOPES))}")
    if "team-admin" in scopes and not team:
        raise InvalidKey("scopes: team-admin needs a team")


def declares_price(deployment: Deployment) -> bool:
    """Whether the configuration file says what a deployment's tokens cost; a price of nothing is none."""
    return deployment.price != Price() or bool(deployment.later_prices)


#: Whether a team or organisation of this name exists in the configuration file.
InFile = Callable[[OwnerKind, str], bool]
