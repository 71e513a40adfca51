"""The truth table: for every pair of pods and every port, what a real packet does is what the table of edges says."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import CHECKOUT, CLUSTER
from jinja2 import Template

sys.path.insert(0, str(CHECKOUT / "tests/tools"))

from confined_pod import confined_pod

PROBE = CHECKOUT / "tests/tools/network_probe.py"
TABLE = yaml.safe_load((CHECKOUT / "roles/network_policies/vars/main.yml").read_text())
DEFAULTS = yaml.safe_load((CHECKOUT / "roles/network_policies/defaults/main.yml").read_text())
OURS = {
    "network_policies_namespace": "citadelbuy",
    "network_policies_monitoring_namespace": "citadelbuy-monitoring",
    "network_policies_nodes_namespace": "citadelbuy-nodes",
    "network_policies_restore_namespace": "citadelbuy-restore",
    "network_policies_backups_enabled": True,
    "network_policies_object_store_enabled": True,
    "network_policies_logs_enabled": True,
    "network_policies_traces_enabled": True,
}
STRANGERS = "strangers"
NAME, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"
# Pods that the deployed platform does not have right now, and some that nobody has thought of.
STAND_INS = [
    ("citadelbuy", "canary", {NAME: "citadelbuy-web-canary", COMPONENT: "web"}),
    ("citadelbuy", "migration", {NAME: "citadelbuy-migration"}),
    ("citadelbuy", "backup", {NAME: "postgres-backup"}),
    ("citadelbuy", "redis-backup", {NAME: "redis-backup"}),
    ("citadelbuy", "elasticsearch-backup", {NAME: "elasticsearch-backup"}),
    ("citadelbuy", "kubernetes-backup", {NAME: "kubernetes-backup"}),
    ("citadelbuy", "unknown", {NAME: "unknown"}),
    ("citadelbuy-restore", "verify", {NAME: "postgres-verify"}),
    ("citadelbuy-restore", "backups-verify", {NAME: "backups-verify"}),
    ("citadelbuy-restore", "unknown", {NAME: "unknown"}),
    ("citadelbuy-monitoring", "unknown", {NAME: "unknown"}),
    (STRANGERS, "stranger", {NAME: "stranger"}),
    (STRANGERS, "impostor", {NAME: "citadelbuy-web", COMPONENT: "web"}),  # the right labels in the wrong place
]
NOTHING_LISTENS = "7/TCP"
SANDBOX = "catatonit"  # the program of the embedded cluster's sandboxes
AT_ONCE = 5  # new pods a round
ROUNDS = int(os.environ.get("CITADELBUY_CHURN", "10")) // AT_ONCE


@dataclass(frozen=True)
class Pod:
    """A pod or, without a process, an address of the cluster."""

    name: str
    parts: frozenset[str]  # as the table calls it; none for pods that it does not know
    ours: bool
    address: str
    process: int = 0

    def __str__(self) -> str:
        return self.name


def listed(ports):
    """The ports of an edge; those of a variable by their default."""
    return DEFAULTS[ports.strip("{} ")] if isinstance(ports, str) else ports


EDGES = {
    (edge["from"], edge["to"], port) for edge in TABLE["__network_policies_edges"] for port in listed(edge["ports"])
}
PORTS = sorted({port for _, _, port in EDGES} | {NOTHING_LISTENS})


def allowed(source: Pod, target: Pod, port: str) -> bool:
    """What the table says of a packet."""
    if source == target or not (source.ours or target.ours):
        return True
    return any((mine, theirs, port) in EDGES for mine in source.parts for theirs in target.parts)


def process_of(uid: str) -> int:
    """The process that holds a pod's network namespace, found by its cgroup; 0 before and after it runs."""
    # Not pathlib's: that one stumbles over folders that go meanwhile.
    for procs in glob.glob(
        f"/sys/fs/cgroup/*/citadelbuy/{CLUSTER}/*/kubepods/**/pod{uid}/*/cgroup.procs", recursive=True
    ):
        with contextlib.suppress(OSError):
            for process in Path(procs).read_text().split():
                if Path(f"/proc/{process}/comm").read_text().strip() == SANDBOX:
                    return int(process)
    return 0


@pytest.fixture(scope="module")
def everybody(kubectl, tmp_path_factory):
    """All pods of the platform, stand-ins and strangers, the cluster's DNS and the API server."""
    redis = kubectl("get", "statefulset", "redis", "--namespace", "citadelbuy", "--output", "json")
    image = redis["spec"]["template"]["spec"]["containers"][0]["image"]
    file = tmp_path_factory.mktemp("pods") / "pods.json"
    pods = [confined_pod(name, image, namespace=namespace, labels=labels) for namespace, name, labels in STAND_INS]
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": STRANGERS}}
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [space, *pods]}))
    kubectl("apply", "--server-side", "--filename", str(file))
    try:
        for namespace, name, _ in STAND_INS:
            kubectl("wait", f"pod/{name}", "--namespace", namespace, "--for=condition=Ready", "--timeout=120s")
        yield [*found_pods(kubectl), *nodes(kubectl)]
    finally:
        kubectl("delete", "--wait", "--filename", str(file))


