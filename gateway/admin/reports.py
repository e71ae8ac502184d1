"""What usage and `me` share: sums of the ledger as answers, and a period's ends."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.core.errors import GatewayError
from gateway.config.shown_limits import usd
from gateway.ledger.queries import Dimension, UsageSum, usage


class LedgerOut(GatewayError):
    """The ledger does not answer (503)."""

    status = 503
    default_code = "ledger_unavailable"


class UsageView(BaseModel):
    """Sums over a group of requests; the fields of the group are those asked for with `by`."""

    key: str | None = None
    team: str | None = None
    organisation: str | None = None
    user: str | None = None
    model: str | None = None
    deployment: str | None = None
    outcome: str | None = None
    day: str | None = None
    requests: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: str
    cost_nusd: int


async def sums(
    engine: AsyncEngine,
    by: Sequence[Dimension],
    since_us: int,
    until_us: int,
    only: Mapping[Dimension, str | int],
    offset: int = 0,
    limit: int | None = None,
) -> list[UsageView]:
    """Sums of the ledger by group.

    Raises:
        LedgerOut: the database does not answer.
    """
    try:
        found = await usage(engine, by, since_us, until_us, only, offset, limit)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise LedgerOut("Usage cannot be read at the moment.", detail=type(error).__name__) from error
    return [view(by, one) for one in found]


def view(by: Sequence[Dimension], one: UsageSum) -> UsageView:
    """One sum as an answer."""
    group = {name: _day(value) if name == "day" else str(value) for name, value in zip(by, one.group, strict=True)}
    return UsageView(
        **group,
        requests=one.requests,
        input_tokens=one.input_tokens,
        cached_input_tokens=one.cached_input_tokens,
        output_tokens=one.output_tokens,
        reasoning_tokens=one.reasoning_tokens,
        cost_usd=usd(one.cost_nusd),
        cost_nusd=one.cost_nusd,
    )


def _day(start_us: str | int) -> str:
    return datetime.datetime.fromtimestamp(int(start_us) / 1_000_000, datetime.UTC).date().isoformat()
