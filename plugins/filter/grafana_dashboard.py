"""Filter `citadelbuy.platform.grafana_dashboard`: a dashboard as it is written here, as Grafana reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = """
name: grafana_dashboard
short_description: Turn a dashboard's short form into Grafana's JSON model
version_added: 1.0.0
author: CitadelBuy Platform (@citadelbuy)
description:
  - The short form holds what differs between panels. Ids, places on the grid and how a type of panel looks are the
    same everywhere.
  - Refuses keys, types of panel and variables in queries that it does not know.
options:
  _input:
    description:
      - A dashboard, with the keys C(title), C(uid), C(description), C(variables), C(rows), and C(from) and C(refresh)
        where the last hour and 30 seconds do not fit. With C(datasource) C(logs) its queries are LogsQL, not PromQL.
      - A variable has C(name) and C(label), and either C(query) (label_values(...), all of them at first), C(values)
        (the first at first) or C(text), which is typed.
      - A row has C(title) and C(panels). A panel has C(title), C(type), C(unit), C(description), and either C(query)
        with C(legend), or C(queries), a list of both.
      - C(thresholds) of a panel are colours by the value from which on they hold, C(base) below them all; C(names) are
        texts by value; C(columns) of a table are titles by label; C(empty) says why a panel may rightly have no data.
        C(min), C(max), C(decimals), C(stack), C(width), C(height) and C(links) are Grafana's.
    type: dict
    required: true
"""
EXAMPLES = """
- name: Write a dashboard
  ansible.builtin.copy:
    dest: /tmp/queue.json
    content: "{{ dashboard | citadelbuy.platform.grafana_dashboard | to_json }}"
    mode: "0644"
  vars:
    dashboard:
      title: Queue
      uid: queue
      description: What waits
      rows:
        - title: Jobs
          panels:
            - title: Waiting
              type: timeseries
              unit: short
              query: sum by (queue) (jobs_waiting)
              legend: "{{ '{{queue}}' }}"
              thresholds: {100: red}
"""
RETURN = """
_value:
  description: The dashboard in the model of Grafana 11.
  type: dict
