"""A real API server for the engine's tests: etcd, kube-apiserver and kube-controller-manager as processes on 127.0.0.1.

Binaries come from the folder that CITADELBUY_BINARIES names, else from the newest cache folder that has them.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

CHECKOUT = Path(__file__).resolve().parents[2]
init_plugin_loader([str(CHECKOUT / "collections")])

from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset  # noqa: E402
from ansible_collections.citadelbuy.platform.plugins.module_utils.apply import Applier, Policy  # noqa: E402
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import ApiError, Cluster  # noqa: E402
from ansible_collections.citadelbuy.platform.plugins.module_utils.foresee import Foreseen  # noqa: E402
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Outcome  # noqa: E402
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import Parent  # noqa: E402
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest, render  # noqa: E402

SNAPSHOT_CRDS = Path(__file__).parent / "recorded/volume-snapshots.yaml"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ADMIN, NOBODY = "test-admin-token", "test-nobody-token"
CONTROLLERS = "deployment,replicaset,statefulset,daemonset,job,serviceaccount,namespace,garbagecollector"


def binaries() -> Path:
    """The folder with etcd, kube-apiserver and kube-controller-manager."""
    named = os.environ.get("CITADELBUY_BINARIES")
    cached = Path.home().glob(".cache/citadelbuy/binaries/*/kube-apiserver")
    folders = [Path(named)] if named else sorted((file.parent for file in cached), key=lambda f: f.stat().st_mtime)
    if not folders or not (folders[-1] / "kube-apiserver").exists():
        pytest.exit(
            "no kube-apiserver found: run `make test`, or set CITADELBUY_BINARIES to the folder that has it.", 3
        )
    return folders[-1]


def load_program(path: str) -> ModuleType:
    """A Python program of an image as a module, though its name has no suffix."""
    name = Path(path).name.replace("-", "_")
    loader = SourceFileLoader(name, str(CHECKOUT / path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent() -> None:
    """In a child process: be killed when the test run is, however it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class ApiServer:
    """The processes of a control plane without nodes."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        """Prepare; nothing is started.

        :param arguments: more of them for kube-apiserver.
        """
        self.folder, self.bin, self.arguments = folder, binaries(), arguments
        self.port, self.etcd_port = free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.kubeconfig = folder / "kubeconfig"
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (folder / "sa.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
            )
        )
        (folder / "tokens.csv").write_text(f"{ADMIN},admin,1,system:masters\n{NOBODY},nobody,2,\n")

    def run(self, name: str, *arguments: str) -> None:
        """Start a process; its output goes to a log file in the folder."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [self.bin / name, *arguments], stdout=log, stderr=log, cwd=self.folder, preexec_fn=die_with_parent
            )

    def start(self) -> None:
        """Start everything and wait until the API answers."""
        peer = free_port()
        self.run(
            "etcd",
            "--data-dir",
            str(self.folder / "etcd"),
            "--unsafe-no-fsync",
            "--listen-client-urls",
            f"http://127.0.0.1:{self.etcd_port}",
            "--advertise-client-urls",
            f"http://127.0.0.1:{self.etcd_port}",
            "--listen-peer-urls",
            f"http://127.0.0.1:{peer}",
            "--initial-advertise-peer-urls",
            f"http://127.0.0.1:{peer}",
            "--initial-cluster",
            f"default=http://127.0.0.1:{peer}",
        )
        self.start_api()
        self.write_kubeconfig()
        self.start_controllers()

    def start_controllers(self) -> None:
        """Start the controller manager."""
        self.run(
            "kube-controller-manager",
            "--kubeconfig",
            str(self.kubeconfig),
            "--controllers",
            CONTROLLERS,
            "--leader-elect=false",
            "--secure-port=0",
            "--authentication-skip-lookup",
        )

    def start_api(self) -> None:
        """Start the API server (again)."""
        url = f"https://127.0.0.1:{self.port}"
        self.run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.folder}/certs",
            "--authorization-mode=RBAC",
            f"--token-auth-file={self.folder}/tokens.csv",
            # Of a /16 the first 256 addresses are given to nobody who does not ask for one, as tests do.
            "--service-cluster-ip-range=10.200.0.0/16",
            f"--service-account-issuer={url}",
            f"--service-account-key-file={self.folder}/sa.key",
            f"--service-account-signing-key-file={self.folder}/sa.key",
            "--watch-cache=true",
            *self.arguments,
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            if self.processes["kube-apiserver"].poll() is not None:
                break
            try:
                self.write_kubeconfig()
                cluster = Cluster.from_kubeconfig("test", str(self.kubeconfig))
                cluster.request("GET", "/readyz", text=True)
                cluster.request("GET", "/api/v1/namespaces/default/endpoints/kubernetes")  # written after that
                controllers = self.processes.get("kube-controller-manager")
                if controllers:  # else it would sit out its back-off, of a minute and more
                    controllers.kill()
                    controllers.wait()
                    self.start_controllers()
                return
            except Exception:  # whatever it is: not up yet
                time.sleep(0.2)
        raise RuntimeError("kube-apiserver did not start:\n" + (self.folder / "kube-apiserver.log").read_text()[-2000:])

    def stop_api(self) -> None:
        """Kill the API server, as a crash would."""
        self.processes["kube-apiserver"].kill()
        self.processes["kube-apiserver"].wait()

    def stop(self) -> None:
        """Kill everything."""
        for process in reversed(self.processes.values()):
            process.kill()
        for process in self.processes.values():
            process.wait()

    def write_kubeconfig(self) -> None:
        """A kubeconfig with the contexts admin (current) and nobody."""
        ca = base64.b64encode((self.folder / "certs/apiserver.crt").read_bytes()).decode()
        server = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority-data": ca}
        tokens = {"admin": ADMIN, "nobody": NOBODY}
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "admin",
                    "clusters": [{"name": "test", "cluster": server}],
                    "users": [{"name": name, "user": {"token": token}} for name, token in tokens.items()],
                    "contexts": [{"name": name, "context": {"cluster": "test", "user": name}} for name in tokens],
                }
            )
        )


