"""Limit plans by principal and route, made at the first request of each pair and kept while both are the same objects."""

from __future__ import annotations

from gateway.domain.principal import OnOutage, Principal
from gateway.domain.route import Route
from gateway.limits.rules import LimitPlan, applying

#: Pairs kept at most; more means that they come and go, and all are made anew.
MAX_PLANS = 20_000


class Plans:
    """One worker's plans.

    Args:
        on_outage: for limits that do not say it themselves.
    """

    def __init__(self, on_outage: OnOutage = "deny") -> None:
        self._on_outage: OnOutage = on_outage
        self._kept: dict[tuple[str, str], tuple[Principal, Route, LimitPlan]] = {}

    def of(self, principal: Principal, route: Route) -> LimitPlan:
        """The plan of the limits that count this principal's requests on this route."""
        key = (principal.key_id, route.name)
        kept = self._kept.get(key)
        if kept is not None and kept[0] is principal and kept[1] is route:
            return kept[2]
        plan = LimitPlan(applying(principal.limits + route.limits, route.name), self._on_outage)
        if len(self._kept) >= MAX_PLANS:
            self._kept.clear()
        self._kept[key] = (principal, route, plan)
        return plan
