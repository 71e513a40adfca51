"""Alerts on a running platform that is broken on purpose: the right one comes, in time, and goes. `make drill-alerts`.

The platform is the one that CITADELBUY_ALERTS_CLUSTER names, an embedded cluster that make brings up; its Alertmanager
tells a webhook on the node. For each fault the alert must reach the webhook within the time that docs/alerting.md gives
it, at most two other alerts with it, and end after repair.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from confined_pod import confined_pod
from embedded_cluster import EmbeddedCluster, awaited

ROOT = Path(__file__).parents[2]
NAME = os.environ.get("CITADELBUY_ALERTS_CLUSTER", "")
PORT = os.environ.get("CITADELBUY_ALERTS_PORT", "17446")
STATE = Path("/var/lib/citadelbuy", NAME)
CLUSTER = EmbeddedCluster(NAME)
kubectl, prometheus = CLUSTER.kubectl, CLUSTER.prometheus
NODE, NODE_ADDRESS, HOOK = f"{NAME}.node1", "10.89.0.11", 9099
INTERVAL = 15  # seconds between two looks of Prometheus at a target, and at a rule
GROUP_WAIT, GROUP_INTERVAL = 10, 15  # seconds; of the variables below
SPARE = 20  # seconds for what has no time of its own: the end of a pod, the notification itself
OTHERS = 2  # alerts beside the right one
MACHINE = {"NodeCpuHigh", "NodeMemoryHigh"}  # a node counts the whole machine, and so what else it does meanwhile
REPAIRED = 300 + 2 * INTERVAL + GROUP_INTERVAL + SPARE  # seconds until an alert has gone: some look at five minutes
VARIABLES = {
    "local_cluster_name": NAME,
    "local_cluster_api_port": PORT,
    "alertmanager_receivers": [{"name": "drill", "webhook": {"url": f"http://{NODE_ADDRESS}:{HOOK}/"}}],
    "alertmanager_group_wait": f"{GROUP_WAIT}s",
    "alertmanager_group_interval": f"{GROUP_INTERVAL}s",
    "network_policies_third_parties": [
        {
            "name": "drill",
            "from": "alertmanager",
            "why": "the drill's webhook",
            "ports": [f"{HOOK}/TCP"],
            "cidrs": [f"{NODE_ADDRESS}/32"],
        }
    ],
}
VOLUME = "drill-volume"

pytestmark = pytest.mark.skipif(not NAME, reason="make drill-alerts brings the cluster that this needs")


def playbook(name: str, *arguments: str, **variables: Any) -> None:
    """Run a playbook; it must end well."""
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    extra = json.dumps(VARIABLES | variables)
    words = [program, f"playbooks/{name}.yml", "-i", "inventories/local", "--extra-vars", extra, *arguments]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


class Told:
    """What the webhook was told."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def since(self, begun: float, status: str = "firing") -> dict[str, float]:
        """The time of each alert's first notification of a status after a time, by the alert's name."""
        found: dict[str, float] = {}
        for line in self.file.read_text().splitlines():
            alert = json.loads(line)
            name = alert["labels"]["alertname"]
            if alert["time"] >= begun and alert["status"] == status:
                found.setdefault(name, alert["time"])
        return found


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    """A webhook on the node, and a platform whose alerts go there; none fires but the watchdog, which is not told."""
    with tempfile.TemporaryDirectory(prefix="citadelbuy-drill-") as folder:
        file = Path(folder, "alerts.jsonl")
        file.touch()
        script = str(Path(__file__).with_name("receiver.py"))
        words = ["ip", "netns", "exec", NODE, sys.executable, script, NODE_ADDRESS, str(HOOK), str(file)]
        with subprocess.Popen(words) as receiver:
            try:
                playbook("site")
                awaited(silent, 300, "a silent platform")
                yield Told(file)
            finally:
                receiver.terminate()


def firing() -> set[str]:
    """Names of the alerts that fire."""
    return {alert["labels"]["alertname"] for alert in prometheus("alerts")["alerts"] if alert["state"] == "firing"}


def silent() -> bool:
    """Whether only the watchdog fires."""
    return firing() - MACHINE == {"Watchdog"}


def documented(name: str) -> float:
    """Seconds within which an alert must be told once it can be seen: by its rule as it is deployed, and its route."""
    rules = [rule for group in prometheus("rules")["groups"] for rule in group["rules"] if rule["name"] == name]
    assert rules, f"there is no alert {name}"
    return 2 * INTERVAL + min(rule["duration"] for rule in rules) + GROUP_WAIT + SPARE


@contextmanager
def stopped_store() -> Iterator[None]:
    kubectl("scale", "statefulset/redis", "--replicas=0")
    try:
        yield
    finally:
        kubectl("scale", "statefulset/redis", "--replicas=1")


@contextmanager
def unready_api() -> Iterator[None]:
    """The API asks for its tables before it calls itself ready."""
    psql = (
        "exec",
        "postgres-0",
        "-c",
        "postgres",
        "--",
        "psql",
        "-X",
        "-q",
        "-U",
        "postgres",
        "-d",
        "citadelbuy",
        "-c",
    )
    kubectl(*psql, "ALTER TABLE products RENAME TO products_of_the_drill")
    try:
        yield
    finally:
        kubectl(*psql, "ALTER TABLE products_of_the_drill RENAME TO products")


