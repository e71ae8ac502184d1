"""Pictures of the dashboards where no Grafana can run: the same panels, queries and units, drawn by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from deploy.dashboards.model import COLUMNS, Dashboard, Panel, Query

#: Series of Prometheus' range query: `metric` (labels) and `values` (instant, text).
Series = list[dict[str, Any]]
Ranges = Callable[[str], Series]
Rows = Callable[[str], tuple[list[str], list[tuple[object, ...]]]]
#: Inches of a dashboard's width, and of one of Grafana's rows.
WIDTH, ROW = 15.0, 0.29
MOST_ROWS = 8


def render(dashboard: Dashboard, ranges: Ranges, rows: Rows, file: Path) -> None:
    """Write a dashboard's picture.

    Args:
        ranges: an expression's series over the time shown.
        rows: columns and rows of an SQL.
    """
    panels = dashboard.document()["panels"]
    assert isinstance(panels, list)
    height = max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in panels)
    figure = pyplot.figure(figsize=(WIDTH, height * ROW + 0.5), facecolor="white")
    figure.suptitle(dashboard.title, x=0.01, y=1 - 0.15 / (height * ROW), ha="left", fontsize=13, fontweight="bold")
    by_title = {(panel.title, panel.about): panel for panel in dashboard.panels()}
    for one in panels:
        place = one["gridPos"]
        top = 1 - (0.5 + place["y"] * ROW) / (height * ROW + 0.5)
        if one["type"] == "row":
            figure.text(0.01, top - 0.25 / (height * ROW), one["title"], fontsize=10, fontweight="bold", color="#444")
            continue
        tall = place["h"] * ROW / (height * ROW + 0.5)
        left, wide = place["x"] / COLUMNS, place["w"] / COLUMNS
        axis = figure.add_axes((left + 0.035, top - tall * 0.8, wide - 0.05, tall * 0.62))
        _panel(axis, by_title[one["title"], one["description"]], ranges, rows)
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


def _panel(axis: Axes, panel: Panel, ranges: Ranges, rows: Rows) -> None:
    axis.set_title(panel.title, loc="left", fontsize=8)
    axis.tick_params(labelsize=6)
    if panel.kind == "table":
        _table(axis, *rows(panel.queries[0].text))
    elif panel.kind == "timeseries":
        _lines(axis, panel, [found for query in panel.queries for found in _points(query, ranges, rows)])
    else:
        found = [(label, values[-1][1]) for query in panel.queries for label, values in _points(query, ranges, rows) if values]
        _bars(axis, panel, found)


Points = list[tuple[str, list[tuple[float, float]]]]


def _points(query: Query, ranges: Ranges, rows: Rows) -> Points:
    """Each series' legend and points; what is not a number is left out."""
    if query.sql:
        out: dict[str, list[tuple[float, float]]] = {}
        for at, metric, value in rows(query.text)[1]:
            out.setdefault(str(metric), []).append((float(str(at)), float(str(value))))
        return list(out.items())
    found = []
    for one in ranges(query.text):
        label = query.legend
        for name, value in one["metric"].items():
            label = label.replace("{{" + name + "}}", value)
        points = [(at, float(text)) for at, text in one["values"] if math.isfinite(float(text))]
        if points:
            found.append((label, points))
    return found


def _lines(axis: Axes, panel: Panel, found: Points) -> None:
    began = min((points[0][0] for _, points in found), default=0.0)
    style = "steps-post" if panel.queries[0].sql else "default"
    if panel.stacked and found:
        times = sorted({at for _, points in found for at, _ in points})
        layers = [[dict(points).get(at, 0.0) for at in times] for _, points in found]
        axis.stackplot([(at - began) / 60 for at in times], *layers, labels=[label for label, _ in found], alpha=0.6)
        most = max(sum(values) for values in zip(*layers, strict=True))
    else:
        for label, points in found:
            axis.plot(
                [(at - began) / 60 for at, _ in points], [v for _, v in points], linewidth=1, label=label, drawstyle=style
            )
        most = max((value for _, points in found for _, value in points), default=0.0)
    axis.set_ylim(0, (panel.top or most or 1) * 1.15)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, panel.unit)))
    axis.grid(alpha=0.25, linewidth=0.5)
    if found:
        axis.legend(fontsize=5.5, loc="upper left", ncols=2, frameon=False)


def _bars(axis: Axes, panel: Panel, found: Sequence[tuple[str, float]]) -> None:
    axis.barh(range(len(found)), [value for _, value in found], height=0.7, alpha=0.5)
    axis.invert_yaxis()
    axis.set_yticks([])
    most = panel.top or max([value for _, value in found] + [1])
    axis.set_xlim(0, most * 1.1)
    for position, (label, value) in enumerate(found):
        axis.text(most * 0.01, position, f"{label}: {shown(value, panel.unit)}", va="center", fontsize=7)


def _table(axis: Axes, columns: list[str], rows: list[tuple[object, ...]]) -> None:
    axis.axis("off")
    text = [[_cell(value) for value in row] for row in rows[:MOST_ROWS]]
    if text:
        table = axis.table(cellText=text, colLabels=columns, loc="upper center", cellLoc="left")
        table.auto_set_font_size(False)
        table.set_fontsize(6.5)


def _cell(value: object) -> str:
    if value is None:
        return ""
    try:
        number = float(str(value))
    except ValueError:
        return str(value)
    return f"{number:.4g}" if number != int(number) else f"{int(number)}"


def shown(value: float, unit: str) -> str:
    """A value with its unit, short."""
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "bytes":
        return f"{value / (1 << 20):.4g} MiB"
    return f"{value:.3g}" + {"reqps": "/s", "currencyUSD": " USD"}.get(unit, "")