"""

SCHEMA_VERSION = 41  # Grafana 11.6
COLUMNS = 24
TAG = "citadelbuy"
SIZES = {"timeseries": (8, 8), "stat": (4, 4), "gauge": (4, 6), "bargauge": (8, 8), "table": (12, 8), "logs": (24, 18)}
"""Width and height of a panel, in units of the grid, by its type."""

DASHBOARD = {"title", "uid", "description", "datasource", "variables", "rows", "from", "refresh"}
VARIABLE = {"name", "label", "query", "values", "text"}
ROW = {"title", "panels"}
QUERY = {"query", "legend"}
LINK = {"title", "url"}
PANEL = {
    "title", "type", "unit", "description", "query", "legend", "queries", "thresholds", "min", "max", "decimals",
    "width", "height", "stack", "names", "columns", "links", "empty",
}  # fmt: skip
REQUIRED = {"dashboard": ("title", "uid", "description", "rows"), "variable": ("name", "label")}
REQUIRED |= {"row": ("title", "panels"), "panel": ("title", "type", "unit", "description"), "link": ("title", "url")}
REQUIRED |= {"query": ("query",)}
BUILT_IN = re.compile(r"\$(__\w+|\{__\w+\})")
REFERENCE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")
DATASOURCES = {
    "prometheus": {"type": "prometheus", "name": "Prometheus", "uid": "prometheus"},
    "logs": {"type": "victoriametrics-logs-datasource", "name": "VictoriaLogs", "uid": "victoria-logs"},
}
LOGS_PANELS = {"timeseries", "logs"}
"""Types of panel that show answers of VictoriaLogs."""
LINES = 500
"""Lines that a panel of logs shows, the newest ones."""

Json = dict[str, Any]


def grafana_dashboard(dashboard: Mapping[str, Any]) -> Json:
    """The dashboard as Grafana's JSON model.

    :param dashboard: the short form, as DOCUMENTATION has it.
    :raises AnsibleFilterError: names the dashboard, the row and the panel, and what to do.
    """
    where = f"dashboard {dashboard.get('uid', '?')}" if isinstance(dashboard, Mapping) else "dashboard"
    _check(dashboard, DASHBOARD, "dashboard", where)
    if not re.fullmatch(r"[a-z0-9-]{1,40}", str(dashboard["uid"])):
        _refuse(where, "uid must be 1 to 40 small letters, digits and dashes: links hold it.")
    source = dashboard.get("datasource", "prometheus")
    if source not in DATASOURCES:
        _refuse(where, f"unknown datasource {source}: take one of {', '.join(DATASOURCES)}.")
    variables = [_variable(item, where, source) for item in dashboard.get("variables") or []]
    for place, panel in panels(dashboard):
        _check_panel(panel, place, {item["name"] for item in variables}, source)
    return {
        "uid": dashboard["uid"],
        "title": dashboard["title"],
        "description": dashboard["description"],
        "tags": [TAG],
        "links": [_link({"title": "Dashboards", "url": ""}, "dashboards")],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "time": {"from": dashboard.get("from", "now-1h"), "to": "now"},
        "refresh": dashboard.get("refresh", "30s"),
        "annotations": {"list": []},
        "templating": {"list": [_datasource_variable(source), *variables]},
        "panels": _lay_out(dashboard["rows"], source),
    }


def panels(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every panel of a dashboard's short form, with its place for messages.

    :raises AnsibleFilterError: where a row is not one.
    """
    for row in dashboard["rows"]:
        where = f"dashboard {dashboard['uid']}"
        _check(row, ROW, "row", f"{where}, row {row.get('title', '?') if isinstance(row, Mapping) else row}")
        for panel in row["panels"]:
            name = panel.get("title", "?") if isinstance(panel, Mapping) else panel
            yield f"{where}, row {row['title']}, panel {name}", panel


