"""Dashboards: Grafana's schema takes them, the filter refuses slips, the reference document's metrics are shown."""

from __future__ import annotations

import copy
import enum
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard as schema
from grafana_foundation_sdk.models import units

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import dashboards
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_logs import ERRORS

register_default_plugins()

FORMS, MODELS = dashboards.short_forms(), dashboards.models()
PANELS = {name: list(dashboards.grafana_dashboard.panels(form)) for name, form in FORMS.items()}
UNITS = {value for name, value in vars(units).items() if isinstance(value, str) and not name.startswith("_")}

# What the reference document lists under "Key Metrics to Monitor": dashboard, row (all where empty), panel.
KEY_METRICS = {
    "API: request rate": ("api-metrics", "", "Request rate by status"),
    "API: error rate": ("api-metrics", "", "Error rate (5xx)"),
    "API: response time": ("api-metrics", "", "Response time"),
    "API: active connections": ("api-metrics", "", "Active connections"),
    "database: connection count": ("database-metrics", "PostgreSQL", "Connections"),
    "database: query duration": ("database-metrics", "PostgreSQL", "Query duration"),
    "database: deadlocks": ("database-metrics", "PostgreSQL", "Deadlocks"),
    "database: replication lag": ("database-metrics", "PostgreSQL", "Replication lag"),
    "Redis: memory usage": ("database-metrics", "Redis", "Memory"),
    "Redis: cache hit rate": ("database-metrics", "Redis", "Cache hit rate"),
    "Redis: operations per second": ("database-metrics", "Redis", "Operations"),
    "Redis: evicted keys": ("database-metrics", "Redis", "Evicted and expired keys"),
    "Elasticsearch: cluster health": ("database-metrics", "Elasticsearch", "Cluster health"),
    "Elasticsearch: index rate": ("database-metrics", "Elasticsearch", "Index rate"),
    "Elasticsearch: query rate": ("database-metrics", "Elasticsearch", "Query rate"),
    "Elasticsearch: JVM memory": ("database-metrics", "Elasticsearch", "JVM memory"),
    "infrastructure: CPU usage": ("infrastructure-overview", "Nodes", "CPU"),
    "infrastructure: memory usage": ("infrastructure-overview", "Nodes", "Memory"),
    "infrastructure: disk usage": ("infrastructure-overview", "Nodes", "Disk"),
    "infrastructure: network I/O": ("infrastructure-overview", "Nodes", "Network"),
}

each_dashboard = pytest.mark.parametrize("name", MODELS)


def lost(given: Any, back: Any, where: str = "") -> Iterator[str]:
    """What Grafana's schema does not give back of what it was given: it knows no such field."""
    if isinstance(given, dict) and isinstance(back, dict):
        for key, value in given.items():
            if key in back:
                yield from lost(value, back[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}: no such field"
    elif isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        for index, (one, other) in enumerate(zip(given, back, strict=True)):
            yield from lost(one, other, f"{where}[{index}]")
    elif given != back:
        yield f"{where}: {given!r} came back as {back!r}"


def mistyped(value: Any, hint: Any, where: str = "") -> list[str]:
    """Values that are not of the type that the schema gives them; what it left as it was is parsed."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    wrong = [f"{where}: {value!r} is no {getattr(hint, '__name__', hint)}"]
    if origin in (typing.Union, types.UnionType):
        return min((mistyped(value, one, where) for one in arguments), key=len)
    if origin is typing.Literal:
        return [] if value in arguments else wrong
    if origin is list:
        items = enumerate(value) if isinstance(value, list) else None
        return (
            wrong if items is None else [text for i, x in items for text in mistyped(x, arguments[0], f"{where}[{i}]")]
        )
    if origin is dict:
        if not isinstance(value, dict):
            return wrong
        return [text for key, item in value.items() for text in mistyped(item, arguments[1], f"{where}.{key}")]
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        return [] if value in [member.value for member in hint] else wrong
    if hint in (int, float):
        return [] if isinstance(value, (int, hint)) and not isinstance(value, bool) else wrong
    if isinstance(value, dict) and hasattr(hint, "from_json"):
        parsed = hint.from_json(value)
        return [*lost(value, encoded(parsed), where), *mistyped(parsed, hint, where)]
    if hasattr(value, "to_json") and (hint in (Any, object) or isinstance(value, hint)):
        fields = typing.get_type_hints(type(value))
        return [text for key, one in fields.items() for text in mistyped(getattr(value, key), one, f"{where}.{key}")]
    return [] if hint in (Any, object) or isinstance(value, hint) else wrong


def encoded(value: Any) -> Any:
    """An object of the schema as JSON."""
    return json.loads(json.dumps(value, cls=JSONEncoder))


def schema_problems(model: dict[str, Any]) -> list[str]:
    """What Grafana's schema has against a dashboard."""
    parsed = schema.Dashboard.from_json(copy.deepcopy(model))
    return [*lost(model, encoded(parsed)), *mistyped(parsed, schema.Dashboard)]


@each_dashboard
def test_grafanas_schema_knows_every_field(name: str) -> None:
    assert schema_problems(MODELS[name]) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["refreshh"], "30s"),
        (["panels", 1, "gridPoss"], {}),
        (["panels", 1, "gridPos", "x"], "0"),
        (["panels", 1, "targets", 0, "exprr"], "up"),
        (["panels", 1, "targets", 0, "format"], "graph"),
        (["panels", 1, "fieldConfig", "defaults", "unti"], "s"),
        (["panels", 1, "fieldConfig", "defaults", "thresholds", "mode"], "relative"),
        (["panels", 1, "options", "textMode"], 1),
        (["panels", 1, "options", "colour"], "value"),
        (["panels", 1, "links"], [{"tilte": "Runbook"}]),
        (["templating", "list", 1, "type"], "costum"),
        (["editable"], "no"),
    ],
    ids=str,
)
def test_the_check_by_schema_sees_slips(path: list[str | int], value: Any) -> None:
    model = copy.deepcopy(MODELS["api-metrics"])
    place: Any = model
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    try:
        found = schema_problems(model)
    except (TypeError, AttributeError) as error:
        found = [str(error)]
    assert found


