"""`switchyard check --explain`: where each model leads, as a tree: who may ask, which deployments are tried in which order.

Pure: from a compiled configuration to text. Secrets are not in it; upstream addresses are, for they are the operator's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from gateway.config.shown_limits import limit_text, usd_per_million
from gateway.config.snapshot import EngineSpec, Snapshot
from gateway.domain.principal import LimitSpec
from gateway.domain.route import Deployment, Price, Route

_POLICY = {
    "least_busy": "the least busy first",
    "round_robin": "in turn",
    "weighted": "by weight",
}


class Node(msgspec.Struct):
    """A line and what hangs below it."""

    text: str
    below: list[Node] = []


def explanation(snapshot: Snapshot) -> str:
    """The routes of a configuration, one tree a model, then what is declared and leads nowhere."""
    nodes = [_route(route, snapshot) for route in _routes(snapshot)]
    used = {deployment.id for route in snapshot.models.values() for tier in route.tiers for deployment in tier}
    idle = sorted(set(snapshot.deployments) - used)
    if idle:
        nodes.append(Node("no model leads to", [_deployment(snapshot.deployments[id], 1, "", snapshot) for id in idle]))
    busy = {snapshot.deployments[id].engine for id in used}
    if asleep := sorted(set(snapshot.engines) - busy):
        nodes.append(Node("engines that no model reaches", [Node(name) for name in asleep]))
    nodes += _shared("every request", snapshot.gateway_limits)
    nodes += _shared("each key without limits of its own", snapshot.key_limits)
    return "\n".join(line for node in nodes for line in _drawn(node)) + "\n"


def _routes(snapshot: Snapshot) -> list[Route]:
    return sorted({route.name: route for route in snapshot.models.values()}.values(), key=lambda route: route.name)


def _route(route: Route, snapshot: Snapshot) -> Node:
    aliases = sorted(name for name, one in snapshot.models.items() if one.name == route.name and name != route.name)
    facts = [f"also {', '.join(aliases)}"] if aliases else []
    facts += [f"context {route.context}"] if route.context else []
    facts.append(f"output cap {route.default_output_tokens} tokens where none is stated")
    node = Node(f"{route.name} ({'; '.join(facts)})", [Node(f"asked by {_who(route, snapshot)}")])
    node.below += [Node(f"limit {limit_text(spec)}, whoever asks") for spec in route.limits]
    for number, tier in enumerate(route.tiers, 1):
        order = f", {_POLICY[route.policy]}" if len(tier) > 1 else ""
        when = "tried first" if number == 1 else "tried when tier 1 has failed" if number == 2 else "then"
        weight = "weight {}" if route.policy == "weighted" and len(tier) > 1 else ""
        below = [_deployment(one, route.weights.get(one.id, 1), weight, snapshot) for one in tier]
        node.below.append(Node(f"tier {number}, {when}{order}", below))
    return node


def _who(route: Route, snapshot: Snapshot) -> str:
    teams = sorted(name for name, team in snapshot.teams.items() if team.models is None or route.name in team.models)
    keys = sorted(key.key_id for key in snapshot.declared_keys.values() if snapshot.allowed(route, key))
    told = "keys without a team that no model list narrows"
    if snapshot.teams:
        told += f"; team{'s' if len(teams) != 1 else ''} {', '.join(teams) or '(none)'}"
    return told + (f"; declared keys {', '.join(keys)}" if keys else "")


def _deployment(one: Deployment, weight: int, shown: str, snapshot: Snapshot) -> Node:
    facts = [shown.format(weight)] if shown else []
    if one.engine:
        facts.append(_engine(snapshot.engines[one.engine]))
    else:
        spoken = f"{one.dialect}/{one.quirks}" if one.quirks else one.dialect
        facts.append(f"{spoken} at {one.base_url}{'' if one.credential else ', without a credential'}")
        facts += [] if one.verify_tls else ["its certificate is NOT checked"]
    facts.append(f"model {one.model}")
    facts.append("no bound" if one.max_in_flight is None else f"at most {one.max_in_flight} at once")
    facts.append(f"unsupported parameters: {one.params}")
    facts.append(f"first token within {one.timeouts.first_event_s:g} s")
    if one.price != Price():
        facts.append(f"{usd_per_million(one.price.input)}/{usd_per_million(one.price.output)} USD per million tokens in/out")
    return Node(f"{one.id}: {'; '.join(facts)}")


def _engine(spec: EngineSpec) -> str:
    return f"engine {spec.name} ({spec.kind}, {spec.slots} slots of {spec.context} tokens)"


def _shared(whose: str, limits: Sequence[LimitSpec]) -> list[Node]:
    return [Node(f"limits of {whose}", [Node(limit_text(spec)) for spec in limits])] if limits else []


def _drawn(node: Node) -> Iterator[str]:
    yield node.text
    for number, below in enumerate(node.below):
        last = number == len(node.below) - 1
        lines = _drawn(below)
        yield f"{'└─ ' if last else '├─ '}{next(lines)}"
        yield from (f"{'   ' if last else '│  '}{line}" for line in lines)
