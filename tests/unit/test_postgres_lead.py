"""The program that lets PostgreSQL's first member lead before a roll, against a server that speaks Patroni's API."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import certificates
from conftest import load_program

lead = load_program("images/postgres/files/postgres-lead")
PASSWORD = "patronis"


class Patroni(ThreadingHTTPServer):
    """Three members, the last of which leads; the second is synchronous."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.settings: dict[str, Any] = {"synchronous_mode": True, "synchronous_node_count": 1}
        self.leader, self.synchronous, self.timeline = "postgres-2", ["postgres-1"], 7
        self.states = dict.fromkeys(("postgres-0", "postgres-1", "postgres-2"), "running")
        self.lag: dict[str, Any] = {}
        self.stubborn = False  # no other member becomes synchronous
        self.refusal: tuple[int, str] | None = None  # of a switchover
        self.lost_answer = False
        self.late: set[str] = set()  # do not follow a new leader
        self.seen: list[tuple[str, str, Any]] = []

    def cluster(self) -> dict[str, Any]:
        members = []
        for name, state in self.states.items():
            role = "sync_standby" if name in self.synchronous else "replica"
            timeline = self.timeline - (name in self.late)
            member = {"name": name, "state": state, "timeline": timeline, "lag": self.lag.get(name, 0), "role": role}
            members.append(member | ({"role": "leader"} if name == self.leader else {}))
        return {"members": members}

    def patch(self, body: dict[str, Any]) -> None:
        self.settings |= body
        if body["synchronous_node_count"] == 2 and not self.stubborn:
            self.synchronous = [name for name in self.states if name != self.leader]

    def switch(self, body: dict[str, Any]) -> tuple[int, str]:
        if self.refusal:
            return self.refusal
        if body["candidate"] not in self.synchronous:
            return 412, "candidate name does not match with sync_standby"
        self.leader, self.timeline = body["candidate"], self.timeline + 1
        return 200, "Successfully switched over"


class Handler(BaseHTTPRequestHandler):
    """Requests to it."""

    server: Patroni

    def answer(self) -> None:
        """Answer any request."""
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(text) if text else None
        self.server.seen.append((self.command, self.path, body))
        token = base64.b64encode(f"patroni:{PASSWORD}".encode()).decode()
        status, found = 200, ""
        if self.command != "GET" and self.headers["Authorization"] != f"Basic {token}":
            status = 401
        elif (self.command, self.path) == ("GET", "/cluster"):
            found = json.dumps(self.server.cluster())
        elif self.path == "/config":
            if body:
                self.server.patch(body)
            found = json.dumps(self.server.settings)
        elif self.path == "/switchover":
            status, found = self.server.switch(body)
            if self.server.lost_answer:
                self.connection.close()
                return
        self.send_response(status)
        self.end_headers()
        self.wfile.write(found.encode())

    do_GET = do_PATCH = do_POST = answer

    def log_message(self, *_arguments: Any) -> None:
        """Requests are no news."""


