"""The role's own configuration in Debian's nginx on the loopback, without privileges, and applications behind it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "tests/render"))

import programs  # noqa: E402
import rendering  # noqa: E402

# The pod's user.
USER = 65534
Start = Callable[..., AbstractContextManager["Firewall"]]


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Application(ThreadingHTTPServer):
    """Stands in for API or web: answers every request, and keeps it."""

    daemon_threads = True

    def __init__(self, name: str) -> None:
        """Serve at once, on a port of the loopback."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.name, self.seen = name, []
        self.held: threading.Event | None = None  # answers wait for it
        self.dropped = 0  # requests that are read, and whose connections are then cut off
        self.asked = threading.Semaphore(0)
        self.address = f"127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """One connection of an application."""

    protocol_version = "HTTP/1.1"
    server: Application

    def handle_one_request(self) -> None:
        """Any method."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seen = {"method": self.command, "path": self.path, "body": body, "peer": self.client_address}
        self.server.seen.append(seen | {"headers": {key.lower(): value for key, value in self.headers.items()}})
        self.server.asked.release()
        if self.server.dropped:
            self.server.dropped -= 1
            self.close_connection = True
            return
        if self.server.held:
            self.server.held.wait(30)
        answer = json.dumps({"from": self.server.name}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


@dataclass
class Firewall:
    """One that runs."""

    port: int
    health_port: int
    process: subprocess.Popen[bytes]
    folder: Path
    api: Application
    web: Application
    api_canary: Application
    web_canary: Application
    lines: list[str] = field(default_factory=list)  # of its standard output
    errors: list[str] = field(default_factory=list)
    readers: list[threading.Thread] = field(default_factory=list)

    def send(self, raw: bytes) -> tuple[int, bytes]:
        """Send bytes as they are; status and whole answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            with contextlib.suppress(
                BrokenPipeError, ConnectionResetError
            ):  # refused early, it is answered all the same
                connection.sendall(raw)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    answer += part
        status = re.match(rb"HTTP/1\.[01] (\d+)", answer)
        return int(status[1]) if status else 0, answer

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request by a browser: status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        given = {"Host": "shop.example.com", "User-Agent": "Mozilla/5.0 Firefox/128.0", "Accept": "*/*"} | named
        with contextlib.closing(connection):
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()

    def end(self, number: int = signal.SIGQUIT) -> int:
        """End it, and have its whole output read; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        for reader in self.readers:
            reader.join(60)
        return code

    def refused(self) -> list[dict[str, Any]]:
        """What it says of requests that were refused, after its end."""
        return [json.loads(line) for line in self.errors if line.startswith("{")]

    def findings(self) -> dict[str, set[int]]:
        """Rules that matched, by the request's id, after its end."""
        found: dict[str, set[int]] = {}
        for line in self.lines:
            transaction = json.loads(line)["transaction"]
            rules = {int(message["details"]["ruleId"]) for message in transaction["messages"]}
            found.setdefault(transaction["unique_id"], set()).update(rules)
        return found


@pytest.fixture(scope="session")
def installed() -> Iterator[programs.Programs]:
    """Programs and cases where the pod's user can read them."""
    cached = programs.installed()
    folder = Path(tempfile.mkdtemp(prefix="citadelbuy-firewall-"))
    folder.chmod(0o755)
    shutil.copytree(cached.root, folder / "root", symlinks=True, ignore=shutil.ignore_patterns("*.a", "include"))
    yield programs.Programs(folder / "root", cached.cases)
    shutil.rmtree(folder)


@pytest.fixture
def start(installed: programs.Programs) -> Start:
    """Start firewalls with variables of the role, or without one of its exclusions."""

    @contextlib.contextmanager
    def started(without: int | None = None, **variables: Any) -> Iterator[Firewall]:
        folder = Path(tempfile.mkdtemp(prefix="citadelbuy-firewall-"))
        applications = tuple(Application(name) for name in ("api", "web", "api-canary", "web-canary"))
        try:
            files = configuration([application.address for application in applications], without, variables)
            firewall = launch(installed.root, folder, applications, files)
            try:
                yield firewall
            finally:
                if firewall.process.poll() is None:
                    firewall.end(signal.SIGTERM)
        finally:
            for application in applications:
                if application.held:
                    application.held.set()
                application.shutdown()
                application.server_close()
            shutil.rmtree(folder)

    return started


def configuration(addresses: list[str], without: int | None, variables: dict[str, Any]) -> dict[str, str]:
    """The role's ConfigMap; the number of an exclusion leaves that one out."""
    api, web, api_canary, web_canary = addresses
    ours = {
        "platform_firewall": True,
        "firewall_api_address": api,
        "firewall_web_address": web,
        "firewall_canary_api_address": api_canary,
        "firewall_canary_web_address": web_canary,
        "firewall_trusted_proxies": ["127.0.0.1/32"],
    }
    rendered = rendering.render_inventory("local", ["firewall"], **ours | variables)
    (found,) = [manifest for one in rendered for manifest in one.manifests if manifest.kind == "ConfigMap"]
    files = dict(found.body["data"])
    if without is not None:
        lines = files["modsecurity.conf"].splitlines(keepends=True)
        left = [line for line in lines if f'"id:{10100 + without},' not in line]
        assert len(left) == len(lines) - 1
        files["modsecurity.conf"] = "".join(left)
    return files


def launch(root: Path, folder: Path, applications: tuple[Application, ...], files: dict[str, str]) -> Firewall:
    """Write the configuration, start nginx as the pod does, and wait until it serves."""
    port, health_port = free_port(), free_port()
    temporary = folder / "tmp"
    places = {"/tmp": temporary, "/etc/firewall": folder, "/etc": root / "etc", "/usr": root / "usr"}
    for file, text in files.items():
        text = re.sub(rf"(?<=\s)(?:{'|'.join(places)})\b", lambda match: str(places[match[0]]), text)
        text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};")
        text = text.replace("listen 8081;", f"listen 127.0.0.1:{health_port};")
        (folder / file).write_text(text)
    folder.chmod(0o755)
    temporary.mkdir()
    os.chown(temporary, USER, USER)
    output, errors = os.pipe(), os.pipe()
    for _, end in (output, errors):
        os.fchown(end, USER, USER)  # as a container's runtime does
    process = subprocess.Popen(
        ["sh", str(folder / "start.sh")],
        env={
            "PATH": f"{folder}/bin:{root}/usr/sbin:/usr/bin:/bin",
            "LD_LIBRARY_PATH": f"{root}/usr/lib/{os.uname().machine}-linux-gnu",
        },
        stdout=output[1],
        stderr=errors[1],
        user=USER,
        group=USER,
        extra_groups=[],
        cwd="/",
    )
    firewall = Firewall(port, health_port, process, folder, *applications)
    for (ours, theirs), lines in ((output, firewall.lines), (errors, firewall.errors)):
        os.close(theirs)
        reader = threading.Thread(target=read, args=(ours, lines), daemon=True)
        reader.start()
        firewall.readers.append(reader)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", health_port), timeout=1):
            return firewall
        time.sleep(0.02)
    process.kill()
    firewall.readers[1].join(5)
    raise RuntimeError("nginx does not serve:\n" + "".join(firewall.errors))


def read(end: int, lines: list[str]) -> None:
    """Read a pipe to its end; what a client sent is quoted in it as it is."""
    with os.fdopen(end, errors="replace") as stream:
        lines.extend(stream)