def test_the_five_dashboards_of_the_reference_document() -> None:
    assert set(MODELS) >= {"api-metrics", "database-metrics", "infrastructure-overview", "slo", "backups"}
    assert {name: model["uid"] for name, model in MODELS.items()} == {name: name for name in MODELS}
    assert len({model["title"] for model in MODELS.values()}) == len(MODELS)


@pytest.mark.parametrize("metric", KEY_METRICS)
def test_key_metrics_have_a_panel(metric: str) -> None:
    name, row, title = KEY_METRICS[metric]
    rows = [item for item in FORMS[name]["rows"] if row in ("", item["title"])]
    assert title in [panel["title"] for item in rows for panel in item["panels"]]


@each_dashboard
def test_panels_say_what_they_show(name: str) -> None:
    for place, panel in dashboards.grafana_dashboard.panels(FORMS[name]):
        assert panel["unit"] in UNITS, place
        assert panel["description"].endswith("."), place
        several = len(dashboards.grafana_dashboard.queries(panel)) > 1
        assert not several or all(item.get("legend") for item in panel["queries"]), f"{place}: whose line is it?"
    titles = [[panel["title"] for panel in row["panels"]] for row in FORMS[name]["rows"]]
    assert [row for row in titles if len(set(row)) != len(row)] == []


