"""Redis by TLS, as a client in the API's pod meets it: verified, never in plain, and renewed while it connects."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import CHECKOUT, KUBECONFIG, Json, Kubectl, program
from cryptography import x509

sys.path.insert(0, str(CHECKOUT / "plugins/module_utils"))

import certificates

IN_THE_API = ("--namespace", "citadelbuy", "exec", "deployment/citadelbuy-api", "--stdin", "--", "node")
NODE = ("--input-type=module", "-e")
# A connection of its own: the serial number of the certificate that was verified, once Redis has answered.
CONNECT = """
import net from 'node:net';
import tls from 'node:tls';
const connect = (options) => new Promise((resolve, reject) => {
  const link = (options.plain ? net : tls).connect({ host: 'redis', port: 6379, timeout: 5000, ...options }, () => {
    link.write(`AUTH "${process.env.REDIS_PASSWORD}"\\r\\nPING\\r\\n`);
  });
  let answer = '';
  link.on('data', (part) => {
    answer += part;
    if (!answer.endsWith('+PONG\\r\\n')) return;
    resolve(options.plain ? answer : BigInt(`0x${link.getPeerCertificate().serialNumber}`).toString());
    link.destroy();
  });
  for (const event of ['error', 'timeout', 'close']) link.on(event, (error) => reject(error ?? new Error(event)));
});
"""
ONCE = CONNECT + "console.log(JSON.stringify(await connect(OPTIONS).catch((error) => `refused: ${error.message}`)));"
ALWAYS = """
const told = { connections: 0, failures: [], serials: [] };
let ended = false;
process.stdin.on('end', () => { ended = true; }).resume();
while (!ended) {
  try {
    const serial = await connect({});
    told.connections += 1;
    if (told.serials.at(-1) !== serial) told.serials.push(serial);
  } catch (error) {
    told.failures.push(error.message);
  }
  await new Promise((resolve) => { setTimeout(resolve, 20); });
}
console.log(JSON.stringify(told));
"""
RENEWED = 180.0  # seconds until the kubelet has exchanged the files, and the server has read them

Once = Callable[..., str]


@pytest.fixture
def once(kubectl: Kubectl) -> Once:
    """What comes of one connection with these options."""

    def run(**options: object) -> str:
        return json.loads(kubectl(*IN_THE_API, *NODE, ONCE.replace("OPTIONS", json.dumps(options))))

    return run


@contextmanager
def connecting() -> Iterator[Json]:
    """New connections all the while; what came of them is in the dictionary afterwards."""
    words = [program(), f"--kubeconfig={KUBECONFIG}", *IN_THE_API, *NODE, CONNECT + ALWAYS]
    told: Json = {}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield told
        finally:
            told |= json.loads(process.communicate(timeout=60)[0])


def held(kubectl: Kubectl, name: str) -> dict[str, str]:
    """The values of a Secret."""
    found = kubectl("get", "secret", name, "--namespace", "citadelbuy", "--output", "json")["data"]
    return {key: base64.b64decode(value).decode() for key, value in found.items()}


def serial(files: dict[str, str]) -> str:
    """Of a certificate."""
    return str(x509.load_pem_x509_certificate(files["tls.crt"].encode()).serial_number)


def containers(kubectl: Kubectl) -> dict[str, Json]:
    """What changes where a container of Redis is started anew."""
    pods = kubectl("get", "pods", "--namespace", "citadelbuy", "--selector=app.kubernetes.io/name=redis", "-o", "json")
    return {
        f"{pod['metadata']['uid']}/{status['name']}": status["containerID"]
        for pod in pods["items"]
        for status in pod["status"]["containerStatuses"]
    }


def wait_until_served(once: Once, wanted: str) -> None:
    """Until a client meets this certificate."""
    end = time.monotonic() + RENEWED
    while (found := once()) != wanted:
        assert time.monotonic() < end, f"{found} is served, not {wanted}"
        time.sleep(1)


def test_the_secret_s_certificate_is_served_and_verified(kubectl: Kubectl, once: Once) -> None:
    assert once() == serial(held(kubectl, "redis-tls"))


def test_nothing_is_answered_in_plain(once: Once) -> None:
    assert once(plain=True).startswith("refused: ")


def test_who_knows_another_authority_or_wants_another_name_refuses_redis(once: Once) -> None:
    assert once(ca=certificates.authority("another")["ca.crt"]).startswith("refused: self-signed certificate in")
    assert "does not match certificate's altnames" in once(servername="postgres")


def test_a_certificate_is_renewed_without_a_restart_or_a_failed_connection(
    kubectl: Kubectl, once: Once, play: Callable[..., Json], tmp_path: Path
) -> None:
    before, first = containers(kubectl), held(kubectl, "redis-tls")
    names = x509.load_pem_x509_certificate(first["tls.crt"].encode()).extensions
    names = names.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    fewer = [name for name in names if name != "redis-sentinel"]
    second = certificates.certificate(fewer, held(kubectl, "citadelbuy-authority"))
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in second.items()}
    with connecting() as told:
        patch = tmp_path / "patch.json"
        patch.write_text(json.dumps({"data": encoded}))
        kubectl("patch", "secret", "redis-tls", "--namespace", "citadelbuy", "--type=merge", f"--patch-file={patch}")
        wait_until_served(once, serial(second))
        done = play("site", "--tags", "secrets")
        assert done.rc == 0, done.stdout + done.stderr
        third = held(kubectl, "redis-tls")
        assert serial(third) != serial(second), "its names are not all that are wanted"
        wait_until_served(once, serial(third))
    assert told["failures"] == []
    assert told["serials"] == [serial(first), serial(second), serial(third)]
    assert told["connections"] > 100
    assert containers(kubectl) == before
