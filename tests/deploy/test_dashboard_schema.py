"""Dashboards are of Grafana's schema, and the check itself finds what is not."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed (extra `deploy`)")

from deploy.dashboards.fleet import FLEET
from deploy.dashboards.generate import DASHBOARDS
from tests.deploy.grafana_schema import violations


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.uid)
def test_a_dashboard_is_of_the_schema(dashboard) -> None:
    assert violations(dashboard.document()) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("nope", 1),
        ("panels.1.gridPos.h", "high"),
        ("panels.1.options.legnd", {}),
        ("panels.1.targets.0.expresion", "up"),
        ("panels.1.fieldConfig.defaults.custom.drawStyle", "curly"),
        ("panels.1.fieldConfig.defaults.thresholds.mode", 7),
        ("templating.list.0.type", "no such type"),
        ("time.since", "now-1h"),
    ],
)
def test_what_is_not_of_the_schema_is_found(path: str, value: object) -> None:
    document = copy.deepcopy(FLEET.document())
    *parents, last = path.split(".")
    here = document
    for part in parents:
        here = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
    here[last] = value
    assert violations(document) != []
