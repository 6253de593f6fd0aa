"""A dashboard as values, and as the JSON that Grafana imports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

SCHEMA_VERSION: Final = 39  # Grafana 11; older ones than 10.4 do not know it
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS: Final = 24
_HEIGHTS: Final = {"stat": 4, "timeseries": 8, "table": 8, "bargauge": 8}


@dataclass(frozen=True)
class Panel:
    """One panel: `queries` are PromQL with the legend of its series; `width` is of 24 columns."""

    title: str
    about: str
    unit: str
    queries: Sequence[tuple[str, str]]
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    most: float | None = None
    red_below: float | None = None
    red_from: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """One file. `by` is the metric whose instances can be chosen; panels stand in rows, by the row's title."""

    uid: str
    title: str
    about: str
    rows: Sequence[tuple[str, Sequence[Panel]]]
    by: str

    def to_json(self) -> dict[str, Any]:
        """As Grafana imports it."""
        panels: list[dict[str, Any]] = []
        top = 0
        for title, row in self.rows:
            place = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
            panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place, "panels": []})
            top, left, height = top + 1, 0, 0
            for panel in row:
                if left + panel.width > _COLUMNS:
                    top, left, height = top + height, 0, 0
                place = {"x": left, "y": top, "w": panel.width, "h": _HEIGHTS[panel.kind]}
                panels.append(_panel(panel, len(panels) + 1, place))
                left, height = left + panel.width, max(height, place["h"])
            top += height
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.about,
            "tags": ["triskele"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "timezone": "browser",
            "templating": {"list": _variables(self.by)},
            "links": [_links()],
            "panels": panels,
        }


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    defaults["thresholds"] = _thresholds(panel)
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none"}
        defaults["custom"] = {"fillOpacity": 20 if panel.stacked else 5, "showPoints": "auto", "stacking": stacking}
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    elif panel.kind == "table":
        options = {"showHeader": True}
    else:
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value"}
        defaults["color"] = {"mode": "thresholds"}
    instant = panel.kind != "timeseries"
    made: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [_target(i, query, legend, panel.kind, instant) for i, (query, legend) in enumerate(panel.queries)],
    }
    if panel.kind == "table":
        hidden = {"excludeByName": {"Time": True, "Value": True, "__name__": True}}
        made["transformations"] = [{"id": "organize", "options": hidden}]
    return made


def _target(number: int, query: str, legend: str, kind: str, instant: bool) -> dict[str, Any]:
    return {
        "refId": chr(ord("A") + number),
        "datasource": _SOURCE,
        "expr": query,
        "legendFormat": legend,
        "instant": instant,
        "range": not instant,
        "format": "table" if kind == "table" else "time_series",
    }


def _thresholds(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.red_below}]
    if panel.red_from is not None:
        steps.append({"color": "red", "value": panel.red_from})
    return {"mode": "absolute", "steps": steps}


def _variables(by: str) -> list[dict[str, Any]]:
    query = f"label_values({by}, instance)"
    instances = {
        "name": "instance",
        "label": "Member",
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "instance"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }
    return [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}, instances]


def _links() -> dict[str, Any]:
    return {"type": "dashboards", "tags": ["triskele"], "asDropdown": True, "title": "Triskele", "includeVars": False}
