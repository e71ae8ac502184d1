"""Which quotas there are and what the ledger's rows count in each: with it a Redis that lost its data is made whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.auth.authenticate import anonymous, holder_of, with_shared_limits
from gateway.auth.database import Database
from gateway.auth.keystore import KeyStore
from gateway.auth.overlay import overlaid
from gateway.auth.owners import OwnerStore
from gateway.config.snapshot import Snapshot
from gateway.domain.principal import LimitSpec
from gateway.domain.settlement import Rule
from gateway.ledger.recall import Used, recent_rows, used_since
from gateway.limits.periods import begins_us
from gateway.limits.rebuild import RowShares, Share, begun, rebuild
from gateway.limits.rules import Demand, rules_for

_NOTHING = Demand(0)


class Quotas:
    """Every quota of a moment, and who counts in which.

    Args:
        specs: limits bound to their owners; others than quotas are left out.
        now_us: the store's clock, µs UTC: it decides the periods.
    """

    def __init__(self, specs: Iterable[LimitSpec], now_us: int) -> None:
        self._of: dict[tuple[str, str], dict[str, tuple[LimitSpec, Rule, int]]] = {}
        for spec in specs:
            if spec.period is not None:
                (rule,) = rules_for((spec,), _NOTHING, now_us)
                kind, _, owner = spec.scope.partition(":")
                first_us = begins_us(spec.period, spec.zone, now_us)
                self._of.setdefault((kind, owner), {})[rule.name] = (spec, rule, first_us)

    def beginnings(self) -> list[int]:
        """When their periods began, each instant once."""
        return sorted({first_us for quotas in self._of.values() for _, _, first_us in quotas.values()})

    def shares(self, used: Used, since_us: int) -> list[Share]:
        """What an amount counts, in the quotas whose period began at `since_us`."""
        owners = [("key", used.key), ("team", used.team), ("user", used.user), ("organisation", used.organisation)]
        owners += [("model", used.model), ("gateway", "")]
        shares: list[Share] = []
        for owner in owners:
            for spec, rule, first_us in self._of.get(owner, {}).values():
                amount = _amount(spec, used)
                if first_us == since_us and spec.model in ("", used.model) and amount:
                    shares.append(Share(rule.name, rule.ends_us, amount))
        return shares


async def restore(
    client: Redis, ledger: AsyncEngine, database_url: str, snapshot: Callable[[], Snapshot], clock: Callable[[], int]
) -> None:
    """Bring the quotas of a Redis that lost its data to what the ledger knows.

    Raises:
        KeysUnavailable, SQLAlchemyError, RedisError, OSError: an outage; it may be called again.
    """
    seconds, micros = await client.time()
    now_us = seconds * 1_000_000 + micros
    try_us = await begun(client, clock())
    database = Database(database_url, timeout_s=30.0)
    try:
        quotas = Quotas(await _specs(database, snapshot()), now_us)
    finally:
        await database.aclose()
    sums: dict[str, Share] = {}
    rows: dict[str, list[Share]] = {}
    for since_us in quotas.beginnings():
        for used in await used_since(ledger, since_us, try_us):
            for share in quotas.shares(used, since_us):
                known = sums.get(share.name)
                sums[share.name] = share if known is None else Share(share.name, share.ends_us, known.amount + share.amount)
        for used in await recent_rows(ledger, since_us, try_us):
            rows.setdefault(used.id, []).extend(quotas.shares(used, since_us))
    shares = [RowShares(id, tuple(found)) for id, found in rows.items()]
    await rebuild(client, try_us, now_us, list(sums.values()), shares)


async def _specs(database: Database, file: Snapshot) -> list[LimitSpec]:
    """Every limit that a request may meet: what is shared, and what each key has or gets."""
    owners = await OwnerStore(database, lambda _kind, _name: False).list()
    present = overlaid(file, owners)
    found = [spec for route in present.models.values() for spec in route.limits]
    holders = [with_shared_limits(one, present) for one in present.declared_keys.values()]
    holders += [holder_of(one, one.hash, present) for one in await KeyStore(database).list()]
    holders.append(anonymous(present))
    for holder in holders:
        found += holder.limits
    found += _shared(present)
    return found


def _shared(present: Snapshot) -> Sequence[LimitSpec]:
    """The limits of owners whose last key may be gone."""
    found = list(present.gateway_limits)
    for specs in (*present.organisations.values(), *present.users.values(), *(team.limits for team in present.teams.values())):
        found += specs
    return found


def _amount(spec: LimitSpec, used: Used) -> int:
    if spec.unit == "tokens":
        return used.input_tokens + used.output_tokens
    amount: int = getattr(used, spec.unit)
    return amount
