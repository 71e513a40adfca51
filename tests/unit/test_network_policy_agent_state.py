"""What the enforcer of the embedded cluster knows, while the way to its API breaks in every manner."""

from __future__ import annotations

import datetime
import http.server
import importlib.util
import ipaddress
import json
import os
import queue
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PROGRAM = Path(__file__).resolve().parents[2] / "roles/local_cluster/files/network_policy_agent.py"
_spec = importlib.util.spec_from_file_location("network_policy_agent_state", PROGRAM)
agent = importlib.util.module_from_spec(_spec)
sys.modules["network_policy_agent_state"] = agent
_spec.loader.exec_module(agent)

CUT = None  # in a stream: the connection is closed


def certificate(folder: Path) -> Path:
    """One certificate with its key, which is its own authority, the server's and the client's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    file = folder / "client.pem"
    file.write_bytes(
        made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


class Api(http.server.ThreadingHTTPServer):
    """Lists and streams what a test gives it, to clients that have the certificate."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        file = certificate(folder)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=file)
        context.load_cert_chain(file)
        context.verify_mode = ssl.CERT_REQUIRED
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.listed: dict[str, list[dict[str, Any]]] = {path: [] for path in agent.RESOURCES.values()}
        self.streams: dict[str, queue.Queue[dict[str, Any] | None]] = {path: queue.Queue() for path in self.listed}
        self.refusal: int | None = None  # the status that all are answered with
        self.asked: queue.Queue[str] = queue.Queue()
        self.text = yaml.safe_dump(
            {
                "clusters": [
                    {
                        "cluster": {
                            "server": f"https://127.0.0.1:{self.server_address[1]}",
                            "certificate-authority-data": agent.base64.b64encode(file.read_bytes()).decode(),
                        }
                    }
                ],
                "users": [{"user": {"client-certificate": str(file), "client-key": str(file)}}],
            }
        )
        self.kubeconfig = folder / "kubelet.conf"
        self.kubeconfig.write_text(self.text)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def say(self, resource: str, *events: dict[str, Any] | None) -> None:
        """Send events to who watches."""
        for event in events:
            self.streams[agent.RESOURCES[resource]].put(event)

    def wait_for(self, words: str) -> None:
        """Until somebody asks for it (anew)."""
        while words not in self.asked.get(timeout=20):
            pass


