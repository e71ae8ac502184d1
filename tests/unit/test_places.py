"""What a deployment can do, all corrections included, which backend reaches it, and when a retired one may be closed."""

from __future__ import annotations

from typing import Any

from backends.remote.backend import RemoteBackend
from backends.remote.fanout import FanOut
from gateway.domain.route import Deployment
from gateway.places import Backends, Retired
from gateway.routing.catalog import Place
from tests.fakes import FakeBackend


def built(**more: Any) -> tuple[object, frozenset[str]]:
    deployment = Deployment("a", "m", dialect="openai_compatible", base_url="http://example.test/v1", **more)
    return Backends(None, "worker-0", None).build(deployment)  # type: ignore[arg-type]  # no engine, so nothing of the boot


def test_a_deployments_corrections_count():
    backend, can = built(adds=frozenset({"top_k"}), lacks=frozenset({"tools"}))
    assert isinstance(backend, RemoteBackend)
    assert "top_k" in can and "n" in can
    assert "tools" not in can


def test_a_deployment_that_lacks_n_is_asked_several_times_at_once():
    backend, can = built(lacks=frozenset({"n", "tools"}))
    assert isinstance(backend, FanOut)
    assert "n" in can
    assert "tools" not in can


def place(id: str = "d") -> Place:
    return Place(Deployment(id, "up"), FakeBackend(), frozenset())


def test_a_place_waits_for_the_requests_that_were_open_when_it_was_retired() -> None:
    retired, old = Retired(), place()
    retired.add([old], {"early", "slow"})
    assert retired.due({"early", "slow", "new"}) == []
    assert retired.due({"slow", "new"}) == [], "it may still come, though nobody uses the place at the moment"
    assert retired.places == [old]
    assert retired.due({"new"}) == [old], "who came after the reload does not know it"
    assert (retired.due(()), retired.places) == ([], [])


def test_a_busy_place_waits_whoever_is_open() -> None:
    retired, old, other = Retired(), place("a"), place("b")
    old.busy = 1
    retired.add([old, other], ())
    assert retired.due(()) == [other]
    old.busy = 0
    assert retired.due(()) == [old]