def queries(panel: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The queries of a panel, each with `query` and perhaps `legend`."""
    return panel.get("queries") or [{key: panel[key] for key in ("query", "legend") if key in panel}]


def _refuse(where: str, message: str) -> None:
    raise AnsibleFilterError(f"{where}: {message}")


def _check(value: Any, known: set[str], kind: str, where: str) -> None:
    """Refuse what is no mapping, holds unknown keys, or lacks a needed one."""
    if not isinstance(value, Mapping):
        _refuse(where, f"a {kind} must be a mapping, not {type(value).__name__}.")
    unknown = sorted(str(key) for key in value if key not in known)
    if unknown:
        _refuse(where, f"unknown key {', '.join(unknown)}: a {kind} has {', '.join(sorted(known))}.")
    missing = [key for key in REQUIRED[kind] if value.get(key) in (None, "", [])]
    if missing:
        _refuse(where, f"a {kind} needs {', '.join(missing)}.")


def _check_panel(panel: Any, where: str, variables: set[str], source: str) -> None:
    _check(panel, PANEL, "panel", where)
    known = [kind for kind in SIZES if (kind in LOGS_PANELS if source == "logs" else kind != "logs")]
    if panel["type"] not in known:
        _refuse(where, f"unknown type {panel['type']}: take one of {', '.join(known)}.")
    if ("query" in panel) == ("queries" in panel):
        _refuse(where, "a panel needs either query or queries.")
    if (panel["type"] == "table") != ("columns" in panel):
        _refuse(
            where, "columns (titles by label, in their order; Value is the number) belong to a table, which needs them."
        )
    if panel["type"] == "table" and len(queries(panel)) > 1:
        _refuse(where, "a table has one query: Grafana would show a table for each.")
    for item in queries(panel):
        _check(item, QUERY, "query", where)
        used = {first or second for first, second in REFERENCE.findall(BUILT_IN.sub("", item["query"]))}
        if used - variables:
            _refuse(
                where, f"unknown variable {', '.join(sorted(used - variables))} in its query: name it in variables."
            )
    for item in panel.get("links") or []:
        _check(item, LINK, "link", where)
    for value in panel.get("thresholds") or {}:
        if value != "base" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            _refuse(where, f"threshold {value} must be a number, or base for the colour below them all.")


def _datasource(source: str) -> Json:
    return {"type": DATASOURCES[source]["type"], "uid": "${datasource}"}


def _datasource_variable(source: str) -> Json:
    known = DATASOURCES[source]
    current = {"selected": True, "text": known["name"], "value": known["uid"]}
    return {"type": "datasource", "name": "datasource", "label": "Data", "query": known["type"], "current": current}


def _variable(item: Any, where: str, source: str) -> Json:
    _check(item, VARIABLE, "variable", f"{where}, variables")
    if sum(key in item for key in ("query", "values", "text")) != 1:
        _refuse(f"{where}, variable {item['name']}", "a variable needs one of query, values and text.")
    common = {"name": item["name"], "label": item["label"]}
    if "values" in item:
        values = [str(value) for value in item["values"]]
        options = [{"selected": value == values[0], "text": value, "value": value} for value in values]
        return common | {"type": "custom", "query": ",".join(values), "options": options, "current": options[0]}
    if "text" in item:
        current = {"selected": True, "text": item["text"], "value": item["text"]}
        return common | {"type": "textbox", "query": item["text"], "options": [current], "current": current}
    return common | {
        "type": "query",
        "datasource": _datasource(source),
        "query": {"query": item["query"], "refId": "StandardVariableQuery"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _lay_out(rows: list[Mapping[str, Any]], source: str) -> list[Json]:
    """Panels from left to right, in lines as high as their highest one, each row below its heading."""
    found: list[Json] = []
    top = 0
    for row in rows:
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        heading = {"type": "row", "id": len(found) + 1, "title": row["title"], "collapsed": False, "panels": []}
        found.append(heading | {"gridPos": place})
        top, left, highest = top + 1, 0, 0
        for panel in row["panels"]:
            width, height = (
                int(panel.get(key, size)) for key, size in zip(("width", "height"), SIZES[panel["type"]], strict=True)
            )
            if left + width > COLUMNS:
                top, left, highest = top + highest, 0, 0
            found.append(_panel(panel, len(found) + 1, {"x": left, "y": top, "w": width, "h": height}, source))
            left, highest = left + width, max(highest, height)
        top += highest
    return found


def _target(item: Mapping[str, Any], letter: str, kind: str, source: str) -> Json:
    target = {"refId": letter, "expr": item["query"].strip(), "datasource": _datasource(source), "editorMode": "code"}
    if source == "logs":
        if kind == "logs":
            return target | {"queryType": "instant", "maxLines": LINES}
        return target | {"queryType": "statsRange", "legendFormat": item.get("legend", "")}
    target |= {"legendFormat": item.get("legend", "__auto"), "instant": kind != "timeseries"}
    return target | {"range": kind == "timeseries", "format": "table" if kind == "table" else "time_series"}


def _panel(panel: Mapping[str, Any], number: int, place: dict[str, int], source: str) -> Json:
    kind = panel["type"]
    description = panel["description"]
    if panel.get("empty"):
        description = f"{description}\n\nMay be empty: {panel['empty']}"
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    targets = [_target(item, letter, kind, source) for letter, item in zip(letters, queries(panel), strict=False)]
    body = {
        "type": kind,
        "id": number,
        "title": panel["title"],
        "description": description,
        "gridPos": place,
        "datasource": _datasource(source),
        "targets": targets,
        "fieldConfig": {"defaults": _field_defaults(panel, source), "overrides": []},
        "options": OPTIONS[kind],
        "links": [_link(item, "link") for item in panel.get("links") or []],
    }
    if source == "logs" and kind == "timeseries":
        # Bars that are wide enough to be seen, and how many lines they are in all.
        body |= {"maxDataPoints": 100, "options": OPTIONS[kind] | {"legend": LEGEND | {"calcs": ["sum"]}}}
    if kind == "table":
        columns = panel["columns"]
        hidden = {"Time": True} | ({} if "Value" in columns else {"Value": True})
        options = {"excludeByName": hidden, "renameByName": dict(columns)}
        options["indexByName"] = {name: index for index, name in enumerate(columns)}
        body["transformations"] = [{"id": "organize", "options": options}]
    return body


def _field_defaults(panel: Mapping[str, Any], source: str) -> Json:
    kind = panel["type"]
    thresholds = dict(panel.get("thresholds") or {})
    steps: list[Json] = [{"value": None, "color": thresholds.pop("base", "green")}]
    steps += [{"value": value, "color": colour} for value, colour in sorted(thresholds.items())]
    found: Json = {"unit": panel["unit"], "thresholds": {"mode": "absolute", "steps": steps}}
    found |= {key: panel[key] for key in ("min", "max", "decimals") if key in panel}
    found["color"] = {"mode": "palette-classic" if kind == "timeseries" else "thresholds"}
    if panel.get("names"):
        texts = {
            str(value): {"text": text, "index": index} for index, (value, text) in enumerate(panel["names"].items())
        }
        found["mappings"] = [{"type": "value", "options": texts}]
    if kind == "timeseries":
        found["custom"] = {
            # Counts of lines are of a step each; where there was none, there is no value.
            "drawStyle": "bars" if source == "logs" else "line",
            "lineWidth": 1,
            "fillOpacity": 70 if source == "logs" else 30 if panel.get("stack") else 5,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": "normal" if panel.get("stack") else "none"},
            "thresholdsStyle": {"mode": "dashed" if len(steps) > 1 else "off"},
        }
    elif kind == "table":
        found["custom"] = {"align": "auto", "inspect": False}
    return found


def _link(item: Mapping[str, Any], kind: str) -> Json:
    """A link, or the menu of all dashboards with our tag."""
    menu = kind == "dashboards"
    return {
        "type": kind,
        "title": item["title"],
        "url": item["url"],
        "icon": "external link",
        "tooltip": "",
        "tags": [TAG] if menu else [],
        "asDropdown": menu,
        "targetBlank": not menu,
        "includeVars": False,
        "keepTime": menu,
    }


LEGEND: Json = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
_LAST: Json = {"values": False, "calcs": ["lastNotNull"], "fields": ""}
OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": LEGEND,
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": _LAST,
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": True,
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
    },
    "gauge": {
        "reduceOptions": _LAST,
        "orientation": "auto",
        "showThresholdLabels": False,
        "showThresholdMarkers": True,
        "sizing": "auto",
        "minVizWidth": 75,
        "minVizHeight": 75,
    },
    "bargauge": {
        "reduceOptions": _LAST,
        "orientation": "horizontal",
        "displayMode": "basic",
        "valueMode": "color",
        "namePlacement": "left",
        "showUnfilled": True,
        "sizing": "auto",
        "minVizWidth": 8,
        "minVizHeight": 16,
        "maxVizHeight": 300,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
    },
    "table": {
        "showHeader": True,
        "cellHeight": "sm",
        "frameIndex": 0,
        "footer": {"show": False, "reducer": [], "countRows": False},
    },
    "logs": {
        "showTime": True,
        "showLabels": False,
        "showCommonLabels": False,
        "wrapLogMessage": True,
        "prettifyLogMessage": False,
        "enableLogDetails": True,
        "dedupStrategy": "none",
        "sortOrder": "Descending",
    },
}
"""How each type of panel looks."""


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters of this file by name."""
        return {"grafana_dashboard": grafana_dashboard}
