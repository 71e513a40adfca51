"""A pod that writes to a store while something happens to it, and what its log says.

The program is in roles/drill/files, one a store: `write` makes a line an acknowledged write, `numbers` tells what the
store has, `forget` removes it.
"""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.cronjob_run import log_end
from ansible_collections.citadelbuy.platform.plugins.module_utils.report import is_ready
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import run_in_pod
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import POD

Body = dict[str, Any]
NETWORK_POLICY = Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", True)
NAME = "drill-writer"
LABELS = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/component": "drill"}
AUTHORITY = "/etc/citadelbuy/authority/{store}"  # folder with what it knows the store by
START = 60  # seconds until it writes
ASKED = 60  # seconds for a question to it
PAUSE = 0.3
LOOK_LINES = 50  # of its log, in which there is one that tells how far it is, between those of an error
STAYS = """
while sleep 0.3; do [ ! -s /work/log ] || echo "$(date +%s.%N) $(wc -l < /work/log) $(tail -n 1 /work/log)"; done &
python3 -c "$1" write
kill $!
touch /work/ended
exec sleep infinity
"""
"""How far it is goes to the pod's log: there are many looks, and a call into a pod takes time from the store's node."""


@dataclass(frozen=True)
class Write:
    """One that the store has acknowledged."""

    at: float  # seconds, by the clock of the writer's node
    number: int
    note: str  # of PostgreSQL the timeline, of Elasticsearch the cluster's worst health since the write before


def parse(log: str) -> list[Write]:
    """A log's writes in the order in which they were acknowledged; a line that is cut off was not."""
    lines = [line.split() for line in log.splitlines() if line.count(" ") >= 1]
    found = [Write(float(at), int(number), " ".join(note)) for at, number, *note in lines]
    return sorted(found, key=lambda write: write.at)


def longest_gap(writes: list[Write], since: float) -> tuple[float, Write, Write]:
    """The longest time between one acknowledged write and the next, of those that end after a moment.

    :returns: seconds, the last write before and the first one after.
    :raises EngineError: none was acknowledged after it.
    """
    pairs = [(one, other) for one, other in itertools.pairwise(writes) if other.at > since]
    if not pairs:
        raise EngineError("no write was acknowledged after what happened: the store does not take writes.")
    before, after = max(pairs, key=lambda pair: pair[1].at - pair[0].at)
    return after.at - before.at, before, after