@pytest.fixture
def patroni(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Patroni]:
    """One that the program finds in its pod, by TLS, and no time to lose."""
    server = Patroni()
    made = certificates.authority("test")
    for name, text in (made | certificates.certificate(["localhost"], made)).items():
        (tmp_path / name).write_text(text)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    configuration = tmp_path / "patroni.json"
    login = {"username": "patroni", "password": PASSWORD}
    api = {"authentication": login, "cafile": str(tmp_path / "ca.crt")}
    configuration.write_text(json.dumps({"restapi": api}))
    monkeypatch.setenv("PATRONI_NAME", "postgres-2")
    monkeypatch.setattr("sys.argv", ["postgres-lead"])
    for name, value in {
        "API": f"localhost:{server.server_address[1]}",
        "CONFIGURATION": configuration,
        "PAUSE": 0.01,
        "SYNCHRONOUS": 0.2,
        "DONE": 0.2,
        "FOLLOW": 0.2,
    }.items():
        monkeypatch.setattr(lead, name, value)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def said(patroni: Patroni, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Run it; returns what it says."""

    def run() -> str:
        lead.main()
        return capsys.readouterr().out.strip()

    return run


def changes(patroni: Patroni) -> list[tuple[str, Any]]:
    return [(path, body) for method, path, body in patroni.seen if method != "GET"]


MOVE = ("/switchover", {"leader": "postgres-2", "candidate": "postgres-0"})
MORE, LESS = ("/config", {"synchronous_node_count": 2}), ("/config", {"synchronous_node_count": 1})


def test_a_member_that_is_not_synchronous_becomes_it_first(patroni: Patroni, said: Callable[[], str]) -> None:
    assert said() == "postgres-0 leads after postgres-2"
    assert changes(patroni) == [MORE, MOVE, LESS]
    assert patroni.leader == "postgres-0"


def test_a_synchronous_member_just_takes_over(patroni: Patroni, said: Callable[[], str]) -> None:
    patroni.synchronous = ["postgres-0"]
    assert said() == "postgres-0 leads after postgres-2"
    assert changes(patroni) == [MOVE]


def test_without_synchronous_members_too(patroni: Patroni, said: Callable[[], str]) -> None:
    patroni.settings = {"synchronous_mode": False}
    patroni.synchronous = ["postgres-0"]
    assert said() == "postgres-0 leads after postgres-2"
    assert changes(patroni) == [MOVE]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"leader": "postgres-0"}, "postgres-0 leads already"),
        ({"leader": ""}, "no member leads, so there is nothing to move"),
        ({"states": {"postgres-2": "running"}}, "postgres-0 is not there: postgres-2 goes on leading"),
        (
            {"states": {"postgres-0": "starting", "postgres-2": "running"}},
            "postgres-0 cannot lead (starting, lag 0): postgres-2 goes on leading",
        ),
        (
            {"lag": {"postgres-0": "unknown"}},
            "postgres-0 cannot lead (running, lag unknown): postgres-2 goes on leading",
        ),
        ({"lag": {"postgres-0": lead.LAG + 1}}, "postgres-0 cannot lead (running, lag 16777217): postgres-2 goes on"),
        ({"late": {"postgres-0"}}, "postgres-0 cannot lead (running, lag 0): postgres-2 goes on leading"),
        ({"settings": {"pause": True}}, "Patroni is paused: postgres-2 goes on leading"),
    ],
)
def test_where_nothing_can_be_done_it_says_so(
    patroni: Patroni, said: Callable[[], str], state: dict[str, Any], words: str
) -> None:
    for name, value in state.items():
        setattr(patroni, name, value)
    assert said().startswith(words)
    assert changes(patroni) == []


def test_a_member_alone(patroni: Patroni, said: Callable[[], str]) -> None:
    patroni.states, patroni.leader = {"postgres-0": "running"}, "postgres-0"
    assert said() == "postgres-0 leads already"


def test_a_member_that_does_not_become_synchronous(patroni: Patroni, said: Callable[[], str]) -> None:
    patroni.stubborn = True
    assert said() == "postgres-0 has not become a synchronous member in 0.2 s: postgres-2 goes on leading"
    assert changes(patroni) == [MORE, LESS]


def test_a_refusal_is_told(patroni: Patroni, said: Callable[[], str]) -> None:
    patroni.refusal = (503, "Switchover failed")
    with pytest.raises(SystemExit, match="Patroni answers POST /switchover with 503: Switchover failed"):
        said()
    assert changes(patroni) == [MORE, MOVE, LESS]


def test_somebody_else_leads_in_the_end(patroni: Patroni, said: Callable[[], str]) -> None:
    patroni.refusal = (200, "switched over to another")
    with pytest.raises(SystemExit, match="postgres-2 leads after a switchover from postgres-2 to postgres-0"):
        said()


def test_a_lost_answer_is_no_refusal(patroni: Patroni, said: Callable[[], str]) -> None:
    patroni.lost_answer = True
    assert said() == "postgres-0 leads after postgres-2"
    assert changes(patroni) == [MORE, MOVE, LESS]


def test_who_does_not_follow_is_named(patroni: Patroni, said: Callable[[], str]) -> None:
    real = patroni.switch

    def switch(body: dict[str, Any]) -> tuple[int, str]:
        patroni.late = {"postgres-1"}
        return real(body)

    patroni.switch = switch
    assert said() == "postgres-0 leads after postgres-2; not following yet: postgres-1"


def test_a_wrong_password_is_told(patroni: Patroni, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_postgres_lead.PASSWORD", "another")
    with pytest.raises(SystemExit, match="Patroni answers PATCH /config with 401"):
        said()
    assert patroni.leader == "postgres-2"


def test_no_patroni(patroni: Patroni, said: Callable[[], str]) -> None:
    patroni.shutdown()
    patroni.server_close()
    with pytest.raises(SystemExit, match=r"postgres-lead: .*refused"):
        said()