def serve(cluster: Cluster, definitions: Iterable[dict[str, Any]]) -> None:
    """Have the cluster know kinds, and wait until it does."""
    for crd in definitions:
        cluster.request("POST", CRDS, crd)
        version = next(item["name"] for item in crd["spec"]["versions"] if item["served"])
        served = "/apis/{group}/{}/{names[plural]}".format(version, **crd["spec"])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(ApiError):
                cluster.request("GET", served)
                break
            time.sleep(0.05)


def serve_snapshots(cluster: Cluster, *classes: str) -> None:
    """Have the cluster know VolumeSnapshots, and classes of them."""
    serve(cluster, yaml.safe_load_all(SNAPSHOT_CRDS.read_text()))
    for name in classes:
        body = {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "metadata": {"name": name}}
        body |= {"driver": "example.com/none", "deletionPolicy": "Delete"}
        cluster.request("POST", "/apis/snapshot.storage.k8s.io/v1/volumesnapshotclasses", body)


def withdraw_snapshots(cluster: Cluster) -> None:
    """Have it forget them."""
    for crd in yaml.safe_load_all(SNAPSHOT_CRDS.read_text()):
        cluster.request("DELETE", f"{CRDS}/{crd['metadata']['name']}")


def gateway_kinds() -> list[dict[str, Any]]:
    """The kinds of the Gateway API as its module defines them, which Traefik's go.mod pins."""
    pinned = re.search(r"sigs\.k8s\.io/gateway-api (v\S+)", (CHECKOUT / "images/traefik/go.mod").read_text())[1]
    cache = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
    go = next(iter(sorted(cache.glob("go-*/bin/go"))), None) or shutil.which("go")
    assert go, "there is no Go to read the module with: run `make test`, or put one on the PATH"
    command = [str(go), "mod", "download", "-json", f"sigs.k8s.io/gateway-api@{pinned}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    folder = Path(json.loads(told.stdout)["Dir"], "config/crd/standard")
    return [yaml.safe_load(file.read_text()) for file in sorted(folder.glob("gateway.networking.k8s.io_*.yaml"))]


def serve_gateways(cluster: Cluster) -> None:
    """Have the cluster know the Gateway API."""
    serve(cluster, gateway_kinds())


def withdraw_gateways(cluster: Cluster) -> None:
    """Have it forget them."""
    for crd in gateway_kinds():
        cluster.request("DELETE", f"{CRDS}/{crd['metadata']['name']}")


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One control plane for all tests."""
    server = ApiServer(tmp_path_factory.mktemp("control-plane"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def cluster(api_server: ApiServer) -> Cluster:
    """The cluster as its administrator."""
    return Cluster.from_kubeconfig("test", str(api_server.kubeconfig))


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """A fresh namespace, named after the test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:50] + f"-{time.time_ns() % 10**6}"
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    # After a restart of the API server its clients come back when their back-off is over.
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            cluster.request("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default")
            return name
        except ApiError:
            time.sleep(0.1)
    raise RuntimeError("no default service account: is the controller manager running?")