@contextmanager
def full_volume() -> Iterator[None]:
    """A small volume of its own, on memory of the node: those of the platform share the machine's disk."""
    [process] = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"kubelet\0" in path.read_bytes() and in_cluster(path.parent)
    ][:1]
    node = ["nsenter", f"--mount=/proc/{process}/ns/mnt"]
    place = f"/var/lib/{VOLUME}"
    subprocess.run([*node, "mkdir", "-p", place], check=True)
    subprocess.run([*node, "mount", "-t", "tmpfs", "-o", "size=16m,mode=777", VOLUME, place], check=True)
    try:
        kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(volume_objects(place)))
        kubectl("wait", f"pod/{VOLUME}", "--for=condition=Ready", "--timeout=120s")
        kubectl("exec", VOLUME, "--", "sh", "-c", "head -c 16600000 /dev/zero > /data/full")
        yield
    finally:
        kubectl("delete", "pod,pvc,pv", VOLUME, "--ignore-not-found", "--wait")
        subprocess.run([*node, "umount", place], check=True)


def in_cluster(process: Path) -> bool:
    """Whether a process is in the network namespace of the node."""
    return (process / "ns/net").stat().st_ino == Path("/run/netns", NODE).stat().st_ino


def volume_objects(place: str) -> dict[str, Any]:
    """A volume, its claim, and a pod that mounts it, with the image of Redis."""
    image = kubectl("get", "statefulset/redis", "--output=jsonpath={.spec.template.spec.containers[0].image}")
    size = {"storage": "16Mi"}
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node1"]}
    volume = {
        "capacity": size,
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "local": {"path": place},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}},
    }
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "volumeName": VOLUME,
        "resources": {"requests": size},
    }
    # What is written to a volume in memory counts.
    pod = confined_pod(VOLUME, image, memory="64Mi", volumeMounts=[{"name": "data", "mountPath": "/data"}])
    pod["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": VOLUME}}]
    kinds = {"PersistentVolume": volume, "PersistentVolumeClaim": claim}
    items = [
        {"apiVersion": "v1", "kind": kind, "metadata": {"name": VOLUME}, "spec": spec} for kind, spec in kinds.items()
    ]
    return {"apiVersion": "v1", "kind": "List", "items": [*items, pod]}


@contextmanager
def expiring_certificate() -> Iterator[None]:
    """Somebody asks the API server with a certificate that ends within a day."""
    with tempfile.TemporaryDirectory(prefix="citadelbuy-drill-") as folder:
        key, request, certificate = (str(Path(folder, name)) for name in ("key", "request", "certificate"))
        authority = STATE / "nodes/node1/etc/kubernetes/pki"
        signer = ["-CA", str(authority / "ca.crt"), "-CAkey", str(authority / "ca.key"), "-CAcreateserial"]
        new = ["openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-subj", "/CN=drill"]
        signed = ["openssl", "x509", "-req", "-in", request, *signer, "-days", "1", "-out", certificate]
        for command in ([*new, "-out", request], signed):
            subprocess.run(command, check=True, capture_output=True, cwd=folder)
        loop = f"while sleep 1; do curl -sk --cert {certificate} --key {key} https://127.0.0.1:{PORT}/version; done"
        with subprocess.Popen(["sh", "-c", loop], stdout=subprocess.DEVNULL, start_new_session=True) as client:
            try:
                yield
            finally:
                os.killpg(client.pid, 15)


@contextmanager
def missed_backup() -> Iterator[None]:
    """Backups are expected, and none was ever made."""
    # A wait of an hour proves no more than one of a minute.
    expected = {"alerts_backups_enabled": True, "alerts_for": {"BackupMissing": "1m"}}
    playbook("monitoring", "--tags", "alerts,prometheus", **expected)
    try:
        yield
    finally:
        playbook("monitoring", "--tags", "alerts,prometheus")


# The alert, what brings it, and seconds that pass before Prometheus can see it: a kubelet's three probes of a pod; its
# look at a volume, every one to two minutes, and the look that records the share.
DRILLS = {
    "a store is stopped": ("RedisDown", stopped_store, 0),
    "the API is not ready": ("ApplicationDown", unready_api, 15),
    "a volume is full": ("PersistentVolumeFilling", full_volume, 120 + INTERVAL),
    "a certificate expires": ("ClientCertificateExpiring", expiring_certificate, 0),
    "a backup is missed": ("BackupMissing", missed_backup, 0),
}


@pytest.mark.parametrize("fault", DRILLS)
def test_the_right_alert_comes_in_time_and_goes(told: Told, fault: str) -> None:
    name, broken, unseen = DRILLS[fault]
    begun = time.time()
    with broken():
        broke = time.time()
        limit = unseen + documented(name)
        came = awaited(lambda: told.since(begun).get(name), limit, f"{fault}: {name} at the webhook")
    repaired = time.time()
    gone = awaited(lambda: told.since(repaired, "resolved").get(name), REPAIRED, f"{fault}: the end of {name}")
    awaited(silent, REPAIRED, f"{fault}: a silent platform")
    others = told.since(begun).keys() - {name}
    print(
        f"\n{fault}: {name} after {came - broke:.0f} s of {limit:.0f}, gone {gone - repaired:.0f} s after the repair; "
        f"with it: {', '.join(sorted(others)) or 'nothing'}"
    )
    assert len(others - MACHINE) <= OTHERS
