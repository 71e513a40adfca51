"""Verify sees each way in which a platform may be broken, and leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import smoke, stream
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError

TIERS = {"citadelbuy-web-1": "web", "postgres-0": "database", "redis-0": "cache", "elasticsearch-0": "search"}


class Platform:
    """A platform in memory; `broken` names what does not work."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.rows: dict[str, Any] = {}
        self.cache: set[str] = set()
        self.index: dict[str, Any] = {}
        self.clock_offset = 0.0

    def request(self, _method: str, path: str) -> tuple[int, Any]:
        if "autoscalers" in path:
            active = "False" if self.broken == "metrics" else "True"
            conditions = [{"type": "ScalingActive", "status": active, "reason": "FailedGetResourceMetric"}]
            return 200, {"items": [{"metadata": {"name": "citadelbuy-api-hpa"}, "status": {"conditions": conditions}}]}
        if self.broken == "no pods":
            return 200, {"items": []}
        canary = self.pod("citadelbuy-web-0", "web")
        canary["metadata"]["labels"]["citadelbuy.io/track"] = "canary"
        return 200, {"items": [canary, *(self.pod(name, tier) for name, tier in TIERS.items())]}

    def pod(self, name: str, tier: str) -> dict[str, Any]:
        ready = "False" if self.broken == f"{tier} pod" else "True"
        return {
            "metadata": {"name": name, "labels": {"tier": tier}, "creationTimestamp": "2025-01-01T00:00:00Z"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        }

    def http(
        self, _cluster: Any, _ns: str, pod: str, _port: int, method: str, path: str, body: Any = None
    ) -> stream.Reply:
        assert pod == "citadelbuy-web-1", "not what customers get"
        status, headers, answer = self.answer(method, unquote(path), body)
        message = http.client.HTTPMessage()
        for name, value in headers.items():
            message[name] = value
        return stream.Reply(status, message, answer.encode())

    def answer(self, method: str, path: str, body: Any) -> tuple[int, dict[str, str], str]:
        identifier = path.rpartition("/")[2]
        if method == "POST":
            if self.broken == "create":
                return 503, {}, '{"error": "a store is unavailable"}'
            if self.broken != "postgres":
                self.rows["7"] = body
            if self.broken != "search":
                self.index["7"] = body
            return 201, {}, json.dumps({"id": "7", **body})
        if path.startswith("/api/search"):
            return 200, {}, json.dumps({"items": [{"id": key} for key in self.index]})
        if method == "DELETE":
            if self.broken != "delete postgres":
                self.rows.pop(identifier, None)
            if self.broken != "delete redis":
                self.cache.discard(identifier)
            if self.broken != "delete search":
                self.index.clear()
            return 204, {}, ""
        if path.startswith("/api/products/"):
            product = self.rows.get(identifier) or (self.broken == "postgres" and {"name": "other"})
            if not product:
                return 404, {}, "{}"
            hit = identifier in self.cache or self.broken == "redis lies"
            if self.broken not in ("redis", "redis lies"):
                self.cache.add(identifier)
            shown = {"name": "somebody else's"} if hit and self.broken == "redis stale" else product
            return 200, {"X-Cache": "hit" if hit else "miss"}, json.dumps(shown)
        return 200, {}, "" if self.broken == "page" else json.dumps(list(self.rows.values()))

    def run(self, _cluster: Any, _ns: str, _pod: str, container: str, command: list[str]) -> str:
        if self.broken == "exec":
            raise EngineError("exec in pod citadelbuy/postgres-0, container postgres: psql: FATAL: password")
        if container == "postgres":
            return str(int(command[4] in self.rows)) + "\n"
        return str(int(command[4] in self.cache)) + "\n"


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, smoke.Row]]:
    """Run verify on a platform that is broken in one way."""

    def run(broken: str = "") -> dict[str, smoke.Row]:
        platform = Platform(broken)
        monkeypatch.setattr(smoke, "http_through_pod", platform.http)
        monkeypatch.setattr(smoke, "run_in_pod", platform.run)
        monkeypatch.setattr(smoke, "SETTLE", 0.1)
        rows = smoke.Smoke(platform, ["citadelbuy"], search_timeout=0.1).run()  # type: ignore[arg-type]
        if not broken.startswith("delete"):
            assert not platform.rows, "the product was left behind"
        return {row.check: row for row in rows}

    return run


def test_a_platform_that_works(verify) -> None:
    assert {row.result for row in verify().values()} == {"ok"}


@pytest.mark.parametrize(
    ("broken", "failed", "detail"),
    [
        ("postgres", "postgres", "0 rows in products for 7, not 1"),
        ("exec", "postgres", "password"),
        ("redis", "redis", "X-Cache: miss, not hit"),
        ("redis lies", "redis", "no key product:7"),
        ("redis stale", "redis", "is not the product"),
        ("search", "search", "not found within 0.1 s"),
        ("page", "page", "does not contain"),
        ("create", "create", "answered 503"),
        ("delete postgres", "delete", "PostgreSQL: still there"),
        ("delete redis", "delete", "Redis: still there"),
        ("delete search", "delete", "search: still there"),
        ("web pod", "pods", "not ready: citadelbuy-web-0, citadelbuy-web-1"),
        ("search pod", "pods", "not ready: elasticsearch-0"),
        ("no pods", "pods", "deploy with playbooks/site.yml"),
    ],
)
def test_each_breakage_is_seen(verify, broken: str, failed: str, detail: str) -> None:
    rows = verify(broken)
    assert rows[failed].result == smoke.FAILED
    assert detail in rows[failed].detail


def test_nothing_is_looked_for_where_nothing_was_created(verify) -> None:
    rows = verify("create")
    assert {rows[name].result for name in ("postgres", "redis", "search", "page", "delete")} == {smoke.SKIPPED}


def test_missing_metrics_warn_and_are_pending_while_pods_are_young(verify, monkeypatch) -> None:
    assert verify("metrics")["autoscalers"].result == smoke.WARNING
    monkeypatch.setattr(smoke, "FIRST_METRICS", 10**10)
    assert verify("metrics")["autoscalers"].result == smoke.PENDING


def test_the_table_is_aligned() -> None:
    lines = smoke.table([smoke.Row("page", "ok", "fine", 5), smoke.Row("pods", "FAILED", "none", 1234)]).splitlines()
    assert [line[line.index(word) - 2 :] for line, word in zip(lines, ("detail", "fine", "none"), strict=True)] == [
        "  detail",
        "  fine",
        "  none",
    ]


@pytest.mark.parametrize(
    ("raw", "complete"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", False),
        (b"HTTP/1.1 200", False),
    ],
)
def test_the_end_of_an_answer(raw: bytes, complete: bool) -> None:
    assert stream._is_complete(raw) == complete


def test_a_refused_port_is_told() -> None:
    class Refused:
        def messages(self):
            port = struct.pack("<H", 3000)
            yield 0, port
            yield 1, port
            yield 1, b"dial tcp4 127.0.0.1:3000: connect: connection refused"

        def send(self, channel: int, data: bytes) -> None:
            assert channel == 0
            assert data

    with pytest.raises(ConnectionError, match="connection refused"):
        stream._converse(Refused(), b"GET / HTTP/1.1\r\n\r\n", stream._Plain())  # type: ignore[arg-type]


def test_exec_of_a_missing_pod_is_one_line(cluster, namespace: str) -> None:
    with pytest.raises(EngineError, match=rf'exec in pod {namespace}/none, container c: pods "none" not found'):
        stream.run_in_pod(cluster, namespace, "none", "c", ["true"])
