"""The deployed cluster as an independent witness sees it: kubectl, not the engine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml

CHECKOUT = Path(__file__).resolve().parents[3]
CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
MOLECULE = yaml.safe_load((CHECKOUT / "molecule/shared/host_vars/molecule.yml").read_text())
CLUSTER = os.environ.get("CITADELBUY_CLUSTER") or MOLECULE["local_cluster_name"]
KUBECONFIG = os.environ.get("CITADELBUY_KUBECONFIG", f"/var/lib/citadelbuy/{CLUSTER}/admin.conf")
INVENTORY = os.environ.get("MOLECULE_INVENTORY_FILE", str(CHECKOUT / "inventories/local"))

MONITORING = "citadelbuy-monitoring"
PICTURES = CHECKOUT / ".cache/tests/dashboards"

Json = dict[str, Any]
Kubectl = Callable[..., Any]


def program() -> str:
    """The embedded cluster's kubectl, the newest of the cache."""
    return str(max(CACHE.glob("binaries/*/kubectl"), key=lambda file: file.stat().st_mtime))


@contextlib.contextmanager
def forwarded(service: str, port: int, namespace: str = MONITORING) -> Iterator[str]:
    """A URL that leads to a port of a Service, or of what has its kind before its name, as `pod/postgres-0`."""
    place = [f"--kubeconfig={KUBECONFIG}", f"--namespace={namespace}"]
    command = [program(), *place, "port-forward", service if "/" in service else f"service/{service}", f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            line = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            assert found, f"{' '.join(command)}: {line}"
            # It prints a line a connection, and would wait for somebody who reads them.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def machine() -> testinfra.host.Host:
    """The control node."""
    return testinfra.get_host("local://")


@pytest.fixture(scope="session")
def kubectl(machine: testinfra.host.Host) -> Kubectl:
    """Run kubectl on the cluster; returns its output, decoded where it is JSON."""

    def run(*arguments: str, fails: bool = False) -> Any:
        words = [program(), f"--kubeconfig={KUBECONFIG}", *arguments]
        done = machine.run(" ".join(["%s"] * len(words)), *words)
        assert (done.rc != 0) == fails, f"kubectl {' '.join(arguments)}: {done.stderr}"
        if fails:
            return done.stderr
        return json.loads(done.stdout) if "json" in arguments else done.stdout + done.stderr

    return run


@pytest.fixture
def items(kubectl: Kubectl) -> Callable[[str], list[Json]]:
    """All objects of a kind in the platform's namespace."""

    def get(kind: str) -> list[Json]:
        return kubectl("get", kind, "--namespace", "citadelbuy", "--output", "json")["items"]

    return get


@pytest.fixture
def pods(items: Callable[[str], list[Json]]) -> list[Json]:
    """The platform's pods but those of Jobs and those that are going."""
    return [
        pod
        for pod in items("pods")
        if not pod["metadata"].get("deletionTimestamp")
        and pod["metadata"]["ownerReferences"][0]["kind"] != "Job"
        and pod["status"].get("phase") != "Failed"
    ]


@pytest.fixture(scope="session")
def play(machine: testinfra.host.Host) -> Callable[..., Any]:
    """Run a playbook of the project on the cluster; arguments hold no spaces."""

    def run(playbook: str, *arguments: str) -> Any:
        words = ["ansible-playbook", f"playbooks/{playbook}.yml", "-i", INVENTORY, *arguments]
        environment = f"cd {CHECKOUT} && ANSIBLE_CONFIG={CHECKOUT}/ansible.cfg ANSIBLE_NOCOLOR=1 ANSIBLE_FORCE_COLOR=0"
        return machine.run(f"{environment} {' '.join(['%s'] * len(words))}", *words)

    return run