class Answer(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Api

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.asked.put(self.path)
        self.send_response(self.server.refusal or 200)
        self.end_headers()
        if self.server.refusal:
            self.wfile.write(json.dumps({"kind": "Status", "metadata": {}, "code": self.server.refusal}).encode())
            return
        if not query:
            body = {"metadata": {"resourceVersion": "1"}, "items": self.server.listed[path]}
            self.wfile.write(json.dumps(body).encode())
            return
        while event := self.server.streams[path].get():
            self.wfile.write(json.dumps(event).encode() + b"\n")

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """An API server that a test can break."""
    monkeypatch.setattr(agent, "AGAIN", 0.02)
    server = Api(tmp_path)
    yield server
    for resource in agent.RESOURCES:
        server.say(resource, CUT)
    server.shutdown()
    server.server_close()


class Node:
    """An enforcer and the tables it has loaded."""

    def __init__(self, api: Api, refuse: Callable[[], bool] = lambda: False) -> None:
        self.tables: list[str] = []
        self.refuse = refuse
        self.state = agent.State(agent.Api(api.kubeconfig))
        self.agent = agent.Agent(self.state, "node1", "10.244.0.0/16", self.load)
        self.state.watch()
        threading.Thread(target=self.agent.run, daemon=True).start()

    def load(self, text: str) -> None:
        if self.refuse():
            raise subprocess.CalledProcessError(1, "nft", stderr="no")
        self.tables.append(text)

    def wait_for(self, right: Callable[[str], bool]) -> None:
        """Until the newest table is right."""
        deadline = time.monotonic() + 20
        while not (self.tables and right(self.tables[-1])):
            assert time.monotonic() < deadline, self.tables[-1:]
            time.sleep(0.01)


def pod(number: int) -> dict[str, Any]:
    """A pod of the node."""
    return {
        "metadata": {"uid": f"uid-{number}", "name": f"pod-{number}", "namespace": "shop"},
        "spec": {"nodeName": "node1", "containers": [{}]},
        "status": {"phase": "Running", "podIPs": [{"ip": f"10.244.0.{number}"}]},
    }


def has(*numbers: int) -> Callable[[str], bool]:
    """Whether a table knows these pods and no others."""
    known = ", ".join(f"10.244.0.{number}" for number in numbers)
    return lambda text: f"set known {{ type ipv4_addr; elements = {{ {known} }} }}" in text


def test_what_comes_by_the_watch_is_applied(api: Api) -> None:
    api.listed["/api/v1/pods"] = [pod(2)]
    node = Node(api)
    node.wait_for(has(2))
    api.say("pods", {"type": "ADDED", "object": pod(3)})
    node.wait_for(has(2, 3))
    api.say("pods", {"type": "DELETED", "object": pod(2)})
    node.wait_for(has(3))


GONE = {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}


@pytest.mark.parametrize("end", [CUT, GONE], ids=["cut", "410"])
def test_a_lost_watch_is_made_good(api: Api, end: dict[str, Any] | None) -> None:
    """What has come and gone while nobody watched is learned by listing again."""
    api.listed["/api/v1/pods"] = [pod(2), pod(3)]
    node = Node(api)
    node.wait_for(has(2, 3))
    node.state.told["uid-2"] = "10.244.0.2"
    api.listed["/api/v1/pods"] = [pod(3), pod(4)]
    api.say("pods", end)
    node.wait_for(has(3, 4))
    assert not node.state.told


def test_a_silent_watch_is_taken_for_lost(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that lost its other end without a word is given up."""
    monkeypatch.setattr(agent, "SILENCE", 0.3)
    api.listed["/api/v1/pods"] = [pod(2)]
    node = Node(api)
    node.wait_for(has(2))
    api.listed["/api/v1/pods"] = [pod(3)]
    node.wait_for(has(3))


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refusal_is_no_empty_list(api: Api, status: int) -> None:
    """While the API refuses, the former table stays; then it goes on."""
    api.listed["/api/v1/pods"] = [pod(2)]
    node = Node(api)
    node.wait_for(has(2))
    before = len(node.tables)
    api.refusal = status
    api.listed["/api/v1/pods"] = [pod(3)]
    for resource in agent.RESOURCES:
        api.say(resource, CUT)
    for _ in range(5):
        api.wait_for("/api/v1/pods")
    assert len(node.tables) == before
    api.refusal = None
    node.wait_for(has(3))


def test_nothing_is_loaded_before_everything_was_listed(api: Api) -> None:
    """A table without the policies would be open."""
    api.refusal = 500
    node = Node(api)
    for _ in range(5):
        api.wait_for("networkpolicies")
    assert not node.tables
    api.refusal = None
    node.wait_for(lambda _: True)


@pytest.mark.parametrize("share", [0, 0.5, 0.9, None], ids=["empty", "half", "most", "missing"])
def test_a_kubeconfig_that_is_being_written_is_awaited(api: Api, share: float | None) -> None:
    if share is None:
        api.kubeconfig.unlink()
    else:
        api.kubeconfig.write_text(api.text[: int(len(api.text) * share)])
    with pytest.raises(OSError, match=r"not whole|No such file|PEM|certificate|SSL"):
        agent.Api(api.kubeconfig).get("/api/v1/pods")
    node = Node(api)
    api.kubeconfig.write_text(api.text)
    node.wait_for(lambda _: True)


def test_rules_that_nft_refuses_are_tried_again(api: Api) -> None:
    """Without a further change."""
    answers = iter([True, True])
    api.listed["/api/v1/pods"] = [pod(2)]
    Node(api, lambda: next(answers, False)).wait_for(has(2))


def test_a_restart_comes_to_the_same_table(api: Api) -> None:
    api.listed["/api/v1/pods"] = [pod(2), pod(3)]
    first = Node(api)
    first.wait_for(has(2, 3))
    second = Node(api)
    second.wait_for(has(2, 3))
    assert first.tables[-1] == second.tables[-1]


def test_what_it_does_not_understand_ends_it(api: Api, tmp_path: Path) -> None:
    """The supervisor starts it anew; with a dead thread it would enforce a former state for ever."""
    api.listed["/api/v1/pods"] = [{"metadata": None}]
    words = [sys.executable, str(PROGRAM), "node1", "10.244.0.0/16", str(api.kubeconfig), str(tmp_path / "socket")]
    nowhere = os.environ | {"PATH": str(tmp_path)}  # it shall find no nft, whatever happens
    ended = subprocess.run(words, env=nowhere, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "TypeError" in ended.stderr