def found_pods(kubectl):
    """Every running pod that has an address of its own, as the table calls it."""
    parts = [
        (Template(part["namespace"]).render(OURS), part["labels"].items(), name)
        for name, part in TABLE["__network_policies_parts"].items()
    ]
    for pod in kubectl("get", "pods", "--all-namespaces", "--output", "json")["items"]:
        metadata, status = pod["metadata"], pod["status"]
        if pod["spec"].get("hostNetwork") or status.get("phase") != "Running" or metadata.get("deletionTimestamp"):
            continue
        namespace, labels = metadata["namespace"], metadata.get("labels") or {}
        found = (name for space, wanted, name in parts if space == namespace and wanted <= labels.items())
        part = "dns" if labels.get("k8s-app") == "kube-dns" else next(found, "")
        name = f"{namespace}/{metadata['name']}"
        yield Pod(name, known(part), namespace in OURS.values(), status["podIP"], process_of(metadata["uid"]))


def known(part: str) -> frozenset[str]:
    """A part of the table, or none."""
    return frozenset({part} - {""})


def nodes(kubectl):
    """The addresses of the nodes; those behind the Service kubernetes have the API server, too."""
    selector = "--selector=kubernetes.io/service-name=kubernetes"
    slices = kubectl("get", "endpointslices", selector, "--namespace", "default", "--output", "json")["items"]
    servers = {address for item in slices for endpoint in item["endpoints"] for address in endpoint["addresses"]}
    found = {
        address["address"]
        for node in kubectl("get", "nodes", "--output", "json")["items"]
        for address in node["status"]["addresses"]
        if address["type"] == "InternalIP"
    }
    for address in sorted(servers | found):
        parts = frozenset(name for name, those in (("api_server", servers), ("nodes", found)) if address in those)
        yield Pod(f"node {address}", parts, False, address)


def reached(source: Pod, targets: list[tuple[str, str]], seconds: float) -> set[tuple[str, str]]:
    """Which (address, port) a pod reaches."""
    wanted = [[address, int(port.split("/")[0]), port.split("/")[1]] for address, port in targets]
    done = subprocess.run(
        [sys.executable, str(PROBE), f"/proc/{source.process}/ns/net", str(seconds)],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{source}: {done.stderr}"
    return {(address, f"{port}/{protocol}") for address, port, protocol in json.loads(done.stdout)}


def judged(source: Pod, targets: list[Pod], wanted: bool) -> list[tuple[str, str]]:
    """What a pod must reach, or must not. UDP that nobody answers cannot be told from UDP that is dropped: left out."""
    return [
        (target.address, port)
        for target in targets
        for port in PORTS
        if allowed(source, target, port) == wanted and (port.endswith("TCP") or "dns" in target.parts)
    ]


def test_the_truth_table(everybody):
    sources = [pod for pod in everybody if pod.process]
    there = {
        name for name, part in TABLE["__network_policies_parts"].items() if Template(part["namespace"]).render(OURS)
    }
    assert {part for pod in sources for part in pod.parts} >= there | {"dns"}
    assert any(not pod.parts for pod in sources)

    def differences(source: Pod) -> list[str]:
        names = {target.address: target.name for target in everybody}
        wanted = judged(source, everybody, True)
        missing = set(wanted) - reached(source, wanted, 15)  # ends as soon as all have answered
        surplus = reached(source, judged(source, everybody, False), 2)
        tell = [f"{source} does not reach {names[address]} {port}" for address, port in missing]
        return tell + [f"{source} reaches {names[address]} {port}" for address, port in surplus]

    with ThreadPoolExecutor(4) as pool:
        found = [line for lines in pool.map(differences, sources) for line in lines]
    assert not found, "\n".join(sorted(found))


def test_no_new_pod_is_open_for_a_moment(everybody, kubectl, tmp_path):
    """Each probes from the moment its first process runs, before the API server knows its address."""
    sleeper = kubectl("get", "pod", "unknown", "--namespace", "citadelbuy", "--output", "json")
    image = sleeper["spec"]["containers"][0]["image"]
    kinds = [("", {NAME: "unknown"}), ("migration", {NAME: "citadelbuy-migration"})]
    file = tmp_path / "pods.json"
    names = [f"churn-{number}" for number in range(AT_ONCE)]
    pods = [confined_pod(name, image, labels=kinds[number % 2][1]) for number, name in enumerate(names)]
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}))

    def watch(made, part):
        uid = made["metadata"]["uid"]
        deadline = time.monotonic() + 120
        while not (process := process_of(uid)):
            assert time.monotonic() < deadline, f"{made['metadata']['name']} has no process after two minutes"
        pod = Pod(made["metadata"]["name"], known(part), True, "", process)
        names = {target.address: target.name for target in everybody}
        return [
            f"{pod} ({part or 'unknown'}) reaches {names[address]} {port}"
            for address, port in reached(pod, judged(pod, everybody, False), 3)
        ]

    found = []
    for _ in range(ROUNDS):
        try:
            kubectl("create", "--filename", str(file))
            made = kubectl("get", "pods", *names, "--namespace", "citadelbuy", "--output", "json")["items"]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for lines in pool.map(watch, made, [kinds[number % 2][0] for number in range(AT_ONCE)]):
                    found += lines
        finally:
            kubectl("delete", "--wait", "--filename", str(file))
    assert not found, "\n".join(sorted(set(found)))
