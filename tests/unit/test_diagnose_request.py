"""One request: its lines in order, its error, its trace as a tree; from recorded answers of VictoriaLogs and Jaeger."""

from __future__ import annotations

import base64
import copy
import http.client
import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import diagnose_logs
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import ApiError, Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_collect import Collector
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_report import Report
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_request import (
    LINES,
    WIDTH,
    Line,
    Request,
    first_error,
    spans,
    trace_lines,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import Reply
from test_diagnose import run

RECORDED = Path(__file__).parent / "recorded"
ROWS = (RECORDED / "victoria-logs.jsonl").read_bytes()
TRACE = json.loads((RECORDED / "jaeger.json").read_text())
ID, TRACE_ID = "req-7f3a.1", "4bf92f3577b34da6a3ce929d0e0e4736"
API, WEB = "citadelbuy-api-7d4-x2x2x", "citadelbuy-web-5d9-abcde"
SECRET = "a-value-of-a-secret"
NO_HEADERS = http.client.HTTPMessage()


def pod(name: str, part: str, container: str = "main", ready: bool = True) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "citadelbuy", "labels": {"app.kubernetes.io/name": part}},
        "spec": {"containers": [{"name": container}]},
        "status": {
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [{"name": container, "state": {"running": {}}}],
        },
    }


LOGS, JAEGER = pod("victoria-logs-0", "victoria-logs"), pod("jaeger-0", "jaeger")
APPLICATIONS = [pod(API, "citadelbuy-api", "api"), pod(WEB, "citadelbuy-web", "web")]


class FakeCluster:
    """A cluster with these pods, one Secret and these logs by container."""

    name = "prod"

    def __init__(self, pods: list[dict[str, Any]], logs: dict[str, str] | None = None) -> None:
        self.pods, self.logs, self.asked = pods, logs or {}, []

    def list(self, resource: Any, _namespace: str) -> dict[str, Any]:
        if resource.kind == "Pod":
            return {"items": self.pods}
        data = {"PASSWORD": base64.b64encode(SECRET.encode()).decode()}
        return {"items": [{"metadata": {"name": "keys"}, "data": data}]}

    def request(self, _method: str, path: str, query: dict[str, Any], text: bool) -> tuple[int, str]:
        assert text
        self.asked.append((path, query))
        if query["container"] not in self.logs:
            raise ApiError(403, {"message": "pods/log is forbidden"})
        return 200, self.logs[query["container"]]

    def close(self) -> None:
        pass


Answers = dict[str, tuple[int, bytes]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answers], list[str]]:
    """Answer for VictoriaLogs and Jaeger, by the beginning of a path; returns the paths that were asked."""

    def answer(answers: Answers) -> list[str]:
        paths: list[str] = []

        def through(_cluster: Any, _space: str, _pod: str, _port: int, _method: str, path: str, **_more: Any) -> Reply:
            paths.append(path)
            found = [value for begin, value in answers.items() if path.startswith(begin)]
            if not found:
                raise EngineError(f"GET {path}: connection refused")
            return Reply(found[0][0], NO_HEADERS, found[0][1])

        monkeypatch.setattr(diagnose_logs, "http_through_pod", through)
        return paths

    return answer


KEPT: Answers = {"/select/logsql/query": (200, ROWS), "/api/traces/": (200, json.dumps(TRACE).encode())}


def tell(cluster: Any, request: str = ID) -> str:
    return Request(cluster, ["citadelbuy"], request, timedelta(hours=2), 5).tell("2h")


def test_lines_error_and_trace(asked: Callable[[Answers], list[str]]) -> None:
    paths = asked(KEPT)
    text = tell(FakeCluster([LOGS, JAEGER, *APPLICATIONS]))
    first, *_rest = text.split("\n")
    assert first.startswith(f"Request {ID}: error in pod {API}, container api: request failed error=invalid byte")
    lines = re.findall(r"^20\S+ \d\d:\d\d:\d\d\.\d{3}  (\S+)  (\S+) +(\S.*)$", text, re.MULTILINE)
    assert [(place, level) for place, level, _said in lines] == [
        (f"{API}/api", "error"),
        (f"{API}/api", "info"),
        (f"{WEB}/web", "info"),
    ]
    assert "status=500" in lines[1][2]
    assert f"Trace {TRACE_ID}: 5 spans, 41.2 ms" in text
    assert "password=*****" in text
    assert "hunter2" not in text
    query = parse_qs(urlsplit(paths[0]).query)["query"][0]
    assert query == f'_time:7200s requestId:="{ID}" | sort by (_time) | limit {LINES + 1}'
    assert paths[1:] == [f"/api/traces/{TRACE_ID}"]


