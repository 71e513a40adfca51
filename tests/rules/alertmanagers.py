"""Alertmanager as the role deploys it, on this machine, and receivers that keep what they are told."""

from __future__ import annotations

import base64
import email
import json
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "render"))

import rendering
import yaml

PATIENCE = 30  # seconds until something that should happen has not
# Quicker than in the cluster, for members on one machine.
HASTE = ("--cluster.gossip-interval=50ms", "--cluster.peer-timeout=2s")


def rendered(inventory: str, **overrides: Any) -> tuple[dict[str, str], list[str]]:
    """The files of the role's ConfigMap by name, and the arguments of its container.

    :param overrides: variables that win over the inventory's.
    """
    (role,) = rendering.render_inventory(inventory, roles=["alertmanager"], **overrides)
    bodies = {item.kind: item.body for item in role.manifests}
    (container,) = bodies["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    return bodies["ConfigMap"]["data"], container["args"]


def written(files: dict[str, str], folder: Path) -> Path:
    """Write the configuration below a folder that stands for /etc/alertmanager, and return its main file."""
    place = folder / "config"
    place.mkdir(parents=True)
    for name, text in files.items():
        (place / name).write_text(text.replace("/etc/alertmanager/", f"{folder}/"), encoding="utf-8")
    return place / "alertmanager.yml"


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """The first true answer of a condition.

    :raises AssertionError: with `what` was waited for, when PATIENCE is over.
    """
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE} s in vain: {what}"
        time.sleep(0.05)
    return answer


def free_port() -> int:
    """A port of loopback that nobody uses, for TCP and UDP."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Webhook:
    """An HTTP server that keeps what is posted to it: path, headers and content."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                received.append((self.path, dict(self.headers), body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def at(self, path: str) -> list[dict[str, Any]]:
        """What was posted to a path, oldest first."""
        return [body for place, _, body in self.received if place == path]

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


class MailServer:
    """An SMTP server, as much of one as a client needs, that keeps logins and messages."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.logins: list[tuple[str, str]] = []
        messages, logins = self.messages, self.logins

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self._say("220 mail")
                while line := self.rfile.readline().decode().strip():
                    word = line.split()[0].upper()
                    if word == "AUTH":
                        _, user, password = base64.b64decode(line.split()[2]).decode().split("\0")
                        logins.append((user, password))
                        self._say("235 welcome")
                    elif word == "DATA":
                        self._say("354 go on")
                        lines = []
                        while (text := self.rfile.readline()) != b".\r\n":
                            lines.append(text.removeprefix(b"."))
                        messages.append(email.message_from_bytes(b"".join(lines)))
                        self._say("250 kept")
                    elif word == "QUIT":
                        self._say("221 bye")
                        return
                    else:
                        self._say("250-mail\r\n250 AUTH PLAIN" if word == "EHLO" else "250 ok")

            def _say(self, text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


class Member:
    """One Alertmanager with a storage of its own."""

    def __init__(self, folder: Path, name: str, arguments: list[str]) -> None:
        self._log = folder / f"{name}.log"
        self._port = free_port()
        self._arguments = [
            "prometheus-alertmanager",
            *arguments,
            f"--storage.path={folder / name}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it is ready.

        :raises AssertionError: with its log, where it ends instead.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._arguments, stdout=log, stderr=log)
        wait_until(self._ready, f"{self._log.stem} is ready")

    def _ready(self) -> bool:
        assert self._process
        assert self._process.poll() is None, self._log.read_text()
        try:
            self.get("/-/ready", text=True)
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """Stop it as the kubelet does."""
        if self._process:
            self._process.terminate()
            self._process.wait(PATIENCE)
            self._process = None

    def _ask(self, path: str, body: Any = None, text: bool = False) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            content = answer.read().decode()
        return content if text or not content else json.loads(content)

    def get(self, path: str, text: bool = False) -> Any:
        """What it answers to a GET, from JSON unless `text`."""
        return self._ask(path, text=text)

    def fire(self, *alerts: dict[str, str], annotations: dict[str, str] | None = None) -> None:
        """Tell it of firing alerts, each by its labels."""
        self._ask("/api/v2/alerts", [{"labels": labels, "annotations": annotations or {}} for labels in alerts])

    def silence(self, **labels: str) -> str:
        """Silence alerts by their labels for an hour, and return the silence's id."""
        now = datetime.now(UTC)
        matchers = [{"name": name, "value": value, "isRegex": False} for name, value in labels.items()]
        silence = {"matchers": matchers, "startsAt": now.isoformat(), "endsAt": (now + timedelta(hours=1)).isoformat()}
        return self._ask("/api/v2/silences", silence | {"createdBy": "a test", "comment": "a test"})["silenceID"]

    def silences(self) -> dict[str, str]:
        """The states of its silences by id."""
        return {item["id"]: item["status"]["state"] for item in self.get("/api/v2/silences")}

    def status(self, **labels: str) -> dict[str, Any]:
        """The state of the one alert with these labels, and what silences or inhibits it; empty where there is none."""
        found = [item for item in self.get("/api/v2/alerts") if item["labels"].items() >= labels.items()]
        assert len(found) < 2, found
        return found[0]["status"] if found else {}

    def metric(self, name: str) -> float:
        """The sum of a metric's series."""
        lines = self.get("/metrics", text=True).splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def members(folder: Path, inventory: str = "local", **variables: Any) -> list[Member]:
    """The members that the role deploys with these variables, not started yet; their files are below the folder."""
    files, arguments = rendered(inventory, **variables)
    main = written(files, folder)
    count = int(variables.get("alertmanager_replicas", 1))
    mesh = [free_port() for _ in range(count)]

    def here(argument: str, number: int) -> str:
        flag, _, value = argument.partition("=")
        if flag == "--config.file":
            return f"{flag}={main}"
        if flag == "--cluster.peer":
            return f"{flag}=127.0.0.1:{mesh[int(value.split('.')[0].removeprefix('alertmanager-'))]}"
        if flag in ("--cluster.listen-address", "--cluster.advertise-address") and value:
            return f"{flag}=127.0.0.1:{mesh[number]}"
        return argument

    kept = [argument for argument in arguments if not argument.startswith("--storage.path=")]
    return [
        Member(folder, f"alertmanager-{number}", [*(here(argument, number) for argument in kept), *HASTE])
        for number in range(count)
    ]


def configuration(files: dict[str, str]) -> dict[str, Any]:
    """The main file of the configuration, parsed."""
    return yaml.safe_load(files["alertmanager.yml"])
