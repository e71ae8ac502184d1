"""The trial of docs/scaling.md, shorter: what holds whatever the machine does. Its figures are in the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.fleet import missing
from tests.deploy.replicas import trial
from tests.servers import postgres_missing

#: A request that Redis took as the primary died may be charged for nobody, and one that it had not passed on may be
#: forgotten; each client has one request on the way.
CLIENTS = 8


@pytest.mark.timeout(300)
async def test_a_fleet_outlives_its_redis_and_its_gateways(tmp_path: Path) -> None:
    if lacking := missing() or postgres_missing():
        pytest.skip(lacking)
    found = await trial(tmp_path, clients=CLIENTS, phase_s=12.0, down_after_ms=3000)
    phases = found["phases"]
    print(found)
    # A limit that lets through on an outage never refused anybody, one that denies did so, and both recovered.
    assert not any(outcome.startswith("refused") for one in phases.values() for outcome in one["allow"])
    assert phases["redis killed"]["deny"].get("refused-503", 0) > 0
    assert phases["redis killed"]["deny"].get("ok", 0) > 0
    for quiet in ("quiet", "redis back", "gateway restarted", "after"):
        for outcomes in phases[quiet].values():
            assert set(outcomes) == {"ok"}, quiet
    # A killed gateway takes what was open on it with it, and no more than what reached it before HAProxy saw it die.
    assert all(one.get("ok", 0) > 0 for one in phases["gateway killed"].values())
    for key, answered in found["answered"].items():
        assert abs(found["charged at the end"][key] - answered) <= 2 * CLIENTS, key
    assert found["answered without a row"] == 0