def test_a_trace_is_a_tree_in_order_of_time() -> None:
    assert trace_lines(TRACE["data"][0]) == [
        f"Trace {TRACE_ID}: 5 spans, 41.2 ms",
        "       +0.0      41.2 ms  citadelbuy-web: POST /api/*",
        "       +2.0      38.0 ms    citadelbuy-web: POST",
        "       +3.0      36.0 ms      citadelbuy-api: POST /products  ERROR: internal error",
        "       +5.0      22.0 ms        citadelbuy-api: INSERT (postgresql)  ERROR: invalid byte sequence",
        "      +30.0       2.0 ms        citadelbuy-api: redis DEL (redis)",
    ]


def span(name: str, parent: str = "", start: int = 0) -> dict[str, Any]:
    references = [{"refType": "CHILD_OF", "spanID": parent}] if parent else []
    return {"spanID": name, "operationName": name, "references": references, "startTime": start, "processID": "p1"}


def test_no_span_is_lost() -> None:
    """Neither one whose parent has not come, nor those that are each other's."""
    found = [span("c", "b", 2), span("b", "gone", 1), span("x", "y", 3), span("y", "x", 4), span("self", "self", 5)]
    assert [(depth, one["spanID"]) for depth, one in spans({"spans": found})] == [
        (0, "b"),
        (1, "c"),
        (0, "x"),
        (0, "y"),
        (0, "self"),
    ]


def test_statements_of_spans_are_not_shown() -> None:
    assert "INSERT INTO" in json.dumps(TRACE)
    assert "INSERT INTO" not in "\n".join(trace_lines(TRACE["data"][0]))


def line(**fields: str) -> Line:
    return Line("2025-06-01T03:00:00Z", "p", "c", fields)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([line(level="info", status="500"), line(level="warn"), line(level="ERROR", _msg="x")], 2),
        ([line(level="info", status="200"), line(level="info", status="503"), line(status="500")], 1),
        ([line(level="info", status="404"), line(ms="500"), line(status="5000")], None),
    ],
)
def test_the_first_error_is_by_level_else_by_status(lines: list[Line], error: int | None) -> None:
    assert first_error(lines) is (None if error is None else lines[error])


def test_without_an_error_the_answer_is_named(asked: Callable[[Answers], list[str]]) -> None:
    row = {"_time": "2025-06-01T03:00:00Z", "_msg": "request", "pod": WEB, "container": "web", "status": "404"}
    asked({"/select": (200, json.dumps(row).encode())})
    text = tell(FakeCluster([LOGS]))
    assert text.startswith(f"Request {ID}: no error in its lines, answered with 404 by pod {WEB}\n")
    assert "Trace" not in text


def test_what_would_move_a_cursor_is_left_out(asked: Callable[[Answers], list[str]]) -> None:
    """VictoriaLogs writes characters beyond ASCII as they are: some of them end a line, too."""
    row = {"_time": "2025-06-01T03:00:00Z", "_msg": "a\u2028b\u0085c\nd\x1b[2J\u202eé", "pod": WEB, "container": "web"}
    asked({"/select": (200, json.dumps(row, ensure_ascii=False).encode() + b"\n")})
    assert tell(FakeCluster([LOGS])).split("\n")[2].endswith("  a b c d[2Jé")


def test_values_of_secrets_are_masked_in_lines_and_spans(asked: Callable[[Answers], list[str]]) -> None:
    trace = copy.deepcopy(TRACE)
    trace["data"][0]["spans"][0]["operationName"] = f"GET /{SECRET}"
    rows = ROWS.replace(b"invalid byte sequence", SECRET.encode())
    asked({"/select": (200, rows), "/api/traces": (200, json.dumps(trace).encode())})
    text = tell(FakeCluster([LOGS, JAEGER]))
    assert SECRET not in text
    assert "GET /*****" in text


def test_neither_half_a_value_nor_a_field_that_is_named_a_secret_is_shown(
    asked: Callable[[Answers], list[str]],
) -> None:
    place = {"_time": "2025-06-01T03:00:00Z", "pod": WEB, "container": "web"}
    rows = [place | {"_msg": "x" * (WIDTH - 8) + SECRET}, place | {"_msg": "y", "api_token": "hunter3"}]
    asked({"/select": (200, "\n".join(map(json.dumps, rows)).encode())})
    text = tell(FakeCluster([LOGS]))
    assert SECRET[:7] not in text
    assert text.endswith("y api_token=*****")


def test_many_lines_are_cut_and_it_is_said(asked: Callable[[Answers], list[str]]) -> None:
    row = json.dumps({"_time": "2025-06-01T03:00:00Z", "_msg": "x", "pod": WEB, "container": "web"}).encode()
    asked({"/select": (200, b"\n".join([row] * (LINES + 1)))})
    text = tell(FakeCluster([LOGS]))
    assert text.count("2025-06-01 03:00:00") == LINES
    assert f"these are the first {LINES}" in text


