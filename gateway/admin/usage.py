"""/admin/v1/usage: sums of the ledger by key, team, organisation, user, model, deployment, outcome or day."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Literal, get_args

from fastapi import APIRouter, Depends, Query, Response
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.core.errors import BadRequest
from gateway.admin.caller import AdminParts, Caller, calling
from gateway.admin.reports import UsageView, sums
from gateway.admin.shapes import Page, micros
from gateway.config.csv_text import csv_text
from gateway.ledger.queries import DAY_US, Dimension

_SUMS = ("requests", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "cost_usd", "cost_nusd")
_KNOWN: tuple[Dimension, ...] = get_args(Dimension)


def router(parts: AdminParts, ledger: AsyncEngine) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["usage"])
    called = Depends(calling(parts))

    @routes.get("/admin/v1/usage", response_model=Page[UsageView])
    async def usage(  # noqa: PLR0913  # one argument per query parameter
        *,
        caller: Caller = called,
        by: str = Query("team,model", max_length=128, description=f"up to four, with commas: {', '.join(_KNOWN)}"),
        since: str = Query("", max_length=40, description="date or instant, UTC; default: 30 days before `until`"),
        until: str = Query("", max_length=40, description="date or instant, exclusive; default: now"),
        key: str | None = None,
        team: str | None = None,
        user: str | None = None,
        model: str | None = None,
        format: Literal["json", "csv"] = "json",
        after: int = Query(0, ge=0, le=10_000_000, description="`last_id` of the page before"),
        limit: int = Query(1000, ge=1, le=10_000),
    ) -> Response | Page[UsageView]:
        """Sums that equal the ledger's rows exactly; days are UTC. A key that sees one team gets that team's."""
        groups = dimensions(by)
        end_us = instant_of(until, "until") if until else parts.now_us() + 1
        begin_us = instant_of(since, "since") if since else end_us - 30 * DAY_US
        wanted: dict[Dimension, str | None] = {"key": key, "team": team, "user": user, "model": model}
        only: dict[Dimension, str | int] = {name: value for name, value in wanted.items() if value is not None}
        if caller.team is not None and only.setdefault("team", caller.team) != caller.team:
            return Page[UsageView](data=[])
        found = await sums(ledger, groups, begin_us, end_us, only, after, limit + 1)
        shown, more = found[:limit], len(found) > limit
        if format == "csv":
            more_header = {"x-has-more": "true"} if more else {}
            return Response(as_csv(groups, shown), headers=more_header, media_type="text/csv; charset=utf-8")
        return Page[UsageView](data=shown, has_more=more, last_id=str(after + len(shown)) if shown else None)

    return routes


def dimensions(text: str) -> list[Dimension]:
    """`team,model` as dimensions.

    Raises:
        BadRequest: an unknown or repeated one, or more than four.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    found = [known for name in names for known in _KNOWN if known == name]
    if len(found) != len(names) or len(set(found)) != len(found) or len(found) > 4:
        raise BadRequest(f"by: up to four different ones of {', '.join(_KNOWN)}.", param="by")
    return found


def as_csv(by: Sequence[Dimension], rows: Sequence[UsageView]) -> str:
    """Sums as CSV (RFC 4180), with a header line."""
    columns = (*by, *_SUMS)
    return csv_text(columns, [[getattr(row, name) for name in columns] for row in rows])


def instant_of(text: str, param: str) -> int:
    """A date or an instant, UTC where no zone is given, as µs UTC.

    Raises:
        BadRequest: it is neither.
    """
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"{param}: write a date such as 2027-01-31, or an instant.", param=param) from None
    return micros(at if at.tzinfo else at.replace(tzinfo=datetime.UTC))
