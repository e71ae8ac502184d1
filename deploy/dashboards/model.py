"""Panels and dashboards as values, and the JSON that Grafana reads (its schema: the CUE sources behind
grafana-foundation-sdk, against which a test checks what comes out).

One source for everything that shows a dashboard: Grafana, the test that runs each expression, and the pictures in docs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

PROMETHEUS = {"type": "prometheus", "uid": "switchyard-prometheus"}
POSTGRES = {"type": "grafana-postgresql-datasource", "uid": "switchyard-postgres"}
#: The schema's version that these dashboards are written in; Grafana 10.4 and newer read it.
SCHEMA_VERSION = 39
COLUMNS = 24

Kind = Literal["timeseries", "stat", "bargauge", "table"]


@dataclass(frozen=True)
class Query:
    """An expression of Prometheus, or with `sql` of PostgreSQL (`time`, `metric` and `value` for a time series)."""

    text: str
    legend: str = ""
    sql: bool = False


@dataclass(frozen=True)
class Panel:
    """`unit` is one of Grafana's. `top`: the axis' end. `warn`, `bad`: where a value turns yellow and red."""

    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    top: float | None = None
    warn: float | None = None
    bad: float | None = None
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    """A heading and its panels, from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice above the dashboard: the values of a label."""

    name: str
    metric: str


@dataclass(frozen=True)
class Dashboard:
    """`uid` is also the file's name."""

    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = field(default=())

    def panels(self) -> list[Panel]:
        """All panels."""
        return [panel for row in self.rows for panel in row.panels]

    def document(self) -> dict[str, object]:
        """The dashboard as Grafana reads it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.about,
            "tags": ["switchyard"],
            "timezone": "browser",
            "editable": True,
            "graphTooltip": 1,
            "schemaVersion": SCHEMA_VERSION,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "links": [
                {
                    "title": "Switchyard", "type": "dashboards", "icon": "external link", "tooltip": "", "tags": ["switchyard"],
                    "asDropdown": True, "targetBlank": False, "includeVars": False, "keepTime": True,
                }
            ],
            "annotations": {"list": []},
            "templating": {"list": [_variable(variable) for variable in self.variables]},
            "panels": _panels(self.rows),
        }  # fmt: skip


def _variable(variable: Variable) -> dict[str, object]:
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.name,
        "datasource": PROMETHEUS,
        "query": f"label_values({variable.metric}, {variable.name})",
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _panels(rows: tuple[Row, ...]) -> list[dict[str, object]]:
    out: list[dict[str, object]] = []
    y = 0
    for row in rows:
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        out.append({"type": "row", "id": len(out) + 1, "title": row.title, "collapsed": False, "gridPos": place, "panels": []})
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            out.append(_panel(panel, len(out) + 1, {"h": panel.height, "w": panel.width, "x": x, "y": y}))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return out


def _panel(panel: Panel, id: int, place: dict[str, int]) -> dict[str, object]:
    sql = panel.queries[0].sql
    defaults: dict[str, object] = {"unit": panel.unit, "min": 0}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    if panel.top is not None:
        defaults["max"] = panel.top
    if panel.warn is not None or panel.bad is not None:
        steps: list[dict[str, object]] = [{"value": None, "color": "green"}]
        steps += [{"value": at, "color": c} for at, c in ((panel.warn, "yellow"), (panel.bad, "red")) if at is not None]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "type": panel.kind,
        "id": id,
        "title": panel.title,
        "description": panel.about,
        "datasource": POSTGRES if sql else PROMETHEUS,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [_target(query, chr(ord("A") + n), panel.kind) for n, query in enumerate(panel.queries)],
    }


_REDUCED = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[Kind, dict[str, object]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": _REDUCED, "colorMode": "value", "graphMode": "area", "justifyMode": "auto", "textMode": "auto",
        "orientation": "auto",
    },
    "bargauge": {
        "reduceOptions": _REDUCED, "displayMode": "basic", "orientation": "horizontal", "showUnfilled": True,
        "valueMode": "color", "minVizWidth": 8, "minVizHeight": 16,
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
}  # fmt: skip


def _target(query: Query, ref: str, kind: Kind) -> dict[str, object]:
    if query.sql:
        form = "time_series" if kind == "timeseries" else "table"
        return {"refId": ref, "datasource": POSTGRES, "format": form, "rawQuery": True, "rawSql": query.text}
    now = kind != "timeseries"
    return {
        "refId": ref,
        "datasource": PROMETHEUS,
        "expr": query.text,
        "legendFormat": query.legend or "__auto",
        "instant": now,
        "range": not now,
        "editorMode": "code",
    }
