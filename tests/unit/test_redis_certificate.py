"""How a member's containers start, and what they do about their certificate: the role's commands, real servers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import certificates
from conftest import CHECKOUT, die_with_parent, free_port
from cryptography import x509

sys.path.insert(0, str(CHECKOUT / "tests/render"))

import rendering

NAME = "redis.citadelbuy.svc"
ADDRESS = "10.96.0.5"
"""Of the member's Service."""
LATE = 20.0


class Kubelet:
    """A volume of a Secret, whose files are exchanged at once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        folder.mkdir(parents=True)

    def write(self, files: dict[str, str]) -> None:
        """Exchange all files."""
        self.number += 1
        version = self.folder / f"..{self.number}"
        version.mkdir()
        for name, text in files.items():
            (version / name).write_text(text)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        new = self.folder / "..data_tmp"
        new.symlink_to(version.name)
        new.rename(self.folder / "..data")


class Container:
    """A container of a member, in folders of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        """Start it with a first certificate."""
        self.name, self.folder, self.port = name, folder, free_port()
        self.authority = certificates.authority("test")
        self.volume = Kubelet(folder / "etc/citadelbuy/tls")
        self.volume.write(self.certificate())
        for below in ("etc/citadelbuy/secrets", "etc/redis", "run", "data"):
            (folder / below).mkdir(parents=True)
        (folder / "etc/citadelbuy/secrets/REDIS_PASSWORD").write_text("secret")
        script = self.script()
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            ["sh", "-ec", script],
            stdout=self.log,
            stderr=self.log,
            env=os.environ | {"REDIS_MEMBER": "redis-0", "PATH": f"{self.resolver()}:{os.environ['PATH']}"},
            preexec_fn=die_with_parent,
            start_new_session=True,
        )

    def resolver(self) -> Path:
        """Folder with a getent that knows the member's Service when it is asked again."""
        folder, asked = self.folder / "bin", self.folder / "asked"
        folder.mkdir()
        lines = ["#!/bin/sh", f"[ -e {asked} ] || {{ touch {asked}; exit 2; }}"]
        lines.append(f'[ "$*" = "hosts redis-0.citadelbuy.svc" ] && echo "{ADDRESS}       redis-0.citadelbuy.svc"')
        (folder / "getent").write_text("".join(f"{line}\n" for line in lines))
        (folder / "getent").chmod(0o755)
        return folder

    def script(self) -> str:
        """The role's, with these folders and this port; its configuration is written."""
        [rendered] = rendering.render_inventory("local", ["redis"], redis_replicas=3)
        bodies = {(item.kind, item.name): item.body for item in rendered.manifests}
        [container] = [
            item
            for item in bodies["StatefulSet", "redis"]["spec"]["template"]["spec"]["containers"]
            if item["name"] == self.name
        ]
        (self.folder / "etc/redis/redis.conf").write_text(self.here(bodies["ConfigMap", "redis"]["data"]["redis.conf"]))
        shell, option, script = container["command"]
        assert (shell, option) == ("sh", "-ec")
        assert "sleep 5" in script
        return self.here(script).replace("sleep 5", "sleep 0.1")

    def here(self, text: str) -> str:
        """With these folders and this port."""
        for place in ("/etc/citadelbuy", "/etc/redis", "/run/redis"):
            text = text.replace(place, f"{self.folder}{place.replace('/run/redis', '/run')}")
        text = text.replace("dir /data", f"dir {self.folder}/data").replace("cd /data", f"cd {self.folder}/data")
        text = text.replace("replicaof 127.0.0.1 1\n", "")
        for port in ("6379", "26379"):
            text = text.replace(f"tls-port {port}", f"tls-port {self.port}")
        return text

    def certificate(self) -> dict[str, str]:
        """A new one."""
        return certificates.certificate([NAME], self.authority)

    def connect(self, authority: str, name: str = NAME) -> int:
        """The serial number of the certificate that a client has verified, once it was answered.

        :param authority: certificate that the client knows.
        """
        context = ssl.create_default_context(cadata=authority)
        plain = socket.create_connection(("127.0.0.1", self.port), 5)
        with context.wrap_socket(plain, server_hostname=name) as link:
            link.sendall(b"AUTH secret\r\nPING\r\n")
            answer = b""
            while not answer.endswith(b"PONG\r\n"):
                answer += (part := link.recv(100))
                if not part:
                    raise ConnectionResetError(answer)
            return x509.load_der_x509_certificate(link.getpeercert(True)).serial_number

    def serial(self) -> int:
        """As a right client sees it."""
        return self.connect(self.authority["ca.crt"])

    def cli(self, *words: str) -> str:
        """An answer by the socket beside."""
        file = self.folder / f"run/{self.name}.sock"
        env = os.environ | {"REDISCLI_AUTH": "secret"}
        done = subprocess.run(["redis-cli", "-s", file, *words], env=env, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def server(self) -> str:
        """Identity of the server's run."""
        return next(line for line in self.cli("info", "server").splitlines() if line.startswith("run_id"))

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Look until a condition holds; the container must not end."""
        end = time.monotonic() + LATE
        while not condition():
            said = (self.folder / "log").read_text()
            assert self.process.poll() is None, said
            assert time.monotonic() < end, f"{what}: not after {LATE:.0f} s\n{said}"
            time.sleep(0.02)


def number(files: dict[str, str]) -> int:
    """A certificate's serial number."""
    return x509.load_pem_x509_certificate(files["tls.crt"].encode()).serial_number


@pytest.fixture(params=["redis", "sentinel"])
def container(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Container]:
    """One that serves."""
    found = Container(tmp_path, request.param)
    try:
        found.wait(lambda: found.cli("ping") == "PONG", "it serves")
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(found.process.pid, signal.SIGKILL)
        found.process.wait()


def test_only_tls_is_spoken_and_clients_verify(container: Container) -> None:
    assert container.serial() == container.connect(container.authority["ca.crt"])
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        container.connect(certificates.authority("another")["ca.crt"])
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for 'postgres"):
        container.connect(container.authority["ca.crt"], "postgres.citadelbuy.svc")
    with socket.create_connection(("127.0.0.1", container.port), 5) as plain:
        plain.sendall(b"AUTH secret\r\nPING\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"PONG" not in plain.recv(100)


def test_a_renewed_certificate_is_served_without_a_restart(container: Container) -> None:
    before, renewed = container.server(), container.certificate()
    container.volume.write(renewed)
    if container.name == "redis":
        # Not one connection may fail.
        container.wait(lambda: container.serial() == number(renewed), "it is served")
        assert container.server() == before
    else:

        def served() -> bool:
            try:
                return container.serial() == number(renewed)
            except (ConnectionError, ssl.SSLEOFError):
                return False  # for as long as it ends and starts

        container.wait(served, "it is served")
        assert container.server() != before


@pytest.mark.parametrize("container", ["redis"], indirect=True)
def test_files_of_two_certificates_change_nothing(container: Container) -> None:
    before, renewed = container.serial(), container.certificate()
    container.volume.write(renewed | {"tls.key": container.certificate()["tls.key"]})
    container.wait(lambda: "A renewed certificate: ERR" in (container.folder / "log").read_text(), "it is refused")
    assert container.serial() == before
    container.volume.write(renewed)
    container.wait(lambda: container.serial() == number(renewed), "it is served")


@pytest.mark.parametrize("container", ["sentinel"], indirect=True)
def test_a_sentinel_that_dies_ends_its_container(container: Container) -> None:
    pid = next(line for line in container.cli("info", "server").split() if line.startswith("process_id"))
    os.kill(int(pid.partition(":")[2]), signal.SIGKILL)
    assert container.process.wait(LATE) == 1


@pytest.mark.parametrize("container", ["redis"], indirect=True)
def test_a_server_calls_itself_by_its_service_from_its_start(container: Container) -> None:
    assert container.cli("config", "get", "replica-announce-ip").split() == ["replica-announce-ip", ADDRESS]