@pytest.mark.parametrize("request_id", ["", "a b", 'x" or *', "é", "a\n", "x" * 129, "$(id)", "a/b"])
def test_an_id_that_none_is_refused(request_id: str) -> None:
    with pytest.raises(EngineError, match=r"diagnose_request_id is .*: write 1 to 128 letters"):
        tell(FakeCluster([LOGS]), request_id)


def test_an_unknown_id_says_how_far_back_was_looked(asked: Callable[[Answers], list[str]]) -> None:
    asked({"/select": (200, b"")})
    with pytest.raises(EngineError) as caught:
        tell(FakeCluster([LOGS]), "gone")
    assert str(caught.value) == "no line of the last 2h has the request id gone: look further back with diagnose_since."


TEXTS = {
    "api": '2025-06-01T03:00:02.1Z {"level":"error","msg":"request failed","requestId":"req-7f3a.1","error":"away"}\n'
    '2025-06-01T03:00:03Z {"level":"info","msg":"other","requestId":"req-7f3a.10"}\n'
    "2025-06-01T03:00:03Z started with req-7f3a.1\n",
    "web": '2025-06-01T03:00:04Z {"level":"info","msg":"request","requestId":"req-7f3a.1","status":502,'
    '"traceId":"ab"}\n',
}


def test_where_logs_are_not_kept_the_pods_are_asked_and_it_is_said() -> None:
    cluster = FakeCluster([*APPLICATIONS, pod("redis-0", "redis", "redis")], TEXTS)
    text = tell(cluster)
    assert text.startswith(f"Request {ID}: error in pod {API}, container api: request failed error=away\n")
    assert text.count("2025-06-01 03:00:0") == 2
    assert "status=502" in text
    assert "Logs are not kept (platform_logs is false, or the pod victoria-logs-0 is not ready)." in text
    assert "The log of redis-0/redis could not be read: pods/log is forbidden" in text
    assert "Trace ab: traces are not kept" in text
    assert {query["sinceSeconds"] for _path, query in cluster.asked} == {7200}
    with pytest.raises(EngineError, match=r"no line of the last 2h .*Logs are not kept"):
        tell(cluster, "gone")


def test_where_victoria_logs_does_not_answer_the_pods_are_asked(asked: Callable[[Answers], list[str]]) -> None:
    asked({"/select": (400, b"cannot parse")})
    text = tell(FakeCluster([LOGS, *APPLICATIONS], TEXTS | {"main": ""}))
    assert "VictoriaLogs could not be asked (GET /select/logsql/query answered 400: cannot parse)." in text
    assert "request failed" in text


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"/api/traces": (404, b'{"errors":[{"code":404}]}')}, f"Jaeger has no trace {TRACE_ID}"),
        ({"/api/traces": (500, b"broken")}, f"Jaeger could not be asked: GET /api/traces/{TRACE_ID} answered 500"),
        ({}, "Jaeger could not be asked: GET /api/traces/"),
    ],
)
def test_without_its_trace_the_rest_is_told(asked: Callable[[Answers], list[str]], answers: Answers, said: str) -> None:
    asked({"/select": (200, ROWS)} | answers)
    text = tell(FakeCluster([LOGS, JAEGER]))
    assert said in text
    assert "request failed" in text


def test_what_is_no_id_of_a_trace_is_not_asked_for(asked: Callable[[Answers], list[str]]) -> None:
    paths = asked({"/select": (200, ROWS.replace(TRACE_ID.encode(), b"../../metrics"))})
    assert "'../../metrics' is no id of a trace" in tell(FakeCluster([LOGS, JAEGER]))
    assert len(paths) == 1


def test_the_report_counts_lines_of_errors(asked: Callable[[Answers], list[str]], cluster: Cluster) -> None:
    row = {"lines": "3", "namespace": "citadelbuy", "pod": "postgres-0", "container": "postgres"}
    paths = asked({"/select": (200, json.dumps(row).encode())})
    collector = Collector(cluster, ["citadelbuy"], timedelta(hours=1), 5)
    assert "error lines" not in collector._later()
    collector.snapshot.parts["pods"] = [LOGS]
    collector.snapshot.parts["error lines"] = collector._later()["error lines"]()
    assert "_time:3600s (level:in(error,fatal," in parse_qs(urlsplit(paths[0]).query)["query"][0]
    assert re.search(r"^citadelbuy +postgres-0 +postgres +3$", Report(collector.snapshot, []).text(), re.MULTILINE)


def test_the_playbook_refuses_an_id_and_does_not_find_one(tmp_path: Path, api_server: Any, namespace: str) -> None:
    for request_id, said in (
        ("a*b", "diagnose_request_id is 'a*b': write 1 to 128"),
        ("gone", "no line of the last 30m has the request id gone"),
    ):
        options = {"diagnose_what": "request", "diagnose_request_id": request_id, "diagnose_since": "30m"}
        done = run(tmp_path, api_server.kubeconfig, namespace, "-e", json.dumps(options))
        assert done.returncode != 0
        assert said in done.stdout
