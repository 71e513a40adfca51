"""Elasticsearch's clients by TLS: each takes the one server whose name its authority vouches for, and no other."""

from __future__ import annotations

import base64
import http.server
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import certificates, stream
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.store_tls import client_context
from conftest import CHECKOUT

sys.path.insert(0, str(CHECKOUT / "images/backup"))

from store_backup.elasticsearch_store import source
from store_backup.repository import Problem

NAME = "elasticsearch.shop.svc"
LONG = 200_000  # bytes, of more than one record of TLS


@pytest.fixture(scope="module")
def authority() -> dict[str, str]:
    """One that signs the server's certificate."""
    return certificates.authority("shop datastores")


class Answers(http.server.BaseHTTPRequestHandler):
    """Elasticsearch, as far as a client of TLS sees it; keeps what it was told."""

    protocol_version = "HTTP/1.1"
    told: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.told.append(self.headers["Authorization"])
        body = b'{"status": "' + b"g" * LONG + b'"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Nothing."""


@pytest.fixture(params=["tls"])
def port(authority: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """Of the server, which speaks TLS, or none where a test asks for that."""
    Answers.told.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.handle_error = lambda *_arguments: None  # type: ignore[method-assign]  # clients that refuse it
    if request.param == "tls":
        made = certificates.certificate([NAME, "localhost"], authority)
        for key in ("tls.crt", "tls.key"):
            (tmp_path / key).write_text(made[key])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def holding(authority: dict[str, str] | None) -> Any:
    """A cluster that has the Secret of Elasticsearch, and nothing else."""
    data = {"ca.crt": base64.b64encode(authority["ca.crt"].encode()).decode()} if authority else {}
    places = {("shop", "elasticsearch-tls"): {"data": data}}
    return SimpleNamespace(get=lambda _kind, namespace, name: places.get((namespace, name)))


@pytest.fixture
def ask(port: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ask the server through the engine's way into a pod, whose bytes arrive in pieces."""

    class Forwarded:
        def __init__(self, *_arguments: Any) -> None:
            self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)

        def send(self, _channel: int, data: bytes) -> None:
            self.socket.sendall(data)

        def messages(self) -> Iterator[tuple[int, bytes]]:
            yield from ((channel, b"\x00\x50") for channel in (stream.DATA, stream.PROBLEM))
            while data := self.socket.recv(1000):
                yield stream.DATA, data

        def close(self) -> None:
            self.socket.close()

    monkeypatch.setattr(stream, "WebSocket", Forwarded)

    def run(cluster: Any, name: str = NAME) -> stream.Reply:
        tls = client_context(cluster, "shop", "elasticsearch"), name
        headers = {"Authorization": "Basic secret"}
        return stream.http_through_pod(cluster, "shop", "elasticsearch-0", 9200, "GET", "/", headers=headers, tls=tls)

    return run


def test_the_engine_asks_whom_the_authority_vouches_for(ask: Any, authority: dict[str, str]) -> None:
    reply = ask(holding(authority))
    assert (reply.status, len(reply.json()["status"])) == (200, LONG)
    assert Answers.told == ["Basic secret"]


@pytest.mark.parametrize("impostor", ["of another authority", "of another name"])
def test_the_engine_tells_an_impostor_no_password(ask: Any, authority: dict[str, str], impostor: str) -> None:
    trusted = certificates.authority("shop datastores") if impostor == "of another authority" else authority
    name = NAME if impostor == "of another authority" else "redis.shop.svc"
    with pytest.raises(EngineError, match=r"GET / on pod shop/elasticsearch-0, port 9200: .*certificate verify failed"):
        ask(holding(trusted), name)
    assert Answers.told == []


@pytest.mark.parametrize("port", ["plain"], indirect=True)
def test_the_engine_tells_a_server_without_tls_no_password(ask: Any, authority: dict[str, str]) -> None:
    with pytest.raises(EngineError, match="port 9200: "):
        ask(holding(authority))
    assert Answers.told == []


@pytest.mark.parametrize("cluster", [holding(None), SimpleNamespace(get=lambda *_arguments: None)])
def test_a_secret_without_an_authority_is_told_by_name(cluster: Any) -> None:
    with pytest.raises(EngineError, match=r"Secret shop/elasticsearch-tls has no ca.crt, .* --tags secrets"):
        client_context(cluster, "shop", "elasticsearch")


@pytest.mark.parametrize("right", [True, False])
def test_a_backup_is_taken_of_no_impostor(
    port: int, authority: dict[str, str], right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"CA": (authority if right else certificates.authority("another"))["ca.crt"], "PASSWORD": "secret"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setenv(f"ELASTICSEARCH_{name}_FILE", str(tmp_path / name))
    monkeypatch.setenv("ELASTICSEARCH_URL", f"https://localhost:{port}")
    if right:
        assert len(source().ask("GET", "/")["status"]) == LONG
    else:
        with pytest.raises(Problem, match="certificate verify failed"):
            source().ask("GET", "/")
    assert len(Answers.told) == right
