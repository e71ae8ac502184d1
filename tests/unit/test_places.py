"""What a deployment can do, all corrections included, and which backend reaches it."""

from __future__ import annotations

from typing import Any

from backends.remote.backend import RemoteBackend
from backends.remote.fanout import FanOut
from gateway.domain.route import Deployment
from gateway.places import Backends


def built(**more: Any) -> tuple[object, frozenset[str]]:
    deployment = Deployment("a", "m", dialect="openai_compatible", base_url="http://example.test/v1", **more)
    return Backends(None, "worker-0").build(deployment)  # type: ignore[arg-type]  # no engine, so nothing of the boot


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
