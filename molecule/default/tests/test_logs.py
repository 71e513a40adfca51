"""Logs and traces of the deployed platform: every container's lines arrive, an error is found by its request's id."""

from __future__ import annotations

import base64
import json
import re
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from conftest import CHECKOUT, MONITORING, PICTURES, Json, forwarded

sys.path.insert(0, str(CHECKOUT / "tests/tools"))

import browser

NODES = "citadelbuy-nodes"
SPACES = ("citadelbuy", MONITORING)
SECRET = "hunter2-of-the-test"
ARRIVAL = 60.0  # seconds until a line or a span that was written is found
# The table's owner refuses one product, and says something that looks like a secret.
REFUSE = f"""
CREATE OR REPLACE FUNCTION logs_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
IF NEW.name = 'Logs test' THEN RAISE EXCEPTION 'refused by the test, password={SECRET}'; END IF; RETURN NEW; END $$;
CREATE OR REPLACE TRIGGER logs_test BEFORE INSERT ON products FOR EACH ROW EXECUTE FUNCTION logs_test();
"""
ALLOW = "DROP TRIGGER IF EXISTS logs_test ON products; DROP FUNCTION IF EXISTS logs_test();"
PSQL = 'exec psql -X -q -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "$1"'

Ask = Callable[[str, str], list[Json]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Ask VictoriaLogs until there are rows; the second text says what they should be."""
    with forwarded("victoria-logs", 9428) as url:

        def rows(query: str) -> list[Json]:
            body = urlencode({"query": query}).encode()
            with urllib.request.urlopen(f"{url}/select/logsql/query", body, timeout=30) as answer:
                return [json.loads(line) for line in answer.read().split(b"\n") if line]

        def until(query: str, what: str) -> list[Json]:
            end = time.monotonic() + ARRIVAL
            while not (found := rows(query)):
                assert time.monotonic() < end, f"{what}: not within {ARRIVAL:.0f} s: {query}"
                time.sleep(1)
            return found

        yield until


@pytest.fixture(scope="module")
def failed_request(kubectl: Any, pods_of: Callable[[str], list[Json]]) -> str:
    """The id of a request that the API answers with 500."""
    (primary,) = [pod for pod in pods_of("postgres") if pod["metadata"]["labels"].get("role") in ("master", "primary")]
    place = ("exec", primary["metadata"]["name"], "--namespace", "citadelbuy", "--container", "postgres", "--")
    request_id = f"logs-test-{uuid.uuid4()}"
    kubectl(*place, "sh", "-c", PSQL, "sh", REFUSE)
    try:
        with forwarded("citadelbuy-web", 3000, "citadelbuy") as url:
            body = json.dumps({"name": "Logs test", "price": 1}).encode()
            headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
            request = urllib.request.Request(f"{url}/api/products", body, headers)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=30)
        assert caught.value.code == 500
        assert caught.value.headers["X-Request-Id"] == request_id
    finally:
        kubectl(*place, "sh", "-c", PSQL, "sh", ALLOW)
    return request_id


@pytest.fixture(scope="module")
def pods_of(kubectl: Any) -> Callable[[str], list[Json]]:
    """Running pods by the name of their part."""

    def find(part: str) -> list[Json]:
        selector = ("--all-namespaces", "--selector", f"app.kubernetes.io/name={part}")
        found = kubectl("get", "pods", *selector, "--output", "json")["items"]
        return [pod for pod in found if pod["status"].get("phase") == "Running"]

    return find


def error_of(request_id: str) -> str:
    """The query for what the API said of a request."""
    return f'_time:1h container:=api level:=error requestId:="{request_id}"'


def test_a_line_of_every_running_container_arrives(ask: Ask, kubectl: Any) -> None:
    """Of those that have written one: an exporter may be silent for as long as it is well."""
    checked = 0
    for space in SPACES:
        for pod in kubectl("get", "pods", "--namespace", space, "--output", "json")["items"]:
            name = pod["metadata"]["name"]
            for status in pod["status"].get("containerStatuses") or []:
                options = ("--namespace", space, "--container", status["name"], "--tail=1", "--since=24h")
                if "running" in status["state"] and kubectl("logs", name, *options).strip():
                    query = f'{{namespace="{space}",pod="{name}",container="{status["name"]}"}} | limit 1'
                    (line,) = ask(f"_time:1d {query}", f"a line of {name}/{status['name']}")
                    assert "_msg" in line
                    checked += 1
    assert checked > 8


def test_the_fields_of_a_line_are_its_own(ask: Ask, failed_request: str) -> None:
    (line,) = ask(error_of(failed_request), "the error")
    assert (line["namespace"], line["container"], line["_msg"]) == ("citadelbuy", "api", "request failed")
    assert "refused by the test" in line["error"]


def test_an_error_is_found_by_its_request(play: Any, ask: Ask, failed_request: str) -> None:
    """Its pod, its lines in order of time, its trace through web, API and PostgreSQL; no secret."""
    (line,) = ask(error_of(failed_request), "the error")
    ask(f'_time:1h container:=web requestId:="{failed_request}"', "the web's line")
    end = time.monotonic() + ARRIVAL
    while True:
        done = play("diagnose", "-e", "diagnose_what=request", "-e", f"diagnose_request_id={failed_request}")
        assert done.rc == 0, done.stdout + done.stderr
        if re.search(r"citadelbuy-web: .*\n[\s\S]*citadelbuy-api: [^\n]*postgresql", done.stdout):
            break
        assert time.monotonic() < end, done.stdout
    headline = rf"Request {failed_request}: error in pod {line['pod']}, container api: request failed"
    assert re.search(headline, done.stdout), done.stdout
    times = re.findall(r"^ +(20\d\d-\S+ [\d:.]+)  \S+/(?:api|web) ", done.stdout, re.MULTILINE)
    assert len(times) >= 3
    assert times == sorted(times)
    assert f"Trace {line['traceId']}: " in done.stdout
    assert "ERROR" in done.stdout
    assert "password=*****" in done.stdout
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("request_id", "said"),
    [
        ("none-has-this", "no line of the last 1h has the request id none-has-this"),
        ("a|b", "diagnose_request_id is 'a|b'"),
    ],
)
def test_what_is_not_found_is_said(play: Any, request_id: str, said: str) -> None:
    done = play("diagnose", "-e", "diagnose_what=request", "-e", f"diagnose_request_id={request_id}")
    assert done.rc != 0
    assert said in done.stdout


def test_the_report_counts_lines_of_errors(play: Any, ask: Ask, failed_request: str, tmp_path: Any) -> None:
    ask(error_of(failed_request), "the error")
    done = play("diagnose", "-e", f"diagnose_report_dir={tmp_path}")
    assert done.rc == 0, done.stdout + done.stderr
    (report,) = tmp_path.glob("*.txt")
    assert re.search(r"^citadelbuy +citadelbuy-api-\S+ +api +\d+$", report.read_text(), re.MULTILINE)


def test_in_a_browser_from_the_request_to_its_trace(kubectl: Any, ask: Ask, failed_request: str) -> None:
    """The picture is that of docs/dashboards.md."""
    ask(error_of(failed_request), "the error")
    secret = kubectl("get", "secret", "citadelbuy-monitoring", "--namespace", MONITORING, "--output", "json")["data"]
    password = base64.b64decode(secret["GRAFANA_ADMIN_PASSWORD"]).decode()
    with forwarded("grafana", 3000) as url, browser.browser() as page:
        browser.sign_in(page, url, "admin", password)
        panels = browser.open_dashboard(page, url, "logs", f"var-search={failed_request}&from=now-15m&to=now")
        assert [panel.state for panel in panels if panel.kind == "logs"] == ["data"]
        line = page.locator(".line[data-level=error]")
        line.wait_for()
        assert "refused by the test" in line.inner_text()
        line.get_by_role("link", name="Trace").click()
        end = time.monotonic() + ARRIVAL
        while not page.wait_for_selector("body[data-loaded=true]") or not page.locator(".span").count():
            assert time.monotonic() < end, page.get_by_role("alert").inner_text()
            page.reload()
        shown = page.locator("#trace").inner_text()
        assert {"citadelbuy-web", "citadelbuy-api"} <= set(re.findall(r"citadelbuy-\w+", shown))
        assert page.locator(".span.failed").count() >= 1
        page.screenshot(path=PICTURES / "trace.png", full_page=True)


def test_no_line_is_lost_while_store_and_collector_are_away(kubectl: Any) -> None:
    """Numbered lines before, while and after both are replaced; each is found, at least once."""
    mark, count = f"numbered-{uuid.uuid4()}", 300
    into = ("exec", "redis-0", "--namespace", "citadelbuy", "--container", "redis", "--", "sh", "-c")
    write = 'for number in $(seq "$2" "$3"); do echo "$1 $number end" > /proc/1/fd/1; done'

    def say(first: int, last: int) -> None:
        kubectl(*into, write, "sh", mark, str(first), str(last))

    say(1, 100)
    kubectl("delete", "pod", "victoria-logs-0", "--namespace", MONITORING)
    say(101, 200)
    kubectl("delete", "pods", "--namespace", NODES, "--selector", "app.kubernetes.io/name=opentelemetry-collector")
    say(201, count)
    kubectl("rollout", "status", "daemonset/opentelemetry-collector", "--namespace", NODES, "--timeout=120s")
    kubectl("rollout", "status", "statefulset/victoria-logs", "--namespace", MONITORING, "--timeout=120s")
    body = urlencode({"query": f'_time:1h "{mark}" | fields _msg'}).encode()
    end = time.monotonic() + ARRIVAL
    with forwarded("victoria-logs", 9428) as url:
        while True:
            with urllib.request.urlopen(f"{url}/select/logsql/query", body, timeout=30) as answer:
                lines = re.findall(rf"{mark} (\d+) end", answer.read().decode())
            missing = set(range(1, count + 1)) - {int(number) for number in lines}
            if not missing:
                break
            assert time.monotonic() < end, f"{len(missing)} of {count} lines are missing: {sorted(missing)[:10]}"
            time.sleep(1)
    print(f"{len(lines) - count} of {count} lines came twice")
