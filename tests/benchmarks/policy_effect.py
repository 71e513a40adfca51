"""From a changed NetworkPolicy to packets that are refused or let through: on a cluster of its own, of two nodes."""

from __future__ import annotations

import glob
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contenders import LOCAL, playbook
from pairing import CHECKOUT, ENOUGH, BenchmarkError, Pair, Report, progress
from platform_objects import Body, Cluster

SENDER = CHECKOUT / "tests/benchmarks/packets.py"
NAME, PORT = "policy-effect", 16743
NODES, PODS = ("node1", "node2"), 200
TARGET = 1.0  # seconds
LONGEST = 30.0  # seconds in which a change must come into effect to be measured at all
READY_IN = 900  # seconds for all pods
QUIET = 1.0  # seconds without an answer, after which there are none
SPACE = "policy-effect"
POLICY = f"/apis/networking.k8s.io/v1/namespaces/{SPACE}/networkpolicies/client-to-server"
LISTED = f"/api/v1/namespaces/{SPACE}/pods"


def pod(number: int, image: str) -> Body:
    """A pod that sleeps; every other one is on the second node."""
    few = {"cpu": "1m", "memory": "8Mi"}
    container = {
        "name": "sleep",
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["sleep", "infinity"],
        "resources": {"requests": few},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"pod-{number}", "labels": {"number": str(number)}},
        "spec": {
            "nodeName": NODES[number % 2],
            "containers": [container],
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0,
        },
    }


def policy(client: str) -> Body:
    """All pods let in what the client of this label sends, and nothing else."""
    allow = {"from": [{"podSelector": {"matchLabels": {"number": client}}}]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": POLICY.rpartition("/")[2]},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [allow]},
    }


@contextmanager
def cluster_of_pods() -> Iterator[Cluster]:
    """A cluster with so many running pods, taken down in the end."""
    variables = {"local_cluster_name": NAME, "local_cluster_api_port": PORT, "local_cluster_nodes": len(NODES)}
    extra = ("-i", LOCAL, "--extra-vars", json.dumps(variables | {"local_images_enabled": False}))
    try:
        progress("bringing a cluster of two nodes up")
        playbook("playbooks/local_cluster.yml", *extra)
        cluster = Cluster.from_kubeconfig(NAME, f"/var/lib/citadelbuy/{NAME}/admin.conf", None)
        dns = cluster.request("GET", "/apis/apps/v1/namespaces/kube-system/daemonsets/coredns")[1]
        image = dns["spec"]["template"]["spec"]["containers"][0]["image"]
        cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": SPACE}})
        cluster.request("POST", POLICY.rpartition("/")[0], policy("0"))
        for number in range(PODS):
            cluster.request("POST", LISTED, pod(number, image))
        deadline = time.monotonic() + READY_IN
        while (count := sum(map(running, cluster.request("GET", LISTED)[1]["items"]))) < PODS:
            progress(f"{count} of {PODS} pods run")
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{count} of {PODS} pods run after {READY_IN} s.")
            time.sleep(1)
        progress("")
        yield cluster
    finally:
        playbook("playbooks/local_cluster_down.yml", *extra)


def running(body: dict[str, Any]) -> bool:
    """Whether a pod's container runs."""
    return any("running" in item["state"] for item in body["status"].get("containerStatuses") or [])


def measure(report: Report, rounds: int, _folder: Path) -> None:
    """Take the client's way away and give it back, and see when its packets stop and go on."""
    with cluster_of_pods() as cluster:
        client, server = (cluster.request("GET", f"{LISTED}/pod-{number}")[1] for number in (0, 1))
        command = [sys.executable, SENDER, process_of(client["metadata"]["uid"]), server["status"]["podIP"]]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
            answered = Answers(sender)
            title = f"From a policy's change to its effect, {PODS} pods"
            pair = Pair(title, "refused after", "let through after", own_limit=TARGET)
            answered.since(time.monotonic())
            for number in range(max(rounds, ENOUGH)):
                progress(f"{pair.title}: round {number + 1} of {rounds}")
                begun = change(cluster, "nobody")
                pair.ours.append(answered.last() - begun)
                begun = change(cluster, "0")
                pair.rival.append(answered.since(begun) - begun)
            sender.stdin.close()
    progress("")
    report.add(pair)


def change(cluster: Cluster, client: str) -> float:
    """Let another client through; returns when that was sent."""
    live = cluster.request("GET", POLICY)[1]
    begun = time.monotonic()
    cluster.request("PUT", POLICY, live | {"spec": policy(client)["spec"]})
    return begun


class Answers:
    """When packets were sent that were answered."""

    def __init__(self, sender: subprocess.Popen[str]) -> None:
        self.times: list[float] = []
        threading.Thread(target=lambda: self.times.extend(map(float, sender.stdout or [])), daemon=True).start()

    def since(self, begun: float) -> float:
        """The first answered packet that was sent after a time.

        :raises BenchmarkError: when there is none.
        """
        while time.monotonic() < begun + LONGEST:
            if self.times and self.times[-1] >= begun:
                return min(sent for sent in self.times if sent >= begun)
            time.sleep(0.01)
        raise BenchmarkError(f"no packet was let through {LONGEST} s after the policy allowed it.")

    def last(self) -> float:
        """The last answered packet, once there are no more.

        :raises BenchmarkError: when they do not end.
        """
        begun = time.monotonic()
        while time.monotonic() < begun + LONGEST:
            if time.monotonic() - self.times[-1] > QUIET:
                return self.times[-1]
            time.sleep(0.01)
        raise BenchmarkError(f"packets were let through {LONGEST} s after the policy refused them.")


def process_of(uid: str) -> str:
    """The file of a pod's network namespace, found by its cgroup."""
    pattern = f"/sys/fs/cgroup/*/citadelbuy/{NAME}/*/kubepods/**/pod{uid}/*/cgroup.procs"
    for procs in glob.glob(pattern, recursive=True):
        for process in Path(procs).read_text().split():
            return f"/proc/{process}/ns/net"
    raise BenchmarkError(f"the pod {uid} has no process.")