class Writer:
    """The pod, in the namespace of the store."""

    def __init__(self, cluster: Cluster, namespace: str, program: str) -> None:
        """Nothing is sent.

        :param program: its source.
        """
        self.cluster, self.namespace, self.program = cluster, namespace, program

    def start(self, spec: Body, ports: list[int], store: str, away_from: str) -> None:
        """Have it write, from another node than the one that something will happen to.

        :param spec: image, env, keys of Secret citadelbuy-secrets, and the priority class, which may be empty.
        :param ports: of the store, which the network lets it at.
        :param away_from: name of a node.
        :raises EngineError: it does not write.
        """
        self.remove()
        elsewhere = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [away_from]}
        terms = {"nodeSelectorTerms": [{"matchExpressions": [elsewhere]}]}
        # Whoever makes the Secret may leave one out.
        keys = [
            {"secret": {"name": "citadelbuy-secrets", "items": [{"key": key, "path": key}], "optional": True}}
            for key in spec["secrets"]
        ]
        authority = AUTHORITY.format(store=store)
        container = {
            "name": "writer",
            "image": spec["image"],
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", STAYS, "sh", self.program],
            "env": [
                *spec["env"],
                {"name": "DRILL_SECRETS", "value": "/etc/citadelbuy/secrets"},
                {"name": "DRILL_CA_FILE", "value": f"{authority}/ca.crt"},
            ],
            "resources": {
                # As a pod of the API's, whose part of a busy node's time a client has.
                "requests": {"cpu": "250m", "memory": "48Mi", "ephemeral-storage": "16Mi"},
                "limits": {"cpu": "1", "memory": "256Mi", "ephemeral-storage": "256Mi"},
            },
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "work", "mountPath": "/work"},
                {"name": "secrets", "mountPath": "/etc/citadelbuy/secrets", "readOnly": True},
                {"name": "authority", "mountPath": authority, "readOnly": True},
            ],
        }
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": NAME, "namespace": self.namespace, "labels": LABELS},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": 1,
                "priorityClassName": spec["priority"],
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 999,
                    "runAsGroup": 999,
                    "fsGroup": 999,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}},
                "containers": [container],
                "volumes": [
                    {"name": "work", "emptyDir": {}},
                    {"name": "secrets", "projected": {"defaultMode": 0o440, "sources": keys}},
                    {
                        "name": "authority",
                        "secret": {"secretName": f"{store}-tls", "items": [{"key": "ca.crt", "path": "ca.crt"}]},
                    },
                ],
            },
        }
        created = self.cluster.request("POST", POD.path(self.namespace), body)[1]
        self._let_through(created["metadata"], ports, store)
        deadline = time.monotonic() + START
        while not self._writes():
            if time.monotonic() > deadline:
                raise EngineError(f"pod {self.namespace}/{NAME} has not written after {START} s{self._said()}")
            time.sleep(PAUSE)

    def now(self) -> float:
        """The clock of its log, when it last told how far it is."""
        return self._told()[0]

    def flows(self) -> bool:
        """Whether a write was acknowledged within the last second."""
        now, count, last = self._told()
        return count > 0 and now - last < 1

    def count(self) -> int:
        """How many writes were acknowledged so far."""
        return self._told()[1]

    def stop(self) -> tuple[list[Write], set[int]]:
        """Have it end; returns what was acknowledged, and the numbers that the store has.

        :raises EngineError: the store cannot be asked.
        """
        self._run("sh", "-c", "touch /work/stop; until [ -e /work/ended ]; do sleep 0.1; done")
        writes = parse(self._run("cat", "/work/log"))
        numbers = {int(line) for line in self._run("python3", "-c", self.program, "numbers").split()}
        self._run("python3", "-c", self.program, "forget")
        return writes, numbers

    def remove(self) -> None:
        """Delete the pod, and wait until it is gone; its NetworkPolicies go with it."""
        deadline = time.monotonic() + ASKED
        while self.cluster.get(POD, self.namespace, NAME):
            try:
                self.cluster.request("DELETE", POD.path(self.namespace, NAME), {"gracePeriodSeconds": 1})
            except ApiError as error:
                if error.status != 404:
                    raise
            if time.monotonic() > deadline:
                raise EngineError(f"pod {self.namespace}/{NAME} of an earlier drill does not go.")
            time.sleep(PAUSE)

    def _writes(self) -> bool:
        """Whether it has begun."""
        pod = self.cluster.get(POD, self.namespace, NAME) or {}
        if (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded"):
            raise EngineError(f"pod {self.namespace}/{NAME} has ended{self._said()}")
        return is_ready(pod) and self.count() > 0

    def _told(self) -> tuple[float, int, float]:
        """When it told how far it is, by its clock, the number of acknowledged writes, and when the last one was."""
        query = {"tailLines": LOOK_LINES, "container": "writer"}
        told = self.cluster.request("GET", f"{POD.path(self.namespace, NAME)}/log", query=query, text=True)[1]
        for words in map(str.split, reversed(told.splitlines())):
            with suppress(IndexError, ValueError):  # what it has said of an error
                return float(words[0]), int(words[1]), float(words[2])
        return 0.0, 0, 0.0

    def _said(self) -> str:
        """The last that it has told, for a message: the pod does not stay."""
        pod = self.cluster.get(POD, self.namespace, NAME)
        return f": {said}" if pod and (said := log_end(self.cluster, pod)) else ", and has told nothing."

    def _run(self, *words: str) -> str:
        return run_in_pod(self.cluster, self.namespace, NAME, "writer", [*words], ASKED)

    def _let_through(self, pod: Body, ports: list[int], store: str) -> None:
        """Open the way between it and the store, for as long as the pod is there."""
        owner = {"apiVersion": "v1", "kind": "Pod", "name": NAME, "uid": pod["uid"]}
        opened = [{"port": port, "protocol": "TCP"} for port in ports]
        names = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
        it, other = {"matchLabels": LABELS}, {"matchLabels": {"app.kubernetes.io/name": store}}
        policies = {
            NAME: {
                "podSelector": it,
                "policyTypes": ["Ingress", "Egress"],
                "egress": [
                    {"to": [{"podSelector": other}], "ports": opened},
                    {"to": [names], "ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]},
                ],
            },
            f"{NAME}-to-{store}": {
                "podSelector": other,
                "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": it}], "ports": opened}],
            },
        }
        for name, spec in policies.items():
            metadata = {"name": name, "namespace": self.namespace, "labels": LABELS, "ownerReferences": [owner]}
            body = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
            try:
                self.cluster.request("DELETE", NETWORK_POLICY.path(self.namespace, name))
            except ApiError as error:
                if error.status != 404:
                    raise
            self.cluster.request("POST", NETWORK_POLICY.path(self.namespace), body)
