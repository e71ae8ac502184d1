"""The deployments as this worker sees them: a backend each, its capabilities, its breaker, its requests in flight."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from backends.core.capabilities import Capabilities
from backends.core.contracts import Backend
from backends.core.errors import BackendError
from backends.core.request import Job
from gateway.domain.route import Deployment, Route
from gateway.routing.breaker import Breaker
from gateway.routing.eligibility import eligible
from gateway.routing.policies import POLICIES

#: A dialect or engine that would generate without end, or stop after a few tokens, unless it is told declares this: its
#: jobs always carry an output cap.
NEEDS_OUTPUT_CAP = "needs_output_cap"
#: What a breaker does not count: the client's fault, or a place that is well but busy.
_NOT_ILL = frozenset({"rejected", "overloaded"})


class Place:
    """One deployment at run time, and what it can do after all corrections. `busy` counts this worker's open attempts."""

    __slots__ = ("backend", "breaker", "busy", "capabilities", "deployment")

    def __init__(self, deployment: Deployment, backend: Backend, capabilities: Capabilities) -> None:
        self.deployment = deployment
        self.backend = backend
        self.capabilities = capabilities
        self.breaker = Breaker()
        self.busy = 0

    def record(self, error: BaseException | None, now_us: int) -> None:
        """An attempt ended; `error` None = it answered."""
        if error is None:
            self.breaker.record(True, now_us)
        elif isinstance(error, BackendError) and error.kind not in _NOT_ILL:
            self.breaker.record(False, now_us)


Build = Callable[[Deployment], tuple[Backend, Capabilities]]


class Catalog:
    """All places of one configuration snapshot.

    A new snapshot makes a new catalog that takes over the places whose deployment did not change, so connections,
    breakers and counts survive a reload; `retired` of the old one are closed once their last request has left.
    """

    def __init__(self, deployments: Mapping[str, Deployment], build: Build, before: Catalog | None = None) -> None:
        self.places: dict[str, Place] = {}
        old = before.places if before is not None else {}
        for id, deployment in deployments.items():
            kept = old.get(id)
            if kept is not None and kept.deployment == deployment:
                self.places[id] = kept
            else:
                self.places[id] = Place(deployment, *build(deployment))
        self.capabilities = {id: place.capabilities for id, place in self.places.items()}
        self.retired = [place for id, place in old.items() if self.places.get(id) is not place]
        self._turn = 0

    def plan(self, route: Route, job: Job, now_us: int, uniform: Callable[[], float] = random.random) -> list[list[Place]]:
        """The places to try, tier by tier, in order; those that look ill come after all others.

        Raises:
            UnsupportedParameter: no deployment of the route can run the job.
        """
        self._turn += 1
        tiers: list[list[Place]] = []
        ill: list[Place] = []
        for tier in eligible(job, route, self.capabilities):
            well: list[Place] = []
            for place in self._ordered(route, tier, uniform):
                (well if place.breaker.healthy(now_us) else ill).append(place)
            if well:
                tiers.append(well)
        if ill:
            tiers.append(ill)
        return tiers

    def needs_output_cap(self, route: Route) -> bool:
        """Whether some deployment of the route would generate without end when it is told no cap."""
        return any(NEEDS_OUTPUT_CAP in self.capabilities[deployment.id] for tier in route.tiers for deployment in tier)

    def _ordered(self, route: Route, tier: Sequence[Deployment], uniform: Callable[[], float]) -> list[Place]:
        if len(tier) == 1:
            return [self.places[tier[0].id]]
        load = {deployment.id: self.places[deployment.id].busy for deployment in tier}
        ordered = POLICIES[route.policy](tier, route.weights, load, uniform, self._turn)
        return [self.places[deployment.id] for deployment in ordered]
