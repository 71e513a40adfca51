"""Dashboards show data: every query of every panel, asked of the running Prometheus, and Grafana has them all."""

from __future__ import annotations

import base64
import json
import math
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from conftest import CHECKOUT, MONITORING, PICTURES, forwarded

sys.path.insert(0, str(CHECKOUT / "tests/tools"))

import browser
import dashboards

FORMS = dashboards.short_forms()
PROMETHEUS = dashboards.short_forms("prometheus").values()
QUERIES = [query for form in PROMETHEUS for query in dashboards.queries(form)]
FIRST_DATA = 240.0  # seconds until rates over five minutes have their two scrapes, with requests between them
LABEL_VALUES = re.compile(r"label_values\((?P<series>.+), *(?P<label>\w+)\)")

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Ask Prometheus' API; returns the answer's `data`."""
    with forwarded("prometheus", 9090) as url:

        def get(path: str, **parameters: str) -> Any:
            names = {name.replace("match", "match[]"): value for name, value in parameters.items()}
            try:
                with urllib.request.urlopen(f"{url}/api/v1/{path}?{urlencode(names)}", timeout=30) as answer:
                    return json.load(answer)["data"]
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

        yield get


def has_data(ask: Ask, query: dashboards.Query) -> bool:
    """Whether a query has at least one value that is a number."""
    return any(math.isfinite(float(item["value"][1])) for item in ask("query", query=query.text)["result"])


def test_every_panel_has_data(ask, play):
    """But those that say why they may be empty. `verify` makes the requests that rates and percentiles need."""
    missing = [query for query in QUERIES if not query.empty]
    assert len(missing) > 100
    end = time.monotonic() + FIRST_DATA
    while missing and time.monotonic() < end:
        done = play("verify")
        assert done.rc == 0, done.stdout + done.stderr
        missing = [query for query in missing if not has_data(ask, query)]
    assert not missing, "no data:\n" + "\n".join(map(str, missing))


def test_prometheus_takes_the_queries_of_panels_that_may_be_empty(ask):
    allowed = [query for query in QUERIES if query.empty]
    assert allowed
    for query in allowed:
        has_data(ask, query)


def test_variables_have_values(ask):
    found = [
        LABEL_VALUES.fullmatch(variable["query"])
        for form in PROMETHEUS
        for variable in form.get("variables") or []
        if "query" in variable
    ]
    assert found
    for match in found:
        assert ask(f"label/{match['label']}/values", match=match["series"]), match.string


@pytest.fixture(scope="module")
def password(kubectl) -> str:
    """Of Grafana's administrator."""
    secret = kubectl("get", "secret", "citadelbuy-monitoring", "--namespace", MONITORING, "--output", "json")["data"]
    return base64.b64decode(secret["GRAFANA_ADMIN_PASSWORD"]).decode()


@pytest.mark.parametrize("name", FORMS)
def test_every_panel_is_drawn(name, password):
    """In a real browser; the pictures are those of docs/dashboards.md."""
    panels = dashboards.grafana_dashboard.panels(FORMS[name])
    may_be = {panel["title"]: {"data", "empty"} if panel.get("empty") else {"data"} for _place, panel in panels}
    end = time.monotonic() + FIRST_DATA
    with forwarded("grafana", 3000) as url:
        while True:
            found = browser.screenshot(url, "admin", password, name, PICTURES / f"{name}.png", "from=now-15m&to=now")
            wrong = [panel for panel in found if panel.state not in may_be.get(panel.title, {"data"})]
            # A range has its first point later than an instant.
            if not wrong or time.monotonic() > end:
                break
    assert {panel.title for panel in found} >= set(may_be)
    assert not wrong


def test_grafana_has_every_dashboard_and_asks_for_a_login(password):
    with forwarded("grafana", 3000) as url:

        def status_and_body(path: str, word: str) -> tuple[int, Any]:
            login = base64.b64encode(f"admin:{word}".encode()).decode()
            request = urllib.request.Request(
                f"{url}{path}", headers={"Authorization": f"Basic {login}"} if word else {}
            )
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                return error.code, None

        assert status_and_body("/api/health", "")[0] == 200
        for name, model in dashboards.models().items():
            path = f"/api/dashboards/uid/{name}"
            assert status_and_body(path, "")[0] == 401
            status, body = status_and_body(path, password)
            assert (status, body["dashboard"]["title"]) == (200, model["title"])
            assert [panel["title"] for panel in body["dashboard"]["panels"]] == [
                panel["title"] for panel in model["panels"]
            ]
        assert status_and_body("/api/dashboards/uid/slo", "changeme")[0] == 401