class Deployer:
    """What a role does: render a template's text and apply it."""

    def __init__(self, cluster: Cluster, folder: Path, namespace: str) -> None:
        self.cluster, self.folder, self.namespace = cluster, folder, namespace
        self.number = itertools.count()

    def render(self, template: str, **variables: Any) -> list[Manifest]:
        """Render a template's text with `ns` and other variables."""
        file = self.folder / str(next(self.number)) / "manifest.yaml.j2"
        file.parent.mkdir()
        file.write_text(template)
        values = {
            key: trust_as_template(value) if isinstance(value, str) else value for key, value in variables.items()
        }
        return render(Templar(loader=DataLoader()), [file], {"ns": self.namespace, **values})

    def __call__(
        self,
        template: str,
        check: bool = False,
        force: bool = False,
        cluster: Cluster | None = None,
        prune: bool = False,
        role: str = "test",
        prune_data: Iterable[str] = (),
        replace: Iterable[str] = (),
        **variables: Any,
    ) -> Outcome:
        """Render and apply; returns the outcome. What checks foresee is kept for the whole test."""
        manifests = self.render(template, **variables)
        parent = Parent(cluster or self.cluster, role, self.namespace)
        applyset.add_labels(manifests, parent.id, "test")
        applyset.leave_replicas_to_autoscalers(manifests)
        policy = Policy(force, prune, list(prune_data), list(replace))
        foreseen = Foreseen(self.folder / "foreseen") if check else None
        return Applier(parent.cluster, parent, policy, foreseen, check).apply(manifests)


@pytest.fixture
def deploy(cluster: Cluster, tmp_path: Path, namespace: str) -> Deployer:
    """Apply templates in a fresh namespace."""
    return Deployer(cluster, tmp_path, namespace)


@pytest.fixture
def live(cluster: Cluster, namespace: str) -> Callable[[str], dict[str, Any]]:
    """Read an object: live("configmaps/a"), live("apis/apps/v1:deployments/a")."""

    def read(path: str) -> dict[str, Any]:
        root, _, rest = path.rpartition(":")
        return cluster.request("GET", f"/{root or 'api/v1'}/namespaces/{namespace}/{rest}")[1]

    return read


Played = tuple[str, dict[str, str]]


@pytest.fixture
def run_playbook(tmp_path: Path, api_server: ApiServer, namespace: str) -> Callable[..., Played]:
    """Run a playbook with extra variables; its output in one line, and the counters."""

    def run(file: str | Path, *arguments: str, kubeconfig: Path | None = None, **variables: Any) -> Played:
        host = {"ansible_connection": "local", "cluster_kubeconfig": str(kubeconfig or api_server.kubeconfig)}
        hosts = {"east": host | {"platform_namespace": namespace}}
        inventory = tmp_path / f"hosts-{uuid.uuid4().hex}.json"
        inventory.write_text(json.dumps({"clusters": {"hosts": hosts}}))
        command = [Path(sys.executable).parent / "ansible-playbook", "-i", inventory]
        command += [file, "-e", json.dumps(variables), *arguments]
        done = subprocess.run(command, cwd=CHECKOUT, env=os.environ, text=True, capture_output=True, check=False)
        text = done.stdout + done.stderr
        line = next(line for line in text.splitlines() if line.startswith("east ") and "ok=" in line)
        return " ".join(text.split()), dict(word.split("=") for word in line.split() if "=" in word)

    return run


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], None]:
    """Wait until something is true; an object that does not exist yet is not."""

    def wait(condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                if condition():
                    return
            except ApiError as error:
                if error.status != 404:
                    raise
            assert time.monotonic() < deadline, "this did not come true in 30 s"
            time.sleep(0.05)

    return wait


@pytest.fixture
def patch_status(cluster: Cluster, namespace: str) -> Callable[[str, dict[str, Any]], None]:
    """Write an object's status, as a kubelet would."""

    def patch(path: str, status: dict[str, Any]) -> None:
        root, _, rest = path.rpartition(":")
        cluster.request(
            "PATCH",
            f"/{root or 'api/v1'}/namespaces/{namespace}/{rest}/status",
            {"status": status},
            content="application/merge-patch+json",
        )

    return patch


def actions(outcome: Outcome) -> list[str]:
    """The actions of an outcome, in order; fails on errors."""
    assert outcome.errors == [], json.dumps(outcome.errors, indent=1)
    return [item.action for item in outcome.applied]
