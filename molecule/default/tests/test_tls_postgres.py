"""PostgreSQL speaks TLS alone, shows the certificate of its Secret, and takes a new one while it is used."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator

import pytest
from conftest import KUBECONFIG, forwarded, program

NAMESPACE = ("--namespace", "citadelbuy")
IN_API = ("exec", "deployment/citadelbuy-api", *NAMESPACE, "--container", "api", "--")
IN_STORE = ("exec", "postgres-0", *NAMESPACE, "--container", "postgres", "--")
PSQL = ("psql", "-X", "-At", "-h", "postgres", "-d", "citadelbuy", "-c")
TLS_PLEASE = bytes([0, 0, 0, 8, 4, 210, 22, 47])  # SSLRequest of PostgreSQL's protocol
TAKEN = 180  # seconds in which a kubelet brings a Secret's new files, and the server reads them


def secret(kubectl) -> dict[str, str]:
    """Keys of Secret postgres-tls, in PEM."""
    data = kubectl("get", "secret", "postgres-tls", *NAMESPACE, "--output", "json")["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def shown(port: int, authority: str | None, name: str = "postgres") -> bytes:
    """The certificate that a port of the server shows to who trusts an authority (None: those of this machine)."""
    trusted = ssl.create_default_context(cadata=authority)
    with forwarded("pod/postgres-0", port, "citadelbuy") as url:
        plain = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20)
        with plain:
            if port == 5432:
                plain.sendall(TLS_PLEASE)
                assert plain.recv(1) == b"S"
            with trusted.wrap_socket(plain, server_hostname=name) as encrypted:
                return encrypted.getpeercert(binary_form=True)


def test_it_refuses_who_comes_without_tls(kubectl):
    assert "no encryption" in kubectl(*IN_API, "env", "PGSSLMODE=disable", *PSQL, "SELECT 1", fails=True)


def test_clients_of_the_api_s_pod_are_let_in_by_tls(kubectl):
    mine = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    assert kubectl(*IN_API, *PSQL, mine).strip() == "t|TLSv1.3"


def test_nobody_is_connected_without_tls(kubectl):
    query = "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL"
    assert kubectl(*IN_STORE, "psql", "-X", "-At", "-c", query).split() == ["t"]


@pytest.mark.parametrize("port", [5432, 8008])
def test_it_shows_the_certificate_of_its_secret(kubectl, port):
    held = secret(kubectl)
    assert shown(port, held["ca.crt"]) == ssl.PEM_cert_to_DER_cert(held["tls.crt"])


@pytest.mark.parametrize("port", [5432, 8008])
def test_a_client_with_another_authority_or_name_refuses_it(kubectl, port):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self-signed"):
        shown(port, None)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shown(port, secret(kubectl)["ca.crt"], "postgres.elsewhere.svc")


def test_patroni_s_api_is_spoken_to_by_tls(kubectl):
    members = json.loads(kubectl(*IN_STORE, "docker-entrypoint.py", "cluster"))["members"]
    assert [(item["name"], item["role"], item["api_url"][:8]) for item in members] == [
        ("postgres-0", "leader", "https://")
    ]


@pytest.fixture
def connections() -> Iterator[subprocess.Popen]:
    """Clients that come one after another for some minutes, until one is refused; each verifies the server."""
    client = "for turn in $(seq 2000); do psql -X -At -h postgres -d citadelbuy -c 'SELECT 1' || exit; sleep 0.1; done"
    words = [program(), f"--kubeconfig={KUBECONFIG}", *IN_API, "sh", "-c", client]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield process
        process.terminate()


def test_a_renewed_certificate_is_taken_while_clients_come(kubectl, play, connections):
    def lives() -> tuple[str, list[int]]:
        pod = kubectl("get", "pod", "postgres-0", *NAMESPACE, "--output", "json")
        return pod["metadata"]["uid"], [item["restartCount"] for item in pod["status"]["containerStatuses"]]

    before, lived = secret(kubectl), lives()
    # The same authority in other letters, which a run takes for another one; clients do not.
    other = base64.b64encode(f"{before['ca.crt']}\n".encode()).decode()
    patch = json.dumps({"data": {"ca.crt": other}})
    kubectl("patch", "secret", "postgres-tls", *NAMESPACE, "--type=merge", f"--patch={patch}")
    done = play("site", "--tags", "secrets")
    assert done.rc == 0, done.stdout
    after = secret(kubectl)
    assert after["ca.crt"] == before["ca.crt"]
    assert after["tls.crt"] != before["tls.crt"]
    new, end = ssl.PEM_cert_to_DER_cert(after["tls.crt"]), time.monotonic() + TAKEN
    for port in (5432, 8008):
        while shown(port, after["ca.crt"]) != new:
            assert time.monotonic() < end, f"port {port} shows another certificate than the Secret's"
            time.sleep(2)
    assert not connections.poll(), connections.stdout.read()
    connections.terminate()
    answers = connections.stdout.read().split()
    assert set(answers) == {"1"}
    assert len(answers) > 50
    assert lives() == lived
