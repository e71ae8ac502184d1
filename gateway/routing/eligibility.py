"""Which deployments of a route can run a job at all. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from backends.core.capabilities import Capabilities, resolve
from backends.core.errors import UnsupportedParameter
from backends.core.request import Job
from gateway.domain.route import Deployment, Route


def eligible(job: Job, route: Route, capabilities: Mapping[str, Capabilities]) -> list[list[Deployment]]:
    """The route's tiers with only those deployments whose `params` rule accepts the job; empty tiers are left out.

    Raises:
        UnsupportedParameter: no deployment accepts it; names what the first one lacks.
    """
    tiers: list[list[Deployment]] = []
    refusal: UnsupportedParameter | None = None
    for tier in route.tiers:
        able: list[Deployment] = []
        for deployment in tier:
            try:
                resolve(job, capabilities[deployment.id], deployment.params)
            except UnsupportedParameter as error:
                refusal = refusal or error
            else:
                able.append(deployment)
        if able:
            tiers.append(able)
    if not tiers and refusal is not None:
        raise refusal
    return tiers
