"""How PostgreSQL's image uses a certificate: whom it lets in, whom it believes, and when it reads a new one."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import threading
import urllib.error
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import certificates
from conftest import load_program

LOGIN = {"username": "patroni", "password": "of-the-superuser"}

STANDS = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from conftest import load_program
program = load_program("images/postgres/files/docker-entrypoint.py")
program.CYCLE = 1
class Ha:
    def run_cycle(self, how):
        return how()
program.end_where_it_stands(Ha)
print(Ha().run_cycle(lambda: "goes on"), flush=True)
def waits_for_nobody():
    threading.Event().wait(60)
Ha().run_cycle(waits_for_nobody)
print("has waited", flush=True)
"""

WATCH = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import load_program
program = load_program("images/postgres/files/docker-entrypoint.py")
program.CERTIFICATE_PAUSE = 0.05
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
program.watch_certificate()
told = lambda seconds: bool(signal.sigtimedwait({signal.SIGHUP}, seconds))
print("unchanged:", told(0.5), flush=True)
# As the kubelet does it: all files at once, by another folder.
folder = Path(os.environ["POSTGRES_CERTIFICATE"])
for turn in ("second", "third"):
    (folder / turn).mkdir()
    (folder / turn / "tls.crt").write_text(turn)
    (folder / "new").symlink_to(turn)
    (folder / "new").rename(folder / "..data")
    print(turn, told(10), told(0.5), flush=True)