@each_dashboard
def test_panels_do_not_overlap(name: str) -> None:
    taken = set()
    for panel in MODELS[name]["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(0 <= x < 24 for x, _y in cells), panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in MODELS[name]["panels"]]
    assert len(set(numbers)) == len(numbers)


@each_dashboard
def test_a_config_map_has_room_for_it(name: str) -> None:
    assert len(json.dumps(MODELS[name])) < 500_000  # of 1 MiB


@pytest.mark.parametrize("name", dashboards.short_forms("prometheus"))
def test_rates_are_those_of_the_rules(name: str) -> None:
    """Over five minutes or longer: shorter ones would show two scrapes or none."""
    for query in dashboards.queries(FORMS[name]):
        for window in re.findall(r"\[(\w+)", query.text):
            assert re.fullmatch(r"5m|1h|30d", window), str(query)
        assert "$" not in query.text, str(query)


def test_lines_of_errors_are_what_diagnose_counts() -> None:
    (panel,) = [panel for _place, panel in PANELS["logs"] if panel["title"] == "Lines of errors by container"]
    assert panel["query"].partition(" | ")[0] == ERRORS


PANEL = {"title": "Rate", "type": "timeseries", "unit": "reqps", "description": "Requests.", "query": "up"}


def form(panel: dict[str, Any] | None = None, row: dict[str, Any] | None = None, **extra: Any) -> dict[str, Any]:
    """A small dashboard."""
    rows = [{"title": "Requests", "panels": [PANEL | (panel or {})]} | (row or {})]
    return {"title": "Queue", "uid": "queue", "description": "Waits.", "rows": rows} | extra


@pytest.mark.parametrize(
    ("dashboard", "message"),
    [
        ([], "dashboard: a dashboard must be a mapping, not list."),
        (form(refersh="1m"), "dashboard queue: unknown key refersh: a dashboard has datasource, description, from"),
        (form(datasource="loki"), "dashboard queue: unknown datasource loki: take one of prometheus, logs."),
        (form({"type": "stat"}, datasource="logs"), "panel Rate: unknown type stat: take one of timeseries, logs."),
        (
            form({"type": "logs"}),
            "panel Rate: unknown type logs: take one of timeseries, stat, gauge, bargauge, table.",
        ),
        (form(title=""), "dashboard queue: a dashboard needs title."),
        (form(uid="My Queue"), "uid must be 1 to 40 small letters, digits and dashes"),
        (form(row={"panel": []}), "dashboard queue, row Requests: unknown key panel: a row has panels, title."),
        (form(row={"panels": []}), "dashboard queue, row Requests: a row needs panels."),
        (form({"unti": "s"}), "dashboard queue, row Requests, panel Rate: unknown key unti"),
        (form({"unit": ""}), "panel Rate: a panel needs unit."),
        (form({"type": "graph"}), "panel Rate: unknown type graph: take one of timeseries, stat"),
        (form({"queries": [{"query": "up"}]}), "panel Rate: a panel needs either query or queries."),
        (form({"query": "up{job='$job'}"}), "panel Rate: unknown variable job in its query"),
        (form({"query": "up{job='${job:regex}'}"}), "panel Rate: unknown variable job in its query"),
        (form({"type": "table"}), "panel Rate: columns (titles by label"),
        (form({"columns": {"job": "Job"}}), "panel Rate: columns (titles by label"),
        (form({"thresholds": {"high": "red"}}), "panel Rate: threshold high must be a number"),
        (form({"links": [{"title": "Runbook"}]}), "panel Rate: a link needs url."),
        (form(variables=[{"name": "job"}]), "dashboard queue, variables: a variable needs label."),
        (form(variables=[{"name": "job", "label": "Job"}]), "variable job: a variable needs one of query, values"),
        (
            form(variables=[{"name": "a", "label": "A", "values": [1], "text": ""}]),
            "needs one of query, values and text.",
        ),
    ],
)
def test_the_filter_refuses_and_says_where(dashboard: Any, message: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        dashboards.grafana_dashboard.grafana_dashboard(dashboard)
    assert message in str(caught.value)


def test_what_the_filter_makes() -> None:
    text = {"query": "up{job=~'$job', ref='${job}'}[$__range]", "thresholds": {"base": "red", 2: "green", 1: "orange"}}
    panel = text | {"width": 20, "legend": "{{pod}}", "names": {0: "no"}, "empty": "nobody is there"}
    wide = PANEL | {"title": "Next line"}
    made = dashboards.grafana_dashboard.grafana_dashboard(
        form(
            row={"panels": [PANEL | panel, wide, PANEL | {"title": "Beside", "type": "stat"}]},
            variables=[{"name": "job", "label": "Job", "query": "label_values(up, job)"}],
        )
    )
    assert schema_problems(made) == []
    heading, first, second, third = made["panels"]
    assert (heading["type"], heading["gridPos"]) == ("row", {"x": 0, "y": 0, "w": 24, "h": 1})
    assert first["gridPos"] == {"x": 0, "y": 1, "w": 20, "h": 8}
    assert second["gridPos"] == {"x": 0, "y": 9, "w": 8, "h": 8}
    assert third["gridPos"] == {"x": 8, "y": 9, "w": 4, "h": 4}
    steps = first["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [(step["value"], step["color"]) for step in steps] == [(None, "red"), (1, "orange"), (2, "green")]
    assert first["fieldConfig"]["defaults"]["mappings"][0]["options"] == {"0": {"text": "no", "index": 0}}
    assert first["description"] == "Requests.\n\nMay be empty: nobody is there"
    assert (first["targets"][0]["legendFormat"], first["targets"][0]["range"]) == ("{{pod}}", True)
    assert (third["targets"][0]["instant"], third["targets"][0]["range"]) == (True, False)
    assert [item["name"] for item in made["templating"]["list"]] == ["datasource", "job"]


def test_what_the_filter_makes_for_logs() -> None:
    lines = PANEL | {"title": "Lines", "type": "logs", "query": "*:i(${word:doublequote}*)"}
    counts = PANEL | {"query": "* | stats by (level) count() lines", "legend": "{{level}}"}
    word = {"name": "word", "label": "Word", "text": ""}
    made = dashboards.grafana_dashboard.grafana_dashboard(
        form(row={"panels": [counts, lines]}, variables=[word], datasource="logs")
    )
    assert schema_problems(made) == []
    source, typed = made["templating"]["list"]
    assert (source["query"], source["current"]["value"]) == ("victoriametrics-logs-datasource", "victoria-logs")
    assert (typed["type"], typed["current"]["value"]) == ("textbox", "")
    _heading, first, second = made["panels"]
    assert first["datasource"] == {"type": "victoriametrics-logs-datasource", "uid": "${datasource}"}
    assert [target["queryType"] for panel in (first, second) for target in panel["targets"]] == [
        "statsRange",
        "instant",
    ]
    assert first["fieldConfig"]["defaults"]["custom"]["drawStyle"] == "bars"
    assert first["options"]["legend"]["calcs"] == ["sum"]
    assert (second["targets"][0]["maxLines"], second["options"]["sortOrder"]) == (500, "Descending")
