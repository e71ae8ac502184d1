"""Limit plans by principal and route, made at the first request of each pair and kept while both are the same objects."""

from __future__ import annotations

from gateway.domain.principal import OnOutage, Principal
from gateway.domain.route import Route
from gateway.domain.settlement import LedgerRow
from gateway.limits.rules import LimitPlan, applying

#: Pairs kept at most; more means that they come and go, and all are made anew.
MAX_PLANS = 20_000


class Plan(LimitPlan):
    """A limit plan, and what the ledger would show of a request under it that nobody settles, but for what is its own."""

    __slots__ = ("opening",)

    def __init__(self, principal: Principal, route: Route, on_outage: OnOutage) -> None:
        super().__init__(applying(principal.limits + route.limits, route.name), on_outage)
        self.opening = LedgerRow(
            id="",
            admitted_us=0,
            settled_us=0,
            key_id=principal.key_id,
            team_id=principal.team_id,
            org_id=principal.org_id,
            user=principal.user,
            model=route.name,
            deployment="",
            protocol="",
            outcome="abandoned",
            status=0,
            streamed=False,
            input_tokens=0,
            cached_input_tokens=0,
            output_tokens=0,
            reasoning_tokens=0,
            usage_source="estimated",
            cost_nusd=0,
            attempts=0,
            ttft_us=0,
            duration_us=0,
        )


class Plans:
    """One worker's plans.

    Args:
        on_outage: for limits that do not say it themselves.
    """

    def __init__(self, on_outage: OnOutage = "deny") -> None:
        self._on_outage: OnOutage = on_outage
        self._kept: dict[tuple[str, str], tuple[Principal, Route, Plan]] = {}

    def of(self, principal: Principal, route: Route) -> Plan:
        """The plan of the limits that count this principal's requests on this route."""
        key = (principal.key_id, route.name)
        kept = self._kept.get(key)
        if kept is not None and kept[0] is principal and kept[1] is route:
            return kept[2]
        plan = Plan(principal, route, self._on_outage)
        if len(self._kept) >= MAX_PLANS:
            self._kept.clear()
        self._kept[key] = (principal, route, plan)
        return plan