os.killpg(0, signal.SIGKILL)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The entrypoint, in an environment with a certificate."""
    for name, value in {
        "POSTGRES_CERTIFICATE": str(tmp_path),
        "POSTGRES_PASSWORD": "of-the-application",
        "POSTGRES_SUPERUSER_PASSWORD": "of-the-superuser",
        "POSTGRES_REPLICATION_PASSWORD": "of-the-replication",
        "PGDATA": str(tmp_path / "pgdata"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PG_MAJOR", "17")
    found = load_program("images/postgres/files/docker-entrypoint.py")
    monkeypatch.setattr(found, "CONFIGURATION", tmp_path / "patroni.json")
    return found


def test_the_network_is_let_in_by_tls_alone(program, monkeypatch):
    def ways() -> set[str]:
        return {rule.split()[0] for rule in program.patroni_configuration([])["postgresql"]["pg_hba"]}

    assert ways() == {"local", "hostssl"}
    monkeypatch.delenv("POSTGRES_CERTIFICATE")
    assert ways() == {"local", "host"}


def test_members_believe_the_authority_and_who_knows_the_password(program, tmp_path):
    found = program.patroni_configuration([])
    users, parameters = found["postgresql"]["authentication"], found["postgresql"]["parameters"]
    for name, password in {"replication": "of-the-replication", "rewind": "of-the-superuser"}.items():
        wanted = {"sslmode": "verify-ca", "sslrootcert": f"{tmp_path}/ca.crt", "channel_binding": "require"}
        assert users[name] == {"username": users[name]["username"], "password": password} | wanted
    # The socket has no TLS, so whoever comes by it may not be asked for any.
    assert "channel_binding" not in users["superuser"]
    assert found["postgresql"]["use_unix_socket"]
    assert not found["postgresql"]["use_unix_socket_repl"]
    assert parameters["ssl"] == "on"
    assert parameters["ssl_key_file"] == f"{tmp_path}/tls.key"
    assert found["restapi"]["certfile"] == f"{tmp_path}/tls.crt"


def test_without_a_certificate_nothing_speaks_tls(program, monkeypatch):
    monkeypatch.delenv("POSTGRES_CERTIFICATE")
    text = json.dumps(program.patroni_configuration([]))
    assert "ssl" not in text
    assert "certfile" not in text
    assert "channel_binding" not in text


def test_a_rotation_reaches_all_who_log_in_as_the_superuser(program, monkeypatch):
    program.CONFIGURATION.write_text(json.dumps(program.patroni_configuration([])))
    monkeypatch.setattr(program.os, "kill", lambda *_arguments: None)
    monkeypatch.setenv("POSTGRES_SUPERUSER_PASSWORD", "another")
    program.reload()
    text = program.CONFIGURATION.read_text()
    assert text.count('"another"') == 3
    assert "of-the-superuser" not in text


def test_each_new_certificate_is_told_once(tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    (tmp_path / "first/tls.crt").write_text("first")
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "tls.crt").symlink_to("..data/tls.crt")
    monkeypatch.setenv("POSTGRES_CERTIFICATE", str(tmp_path))
    words = [sys.executable, "-c", WATCH, str(Path(__file__).parent)]
    done = subprocess.run(words, capture_output=True, text=True, start_new_session=True, timeout=60, check=False)
    lines = [line for line in done.stdout.splitlines() if "read again" not in line]
    assert lines == ["unchanged: False", "second True False", "third True False"], done.stderr


class Api(BaseHTTPRequestHandler):
    """Patroni's, as far as it is called."""

    def do_GET(self) -> None:
        """Tell what was asked for, and by whom."""
        body = json.dumps({"path": self.path, "login": self.headers["Authorization"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


def write(folder: Path, files: dict[str, str]) -> None:
    """Files of a Secret."""
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize("known", [True, False], ids=["the authority", "another authority"])
def test_the_api_is_called_by_tls(program, tmp_path, monkeypatch, known):
    authority = certificates.authority("shop datastores")
    write(tmp_path, certificates.certificate(["postgres", "localhost"], authority))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    if not known:
        write(tmp_path, {"ca.crt": certificates.authority("shop datastores")["ca.crt"]})
    program.CONFIGURATION.write_text(json.dumps(program.patroni_configuration([])))
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        monkeypatch.setattr(program, "API_PORT", server.server_port)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            if known:
                login = b64encode(f"{LOGIN['username']}:{LOGIN['password']}".encode()).decode()
                assert program.call_api("GET", "/cluster") == {"path": "/cluster", "login": f"Basic {login}"}
            else:
                with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
                    program.call_api("GET", "/cluster")
        finally:
            server.shutdown()


@pytest.mark.parametrize("scope", ["postgres", ""])
def test_data_of_another_major_is_left_alone(program: ModuleType, tmp_path: Path, monkeypatch, scope: str) -> None:
    started = []
    for name in ("run_patroni", "run_alone"):
        monkeypatch.setattr(program, name, lambda _arguments, name=name: started.append(name))
    monkeypatch.setenv("PATRONI_SCOPE", scope)
    monkeypatch.setattr(sys, "argv", ["docker-entrypoint.py", "postgres"])
    program.main()
    data = tmp_path / "pgdata"
    data.mkdir()
    (data / "PG_VERSION").write_text("17\n")
    program.main()
    assert started == ["run_patroni" if scope else "run_alone"] * 2
    (data / "PG_VERSION").write_text("15\n")
    with pytest.raises(SystemExit, match=r"PostgreSQL 15's, and this image is PostgreSQL 17; .*upgrade_postgres\.yml"):
        program.main()
    assert len(started) == 2
    assert program.patroni_configuration([])["postgresql"]["bin_dir"] == "/usr/lib/postgresql/17/bin"


@pytest.mark.parametrize(
    ("mode", "standby", "gone", "written", "names"),
    [
        (True, None, True, None, []),  # forgotten
        (True, None, False, None, None),  # it is still there, or nobody is named
        (True, "postgres-1", True, None, None),  # it may lead: Patroni takes that away first
        (True, None, True, "postgres-1", None),  # it may by now
        (False, None, True, None, None),
    ],
)
def test_no_commit_waits_for_a_replica_that_is_gone(program, mode, standby, gone, written, names):
    class Ha:
        done: ClassVar[list[object]] = []
        cluster = SimpleNamespace(sync=SimpleNamespace(sync_standby=standby))
        dcs = SimpleNamespace(get_cluster=lambda: SimpleNamespace(sync=SimpleNamespace(sync_standby=written)))
        state_handler = SimpleNamespace(
            query=lambda _sql: iter([(gone,)]),
            sync_handler=SimpleNamespace(set_synchronous_standby_names=lambda found: Ha.done.append(found)),
        )

        def is_synchronous_mode(self) -> bool:
            return mode

        def process_sync_replication(self) -> None:
            self.done.append("Patroni's own")

    program.wait_for_nobody_gone(Ha)
    Ha().process_sync_replication()
    assert Ha.done == ([] if names is None else [names]) + ["Patroni's own"]


def test_a_patroni_that_stands_ends_and_tells_where():
    words = [sys.executable, "-c", STANDS, str(Path(__file__).parent)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "goes on\n")
    assert "in waits_for_nobody" in done.stderr
