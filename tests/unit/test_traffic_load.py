"""What the drill of the traffic makes of its tools' output; the drill itself needs a cluster."""

from __future__ import annotations

import json
import random
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import certificates

sys.path.insert(0, str(Path(__file__).parents[1] / "traffic"))

from cluster import answered
from shop import HOST, served, walk

CLIENT = Path(__file__).parents[1] / "traffic/client.py"
SECOND = 10**9
# As `vegeta encode -to=csv` writes them: sent, status, time, bytes, error, body, attack, number, method, URL.
LINE = "{sent},{code},{took},0,12,{error},,,{number},{method},https://shop.example.com:30443{path},eyJ9"


def lines(*results: tuple[int, int, str]) -> str:
    """Vegeta's CSV: of each request the status, the milliseconds, the error; one a second."""
    return "".join(
        LINE.format(
            sent=number * SECOND, code=code, took=ms * 10**6, error=error, number=number, method="GET", path="/"
        )
        + "\n"
        for number, (code, ms, error) in enumerate(results)
    )


def test_percentiles_and_rate() -> None:
    found = served(lines(*[(200, ms, "") for ms in range(1, 101)]))
    assert (found.percentile(0.5), found.percentile(0.99)) == (50, 99)
    assert found.seconds == pytest.approx(99.1)  # from the first that was sent to the last answer
    assert found.rate == pytest.approx(100 / 99.1)
    assert found.failed == []


@pytest.mark.parametrize("code", [0, 400, 403, 404, 429, 502, 503])
def test_whatever_is_not_2xx_or_3xx_has_failed(code: int) -> None:
    error = '"Get ""https://shop.example.com:30443/"": EOF"'
    found = served(lines((200, 1, ""), (303, 1, ""), (code, 1, error)))
    assert found.failed == [f'{code} GET https://shop.example.com:30443/: Get "https://shop.example.com:30443/": EOF']


def test_a_load_that_sent_nothing_is_no_success() -> None:
    with pytest.raises(ValueError, match="no request"):
        served("")


def test_a_customer_sees_every_route_and_buys() -> None:
    (*looks, purchase) = walk(random.Random(1), ["p-1"])
    assert [target["url"].removeprefix(f"https://{HOST}:30443").partition("?")[0] for target in looks] == [
        "/",
        "/search",
        "/products/p-1",
        "/api/products",
        "/api/search",
        "/api/products/p-1",
    ]
    assert purchase["method"] == "POST"


def test_answers_are_customers_and_no_probes() -> None:
    name, line = "http_request_duration_seconds", '{{method="GET",route="{}",status="200"{}}} {}'
    lines = [
        f"# TYPE {name} histogram",
        f"{name}_bucket" + line.format("/", ',le="0.5"', 7),
        f"{name}_sum" + line.format("/", "", 1.5),
        f"{name}_count" + line.format("/", "", 7),
        f"{name}_count" + line.format("/api/*", "", 20),
        f"{name}_count" + line.format("/api/health", "", 300),
        f"{name}_count" + line.format("/health/ready", "", 300),
        f"{name}_count" + line.format("/metrics", "", 300),
    ]
    assert answered("\n".join(lines) + "\n") == 27


class Handler(BaseHTTPRequestHandler):
    """Answers with what it was asked."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if body == "break":
            return
        text = json.dumps({"path": self.path, "body": body, "mark": self.headers["X-Mark"]}).encode()
        self.send_response(403)
        self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate with its key, and that of its authority."""
    made = certificates.certificate([name], certificates.authority(f"of {name}"))
    own, authority = folder / f"{name}.pem", folder / f"{name}.ca.crt"
    own.write_text(made["tls.crt"] + made["tls.key"])
    authority.write_text(made["ca.crt"])
    return own, authority


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A shop on a port, and who signs for it."""
    file, authority = certificate(tmp_path, HOST)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.socket = context.wrap_socket(found.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found.server_port, authority
        found.shutdown()


def ask(port: int, authority: Path, bodies: list[str]) -> list[dict]:
    """Send these by the drill's client."""
    requests = [
        {"method": "POST", "path": f"/{number}", "headers": {"X-Mark": str(number)}, "body": body}
        for number, body in enumerate(bodies)
    ]
    words = [sys.executable, str(CLIENT), "127.0.0.1", str(port), HOST, str(authority), "5"]
    done = subprocess.run(words, input=json.dumps(requests), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_answers_come_in_the_order_of_their_requests(server: tuple[int, Path]) -> None:
    answers = ask(*server, [f"body {number}" for number in range(20)])
    assert [json.loads(answer["text"]) for answer in answers] == [
        {"path": f"/{number}", "body": f"body {number}", "mark": str(number)} for number in range(20)
    ]
    assert {(answer["status"], answer["headers"]["retry-after"]) for answer in answers} == {(403, "7")}


def test_a_connection_that_breaks_is_told_and_nothing_is_sent_again(server: tuple[int, Path]) -> None:
    broken, whole = ask(*server, ["break", "whole"])
    assert (broken["status"], broken["text"].partition(":")[0]) == (0, "RemoteDisconnected")
    assert whole["status"] == 403


def test_a_certificate_of_another_authority_is_refused(server: tuple[int, Path], tmp_path: Path) -> None:
    (answer,) = ask(server[0], certificate(tmp_path, "other.example.com")[1], ["anything"])
    assert answer["status"] == 0
    assert "CERTIFICATE_VERIFY_FAILED" in answer["text"]
