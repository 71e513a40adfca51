"""A real Prometheus that scrapes itself, and the viewer in front of it, as processes on 127.0.0.1.

VictoriaLogs and Jaeger are no packages of Debian: a stand-in gives their recorded answers. Molecule asks the real ones.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import dashboards

HERE = Path(__file__).resolve().parent
VIEWER = HERE.parents[1] / "images/grafana-viewer"
RECORDED = HERE.parent / "unit/recorded"
PATIENCE = 60  # seconds


@dataclass(frozen=True)
class Server:
    """A viewer that runs."""

    url: str
    user: str
    password: str


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what: str, condition: Callable[[], bool], log: Path) -> None:
    """Wait for a condition; an address that does not answer yet is not met.

    :raises TimeoutError: after PATIENCE, with the end of the log.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if condition():
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.1)
    raise TimeoutError(f"not within {PATIENCE} s: {what}; {log} ends with:\n{log.read_text()[-2000:]}")


def get(url: str) -> bytes:
    """The body that an address answers with."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read()


@contextmanager
def running(program: str, arguments: list[str], log: Path, **environment: str) -> Iterator[None]:
    """A process, ended afterwards.

    :raises FileNotFoundError: where the program is missing.
    """
    found = shutil.which(program)
    if not found:
        raise FileNotFoundError(f"{program} is not there: run tests/viewer/programs.py as root")
    with log.open("w") as output:
        command = [found, *arguments]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environment, cwd=VIEWER)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus that scrapes itself every half second and has done so for a while."""
    folder = tmp_path_factory.mktemp("prometheus")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    self = {"job_name": "prometheus", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    # A target that is always down.
    away = {"job_name": "away", "static_configs": [{"targets": ["127.0.0.1:1"]}]}
    config = {"global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"}, "scrape_configs": [self, away]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    paths = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with running("prometheus", [*paths, f"--web.listen-address=127.0.0.1:{port}"], folder / "log"):
        enough = urllib.parse.quote('min(count_over_time(up{job="prometheus"}[5m])) >= 30')
        until(
            "Prometheus has scraped itself 30 times",
            lambda: bool(json.loads(get(f"{url}/api/v1/query?query={enough}"))["data"]["result"]),
            folder / "log",
        )
        yield url


class StandIn(BaseHTTPRequestHandler):
    """VictoriaLogs and Jaeger with one request each: `asked` holds the queries, a query for `broken` is refused."""

    asked: list[str]  # of the class that a fixture makes

    def do_GET(self) -> None:
        trace = json.loads((RECORDED / "jaeger.json").read_text())
        known = self.path == f"/api/traces/{trace['data'][0]['traceID']}"
        self.answer(200 if known else 404, json.dumps(trace if known else {"data": None}))

    def do_POST(self) -> None:
        body = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        query = body["query"][0]
        self.asked.append(query)
        if "broken" in query:
            self.answer(400, "cannot parse `query`")
        elif self.path == "/select/logsql/stats_query_range":
            series = [{"metric": {"level": "error", "namespace": "n", "container": "api"}, "values": []}]
            start, step = float(body["start"][0]), float(body["step"][0].removesuffix("s"))
            series[0]["values"] = [[start, "3"], [start + step, "4"]]
            self.answer(200, json.dumps({"status": "success", "data": {"resultType": "matrix", "result": series}}))
        else:
            self.answer(200, "" if "nothing" in query else (RECORDED / "victoria-logs.jsonl").read_text())

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: object) -> None:
        """Nothing: the queries are kept."""


@pytest.fixture(scope="session")
def stand_in() -> Iterator[tuple[str, list[str]]]:
    """The address of a stand-in for VictoriaLogs and Jaeger, and the queries that it was asked."""
    handler = type("Handler", (StandIn,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
        server.shutdown()


@pytest.fixture(scope="session")
def viewer(
    prometheus: str, stand_in: tuple[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The viewer with the dashboards of this folder, the platform's Logs, and one that is broken."""
    folder = tmp_path_factory.mktemp("viewer")
    source = {"name": "Prometheus", "uid": "prometheus", "type": "prometheus", "access": "proxy", "url": prometheus}
    source |= {"isDefault": True, "jsonData": {"timeInterval": "1s"}}
    trace = {"matcherType": "label", "matcherRegex": "traceId", "urlDisplayLabel": "Trace", "datasourceUid": "jaeger"}
    logs = {"name": "VictoriaLogs", "uid": "victoria-logs", "type": "victoriametrics-logs-datasource"}
    logs |= {"url": stand_in[0], "jsonData": {"derivedFields": [trace]}}
    jaeger = {"name": "Jaeger", "uid": "jaeger", "type": "jaeger", "url": stand_in[0]}
    jaeger |= {"jsonData": {"tracesToLogsV2": {"datasourceUid": "victoria-logs"}}}
    sources = {"datasources": [source, logs, jaeger]}
    provider = {"name": "samples", "folder": "Samples", "type": "file", "options": {"path": f"{folder}/dashboards"}}
    for kind, content in {"datasources": sources, "dashboards": {"providers": [provider]}}.items():
        (folder / "provisioning" / kind).mkdir(parents=True)
        (folder / "provisioning" / kind / "main.yaml").write_text(yaml.safe_dump({"apiVersion": 1} | content))
    shutil.copytree(HERE / "dashboards", folder / "dashboards")
    (folder / "dashboards/logs.json").write_text(json.dumps(dashboards.models()["logs"]))
    (folder / "dashboards/torn.json").write_text('{"uid": "torn"')
    server = Server(f"http://127.0.0.1:{free_port()}", "admin", secrets.token_urlsafe(16))
    (folder / "password").write_text(f"{server.password}\n")
    environment = {
        "GF_SERVER_HTTP_PORT": server.url.rpartition(":")[2],
        "GF_SECURITY_ADMIN_USER": server.user,
        "GF_SECURITY_ADMIN_PASSWORD__FILE": str(folder / "password"),
        "GF_PATHS_PROVISIONING": str(folder / "provisioning"),
        "SHUTDOWN_DELAY_MS": "0",
    }
    with running("node", ["src/main.js"], folder / "log", **environment):
        until("the viewer is healthy", lambda: b'"ok"' in get(f"{server.url}/api/health"), folder / "log")
        yield server
