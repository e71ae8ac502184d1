"""Dashboards and rules: the made files are up to date, and every metric and label that they name exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deploy.dashboards.alerts import ALERTS, RECORDINGS
from deploy.dashboards.generate import DASHBOARDS, files, main
from gateway.telemetry.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
EXPRESSIONS = [
    *(query.text for one in DASHBOARDS for panel in one.panels() for query in panel.queries if not query.sql),
    *(alert.expr for alert in ALERTS),
    *(one.expr for one in RECORDINGS),
]
RECORDED = {one.record for one in RECORDINGS}


def test_the_made_files_are_up_to_date() -> None:
    stale = [path.name for path, text in files().items() if not path.exists() or path.read_text() != text]
    assert stale == [], "run: python -m deploy.dashboards.generate"
    assert main(["--check"]) == 0


def test_alerts_link_to_where_the_runbooks_are() -> None:
    runbooks = (ROOT / "docs" / "runbooks.md").read_text()
    headings = set(re.findall(r"^## (\w+)$", runbooks, re.MULTILINE))
    assert headings == {alert.name for alert in ALERTS}
    text = files("https://wiki.example.com/runbooks")[ROOT / "deploy" / "prometheus" / "rules.yml"]
    assert "https://wiki.example.com/runbooks#switchyardabsent" in text


@pytest.mark.parametrize("expression", sorted(set(EXPRESSIONS)))
def test_metrics_and_labels_exist(expression: str) -> None:
    bare = re.sub(r'"[^"]*"', '""', expression)
    for record in RECORDED:
        bare = bare.replace(record, "")
    for name, selector in re.findall(r"(switchyard_\w+)(?:\{([^}]*)\})?", bare):
        family = FAMILIES.get(name) or FAMILIES.get(re.sub(r"_(bucket|sum|count)$", "", name))
        assert family is not None, name
        assert family.kind != "histogram" or name.endswith("_bucket"), name
        assert ("rate(" in expression or "increase(" in expression) or family.kind == "gauge", name
        for label in re.findall(r"(\w+)\s*(?:=~|!=|=)", selector):
            assert label in family.labels, (name, label)


def test_every_metric_is_shown_somewhere() -> None:
    shown = " ".join(EXPRESSIONS)
    assert [name for name in FAMILIES if name not in shown] == ["switchyard_config_loaded_timestamp_seconds"]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.uid)
def test_a_dashboards_panels_fill_their_places(dashboard) -> None:
    panels = dashboard.document()["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not taken & cells, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"].endswith(".")
    json.dumps(panels)


def test_figures_of_keys_and_teams_come_from_sql_alone() -> None:
    for expression in EXPRESSIONS:
        assert not re.search(r"\b(key|team|user|key_id|team_id)\b", expression)
