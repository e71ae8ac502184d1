"""Balancing policies: in which order the deployments of one tier are tried. Pure; load and chance are arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gateway.domain.route import Deployment, Policy

Load = Mapping[str, int]
Order = Callable[[Sequence[Deployment], Mapping[str, int], Load, Callable[[], float], int], list[Deployment]]


def round_robin(
    tier: Sequence[Deployment], weights: Mapping[str, int], load: Load, uniform: Callable[[], float], turn: int
) -> list[Deployment]:
    """Each in its turn, by the order of the configuration."""
    del weights, load, uniform
    start = turn % len(tier)
    return [*tier[start:], *tier[:start]]


def least_busy(
    tier: Sequence[Deployment], weights: Mapping[str, int], load: Load, uniform: Callable[[], float], turn: int
) -> list[Deployment]:
    """Fewest requests in flight per weight first; ties in turn."""
    rotated = round_robin(tier, weights, load, uniform, turn)
    return sorted(rotated, key=lambda one: load.get(one.id, 0) / weights.get(one.id, 1))


def weighted(
    tier: Sequence[Deployment], weights: Mapping[str, int], load: Load, uniform: Callable[[], float], turn: int
) -> list[Deployment]:
    """A random order in which each comes first with probability weight / sum of weights.

    Exponential keys (Efraimidis and Spirakis 2006): u ** (1 / w), largest first.
    """
    del load, turn
    keyed = [(max(uniform(), 1e-300) ** (1.0 / weights.get(one.id, 1)), one) for one in tier]
    return [one for _, one in sorted(keyed, key=lambda pair: -pair[0])]


POLICIES: dict[Policy, Order] = {"round_robin": round_robin, "least_busy": least_busy, "weighted": weighted}
