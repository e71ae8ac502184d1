"""A real Prometheus on the gateway under load: every expression of dashboards, alerts and recording rules tells something,
and every SQL of the dashboards finds rows.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from deploy.dashboards.alerts import ALERTS, RECORDINGS
from deploy.dashboards.generate import DASHBOARDS
from tests.deploy.loaded import Loaded, load, loaded_gateway
from tests.deploy.prometheus_server import PrometheusServer, tells
from tests.servers import postgres_missing

pytestmark = [pytest.mark.redis, pytest.mark.llamacpp, pytest.mark.timeout(300)]
LOAD_S, MOST_S = 30.0, 150.0
#: Requests after which rare things have happened too; a slow machine needs longer for them.
ENOUGH = 300
#: Expressions that may tell nothing under the load, with the reason. At most ten; it is empty, and may stay so.
SILENT: dict[str, str] = {}


@dataclass
class Watched:
    """A gateway after its load, and the Prometheus that watched it."""

    house: Loaded
    prometheus: PrometheusServer
    since_s: float


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus on PATH (apt: prometheus)")
    if (reason := postgres_missing()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("watched")
    with loaded_gateway(folder) as house, PrometheusServer(folder / "prometheus", house.gateway.metrics_port) as prometheus:
        since_s = time.time()
        made = asyncio.run(load(house, LOAD_S))
        while made < ENOUGH and time.time() < since_s + MOST_S:
            made += asyncio.run(load(house, LOAD_S / 2, seed=made))
        print(f"{made} requests in {time.time() - since_s:.0f} s")
        assert made > 50
        yield Watched(house, prometheus, since_s)


def test_every_expression_tells_something(watched: Watched) -> None:
    asked = {
        f"{dashboard.title} / {panel.title} / {query.legend}": query.text
        for dashboard in DASHBOARDS
        for panel in dashboard.panels()
        for query in panel.queries
        if not query.sql
    }
    asked |= {f"alert {alert.name}": alert.figure for alert in ALERTS}
    asked |= {f"recording {one.record}": one.expr for one in RECORDINGS}
    silent = {name: text for name, text in asked.items() if not tells(watched.prometheus.over_time(text, watched.since_s))}
    assert len(SILENT) <= 10
    assert silent.keys() - SILENT.keys() == set(), silent
    assert SILENT.keys() - silent.keys() == set(), "they tell something now"


def test_every_rule_is_evaluated_without_an_error(watched: Watched) -> None:
    groups = watched.prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(ALERTS) + len(RECORDINGS)
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


def test_every_sql_finds_rows(watched: Watched) -> None:
    empty = []
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels():
            for query in panel.queries:
                if query.sql:
                    columns, rows = watched.house.sql(query.text, watched.since_s)
                    if panel.kind == "timeseries":
                        assert columns == ["time", "metric", "value"]
                    if not rows:
                        empty.append(panel.title)
    assert empty == []


def test_the_use_of_a_team_is_what_the_ledger_has(watched: Watched) -> None:
    (panel,) = (p for d in DASHBOARDS for p in d.panels() if p.title == "Use against limit")
    columns, rows = watched.house.sql(panel.queries[0].text, watched.since_s)
    told = [dict(zip(columns, row, strict=True)) for row in rows]
    _, ((requests,),) = watched.house.sql("SELECT count(*) FROM ledger WHERE team_id = 'sales'", 0)
    (sales,) = (row for row in told if row["team"] == "sales" and row["unit"] == "requests")
    assert (sales["used"], sales["limit"], sales["per"]) == (requests, 60, "3600 s")
    (spend,) = (row for row in told if row["team"] == "sales" and row["unit"] == "USD")
    assert (float(str(spend["limit"])), spend["per"]) == (0.05, "day")
    _, ((requests,),) = watched.house.sql("SELECT count(*) FROM ledger WHERE team_id = 'declared'", 0)
    (declared,) = (row for row in told if row["team"] == "declared")
    assert (declared["unit"], declared["used"], declared["limit"], declared["per"]) == ("requests", requests, 5000, "day")
    assert requests


def test_no_series_names_a_key_a_team_or_a_clients_words(watched: Watched) -> None:
    names = watched.prometheus.ask("label/__name__/values")
    ours = [name for name in names if name.startswith("switchyard_")]
    assert len(ours) > 40
    labels = set(watched.prometheus.ask("labels"))
    known = {"__name__", "job", "instance", "le", "alertname", "alertstate", "severity"}
    assert labels <= known | {"model", "deployment", "engine", "outcome", "scope", "unit", "version"}
    for label in labels - {"__name__"}:
        for value in watched.prometheus.ask(f"label/{label}/values"):
            assert not value.startswith(("unknown-", "sk-")), (label, value)
            assert value not in ("research", "sales", "declared", "ann"), (label, value)
