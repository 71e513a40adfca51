"""Elasticsearch by TLS, as a client beside the API sees it: nothing else is answered, and a renewal is not noticed."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import KUBECONFIG, Json, Kubectl, program
from cryptography import x509

URL = "https://elasticsearch:9200/"
NODE = ("--namespace=citadelbuy", "exec", "deployment/citadelbuy-api")
GET = """
import http from 'node:http';
import https from 'node:https';
const get = (url, options) => new Promise((resolve) => {
  const module = url.startsWith('https') ? https : http;
  const request = module.get(url, { agent: false, timeout: 5000, ...options }, (answer) => {
    const serial = answer.socket.getPeerCertificate?.().serialNumber;
    answer.on('end', () => resolve({ status: answer.statusCode, serial })).resume();
  });
  request.on('timeout', () => request.destroy(new Error('no answer')));
  request.on('error', (error) => resolve({ error: error.code ?? error.message }));
});
"""
# New connections, one after the other, until standard input ends.
ASK_ON = (
    GET
    + """
let on = true;
process.stdin.on('end', () => { on = false; }).resume();
const told = { asked: 0, serials: [], failed: [] };
while (on) {
  const { status, serial, error } = await get('%s');
  told.asked += 1;
  if (status !== 401) told.failed.push(error ?? status);
  else if (serial !== told.serials.at(-1)) told.serials.push(serial);
}
console.log(JSON.stringify(told));
"""
)
SECONDS = 180  # the kubelet looks at mounted Secrets every minute or so, Elasticsearch every five seconds


@pytest.fixture
def ask(kubectl: Kubectl) -> Any:
    """What comes of a request: status and the certificate's serial number, or an error's name."""

    def run(url: str = URL, name: str = "", trusting: bool = True) -> Json:
        options = json.dumps({"servername": name} if name else {})
        words = ["env", *([] if trusting else ["-u", "NODE_EXTRA_CA_CERTS"]), "node", "--input-type=module", "-e"]
        said = kubectl(*NODE, "--", *words, f"{GET}console.log(JSON.stringify(await get({url!r}, {options})));")
        return json.loads(said.strip().splitlines()[-1])

    return run


@pytest.fixture
def secret(kubectl: Kubectl) -> Any:
    """The values of a Secret."""

    def values(name: str = "elasticsearch-tls") -> dict[str, str]:
        found = kubectl("get", "secret", name, "--namespace", "citadelbuy", "--output", "json")["data"]
        return {key: base64.b64decode(value).decode() for key, value in found.items()}

    return values


@pytest.fixture
def members(pods: list[Json]) -> list[Json]:
    """Elasticsearch's pods."""
    return [pod for pod in pods if pod["metadata"]["name"].startswith("elasticsearch-")]


def serial(certificate: str) -> str:
    """A certificate's serial number, as Node writes it."""
    digits = f"{x509.load_pem_x509_certificate(certificate.encode()).serial_number:X}"
    return digits.zfill(len(digits) + len(digits) % 2)


def test_the_certificate_that_is_served_is_the_secret_s(ask, secret) -> None:
    assert ask() == {"status": 401, "serial": serial(secret()["tls.crt"])}


def test_without_tls_nothing_is_answered(ask) -> None:
    assert ask(URL.replace("https", "http")) == {"error": "ECONNRESET"}


def test_a_client_of_another_authority_refuses_it(ask) -> None:
    assert ask(trusting=False)["error"].startswith("UNABLE_TO_VERIFY")


def test_a_client_that_expects_another_name_refuses_it(ask, members) -> None:
    assert ask(f"https://{members[0]['status']['podIP']}:9200/") == {"error": "ERR_TLS_CERT_ALTNAME_INVALID"}


def test_members_show_and_ask_for_a_certificate(kubectl, members) -> None:
    """On 9300, which the network lets members alone at."""
    where = ("--namespace=citadelbuy", "exec", members[0]["metadata"]["name"], "--container=elasticsearch", "--")
    files = "/usr/share/elasticsearch/config/tls"
    words = ["curl", "-sv", "-m", "5", "--cacert", f"{files}/ca.crt", "https://localhost:9300/"]
    assert "certificate_required" in kubectl(*where, *words, fails=True).replace(" ", "_")
    # With one, it is understood that this is HTTP.
    done = kubectl(*where, *words, "--cert", f"{files}/tls.crt", "--key", f"{files}/tls.key", fails=True)
    assert "certificate_required" not in done.replace(" ", "_")
    assert "SSL certificate verify ok" in done


def test_a_renewed_certificate_is_served_without_a_restart_and_no_client_notices(
    ask, secret, members, kubectl, play, tmp_path: Path
) -> None:
    before = secret()["tls.crt"]
    command = [program(), f"--kubeconfig={KUBECONFIG}", *NODE, "--stdin", "--"]
    command += ["node", "--input-type=module", "-e", ASK_ON % URL]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        give(kubectl, another(secret("citadelbuy-authority"), tmp_path))
        done = play("site", "--tags", "secrets")
        assert done.rc == 0, done.stdout + done.stderr
        after = secret()["tls.crt"]
        addresses = [member["status"]["podIP"] for member in members]
        served: dict[str, Any] = {}
        deadline = time.monotonic() + SECONDS
        while any(served.get(address) != serial(after) for address in addresses):
            assert time.monotonic() < deadline, f"{serial(after)} is not served: {served}"
            for address in addresses:
                served[address] = ask(f"https://{address}:9200/", "elasticsearch")["serial"]
        told = json.loads(client.communicate(timeout=30)[0])
    assert told["failed"] == []
    assert told["asked"] > 100
    assert (told["serials"][0], told["serials"][-1]) == (serial(before), serial(after))
    now = kubectl("get", "pods", "--namespace", "citadelbuy", "--output", "json")["items"]
    assert {identity(pod) for pod in members} <= {identity(pod) for pod in now}


def identity(pod: Json) -> tuple[str, int]:
    """Of a pod, and how often its containers were started anew."""
    return pod["metadata"]["uid"], sum(status["restartCount"] for status in pod["status"]["containerStatuses"])


def another(authority: dict[str, str], folder: Path) -> dict[str, str]:
    """A certificate that serves every client, and lacks the names of members: a run makes it anew."""
    for key in ("ca.crt", "ca.key"):
        (folder / key).write_text(authority[key])
    names = [*("elasticsearch" + rest for rest in ("", ".citadelbuy", ".citadelbuy.svc")), "localhost"]
    wish = ["-addext", "subjectAltName=" + ",".join(f"DNS:{name}" for name in names), "-subj", "/CN=elasticsearch"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "tls.key"]
    sign = ["-CA", "ca.crt", "-CAkey", "ca.key", "-days", "30", "-copy_extensions", "copy"]
    for words in (
        ["req", "-new", *key, *wish, "-out", "csr"],
        ["x509", "-req", "-in", "csr", *sign, "-out", "tls.crt"],
    ):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)
    return {key: (folder / key).read_text() for key in ("tls.crt", "tls.key")}


def give(kubectl: Kubectl, values: dict[str, str]) -> None:
    """Put values into the Secret, as a hand would."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    words = ("--namespace", "citadelbuy", "patch", "secret", "elasticsearch-tls", "--patch", json.dumps({"data": data}))
    kubectl(*words)
