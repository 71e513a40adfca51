"""What a drill does to a store: to the member that leads, to its node, to its volume or to all members.

A fault that lasts until it is ended (a node that is away, a network that is cut, a node that takes no pods, a volume
that is full) is ended in any case, also one that a killed run has left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils import before_roll
from ansible_collections.citadelbuy.platform.plugins.module_utils.capacity import quantity
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_alarm import SEVERITY, Prometheus
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_stores import Store
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import KINDS, POD

Body = dict[str, Any]
NODE = Resource("v1", "Node", "nodes", False)
CLAIM, STATEFUL_SET = KINDS["PersistentVolumeClaim"], KINDS["StatefulSet"]
MERGE = "application/merge-patch+json"
MARK = "citadelbuy.io/drill"  # annotation of a node that a drill has cordoned
MANAGED_BY = {"fieldManager": "citadelbuy-drill"}
TABLE = "citadelbuy_drill"  # of nftables, in the network namespace of a node
PAUSE = 1.0  # between looks at a node that is drained
END = 120  # seconds for a drain, or for a node to end
FILLER = "citadelbuy-drill"  # file in the volume of a member
SHARED = 4 / 3  # of its claim: a volume that is larger is a folder of a disk that others use, too
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"


class Nodes:
    """The nodes of an embedded cluster, as processes and network namespaces of this machine."""

    def __init__(self, name: str, state_dir: str) -> None:
        """Nothing is done.

        :param name: of the cluster.
        :param state_dir: its folder (local_cluster_state_dir).
        """
        self.name, self.configuration = name, Path(state_dir) / "supervisord.conf"

    @property
    def here(self) -> bool:
        """Whether there is such a cluster on this machine."""
        return self.configuration.exists()

    def kill(self, node: str) -> None:
        """SIGKILL for all of its processes, kubelet, containerd and containers, and keep it away."""
        process = int(self._supervisor("pid", node))
        command = [*self._command(), "stop", node]
        stopping = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # or it would be started anew
        deadline = time.monotonic() + END
        while "STOPPING" not in (status := self._supervisor("status", node)) and "STOPPED" not in status:
            if time.monotonic() > deadline:
                raise EngineError(f"node {node} does not end: {status}")
        # Its first process ends with this one, and all others with that.
        subprocess.run(["kill", "-KILL", str(process)], check=False)
        stopping.wait(END)

    def start(self, node: str) -> None:
        """Have it run, if it does not."""
        if "RUNNING" not in self._supervisor("status", node):
            self._supervisor("start", node)

    def kill_container(self, identity: str) -> None:
        """SIGKILL for the processes of a container."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # ended meanwhile
                if identity in (folder / "cgroup").read_text():
                    os.kill(int(folder.name), signal.SIGKILL)

    def cut(self, node: str, address: str) -> None:
        """Drop every packet from and to a pod of it."""
        drop = f"ip saddr {address} drop; ip daddr {address} drop"
        chains = "".join(
            f"chain {hook} {{ type filter hook {hook} priority -300; {drop}; }}\n"
            for hook in ("input", "forward", "output")
        )
        self._nft(node, f"table ip {TABLE} {{\n{chains}}}\n")

    def join(self, node: str) -> None:
        """Drop none any more."""
        self._nft(node, f"table ip {TABLE}\ndelete table ip {TABLE}\n")

    def names(self) -> list[str]:
        """Of all nodes."""
        return [word for word in self._supervisor("status").split() if word.startswith("node")]

    def _nft(self, node: str, rules: str) -> None:
        command = ["nsenter", f"--net=/run/netns/{self.name}.{node}", "nft", "-f", "-"]
        done = subprocess.run(command, input=rules, text=True, capture_output=True, check=False)
        if done.returncode:
            raise EngineError(f"nft on {node}: {done.stderr.strip()}")

    def _command(self) -> list[str]:
        return [str(Path(sys.executable).with_name("supervisorctl")), "-c", str(self.configuration)]

    def _supervisor(self, *words: str) -> str:
        # Its exit code tells of programs that do not run, too.
        done = subprocess.run([*self._command(), *words], text=True, capture_output=True, check=False)
        if "refused" in done.stdout or "no such file" in done.stdout:
            raise EngineError(f"cluster {self.name} does not run on this machine: {done.stdout.strip()}")
        return done.stdout.strip()


class Fault:
    """One thing that happens to the member that leads."""

    name = what = ""
    lasts = False  # until it is ended
    embedded = False  # whether the machine of the nodes is needed
    alone = False  # whether it is done where it is named only: it asks more of a cluster than `all` does

    def __init__(self, cluster: Cluster, store: Store, nodes: Nodes, prometheus: Prometheus) -> None:
        """Nothing is done yet."""
        self.cluster, self.store, self.nodes, self.prometheus = cluster, store, nodes, prometheus
        self.leader = ""
        self.before: dict[str, Body] = {}

    def require_possible(self, leader: str) -> None:
        """Refuse what would show nothing, or harm others.

        :raises EngineError: says why.
        """

    def look(self, leader: str) -> None:
        """Note how things are before it."""
        self.leader = leader
        self.before = {pod["metadata"]["name"]: pod for pod in self.store.pods()}
        self.node = str(self.before[leader]["spec"]["nodeName"])

    def suits(self) -> bool:
        """Whether it may happen to who leads now."""
        return True

    def remains(self) -> str:
        """What an earlier one has left that goes by itself, in words; empty where there is nothing."""
        return ""

    def begin(self) -> None:
        """Let it happen."""
        raise NotImplementedError

    def happened(self) -> bool:
        """Whether it has come to its end, apart from the strength of the store."""
        return self.another_leads()

    def awaited(self) -> str:
        """What has not happened yet, in words; empty where there are none for it."""
        return ""

    def another_leads(self) -> bool:
        """Another than before."""
        return self.store.leader() not in ("", self.leader)

    def end(self) -> None:
        """Undo it; does nothing where there is nothing to undo."""

    def replaced(self, names: list[str]) -> bool:
        """Whether all these pods are others than before."""
        now = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in self.store.pods()}
        return all(name in now and now[name] != self.before[name]["metadata"]["uid"] for name in names)

    def delete(self, name: str, grace: int | None = None) -> None:
        """A pod of the store."""
        options = {} if grace is None else {"gracePeriodSeconds": grace}
        self.cluster.request("DELETE", POD.path(self.store.namespace, name), options)


class Switchover(Fault):
    """Another member leads, as asked."""

    name, what = "switchover", "another member is asked to lead"

    def begin(self) -> None:
        """By the store's own way."""
        self.store.hand_over(self.leader)


class PodDeleted(Fault):
    """The pod goes, with a second to end."""

    name, what = "pod-deleted", "the leader's pod is deleted, with 1 s to end"

    def begin(self) -> None:
        """By the API server."""
        self.delete(self.leader, grace=1)

    def happened(self) -> bool:
        """There is another of this name."""
        return self.replaced([self.leader])


class ProcessKilled(Fault):
    """The server dies."""

    name, what = "process-killed", "the leader's process gets SIGKILL"

    def look(self, leader: str) -> None:
        """And which process it is."""
        super().look(leader)
        self.process = self.store.process(leader)

    def begin(self) -> None:
        """In its container, or from its node."""
        if self.store.first:
            self.nodes.kill_container(self.store.container_of(self.leader))
        else:
            self.store.kill(self.leader)

    def happened(self) -> bool:
        """Another one runs."""
        try:
            return self.store.process(self.leader) not in ("", self.process)
        except EngineError:
            return False


class NodeLost(Fault):
    """A node with all its processes."""

    name, what = "node-lost", "kubelet, containerd and all containers of the leader's node get SIGKILL"
    lasts = embedded = True

    def suits(self) -> bool:
        """Not where the API server runs: the cluster would be lost with it."""
        found = self.cluster.get(NODE, None, self.node) or {}
        return CONTROL_PLANE not in ((found.get("metadata") or {}).get("labels") or {})

    def begin(self) -> None:
        """From outside of it."""
        self.nodes.kill(self.node)

    def end(self) -> None:
        """All nodes run."""
        for node in self.nodes.names():
            self.nodes.start(node)


class NetworkCut(Fault):
    """The pod runs, and reaches nobody."""

    name, what = "network-cut", "every packet from and to the leader's pod is dropped"
    lasts = embedded = True

    def begin(self) -> None:
        """On its node."""
        self.nodes.cut(self.node, self.before[self.leader]["status"]["podIP"])

    def end(self) -> None:
        """On every node."""
        for node in self.nodes.names():
            self.nodes.join(node)


class Drain(Fault):
    """The node takes no pods, and its pods are evicted, as `kubectl drain --ignore-daemonsets` does it."""

    name, what = "drain", "the leader's node is drained"
    lasts = True

    def begin(self) -> None:
        """Evictions that a disruption budget refuses are tried again, as kubectl does."""
        self._cordon(self.node, True)
        deadline = time.monotonic() + END
        left = self._to_evict()
        while left:
            stay = [f"{pod['metadata']['namespace']}/{pod['metadata']['name']} ({self._evict(pod)})" for pod in left]
            time.sleep(PAUSE)
            left = self._to_evict()
            if left and time.monotonic() > deadline:
                raise EngineError(
                    f"the drain of {self.node} does not end; still there: {', '.join(stay)}. To do: see that the other "
                    "nodes have room for what it runs, and why pods of these budgets are not ready."
                )

    def end(self) -> None:
        """Nodes that a drill has cordoned take pods again."""
        for node in self.cluster.list(NODE)["items"]:
            if MARK in (node["metadata"].get("annotations") or {}):
                self._cordon(node["metadata"]["name"], False)

    def _cordon(self, node: str, away: bool) -> None:
        body = {"metadata": {"annotations": {MARK: "drained" if away else None}}, "spec": {"unschedulable": away}}
        self.cluster.request("PATCH", NODE.path(None, node), body, MANAGED_BY, MERGE)

    def _to_evict(self) -> list[Body]:
        """Pods of the node that are not a DaemonSet's or the kubelet's own, and have not ended."""
        pods = self.cluster.list(POD, None, fieldSelector=f"spec.nodeName={self.node}")["items"]
        return [
            pod
            for pod in pods
            if not {owner["kind"] for owner in pod["metadata"].get("ownerReferences") or []} & {"DaemonSet", "Node"}
            and (pod.get("status") or {}).get("phase") in ("Pending", "Running")
        ]

    def _evict(self, pod: Body) -> str:
        """Ask for an eviction; returns why the pod is still there."""
        metadata = pod["metadata"]
        if metadata.get("deletionTimestamp"):
            return "ending"
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        }
        try:
            self.cluster.request("POST", f"{POD.path(metadata['namespace'], metadata['name'])}/eviction", body)
        except ApiError as error:
            if error.status not in (404, 429):
                raise
            return " ".join(cause["message"] for cause in error.causes) or str(error)
        return "evicted"


class RollingUpdate(Fault):
    """Every member is replaced, one after the other, as a change of the StatefulSet does it."""

    name, what = "rolling-update", "the StatefulSet is changed, and every pod replaced in turn"

    def begin(self) -> None:
        """By an annotation of the pods, after what a run has done before it rolls them."""
        before_roll.run(self.cluster, self.store.stateful_set())
        changed = {"metadata": {"annotations": {MARK: str(time.time())}}}
        path = STATEFUL_SET.path(self.store.namespace, self.store.name)
        self.cluster.request("PATCH", path, {"spec": {"template": changed}}, MANAGED_BY, MERGE)

    def happened(self) -> bool:
        """All pods are others."""
        return self.replaced([*self.before])


class AllRestarted(Fault):
    """All members at once."""

    name, what = "all-restarted", "all pods are deleted at once"

    def begin(self) -> None:
        """With their time to end."""
        for name in self.before:
            self.delete(name)

    def happened(self) -> bool:
        """All pods are others."""
        return self.replaced([*self.before])


class DiskFilled(Fault):
    """A file takes the room of the leader's volume, up to the alert."""

    name, what = "disk-filled", "a file fills the leader's volume, until Prometheus has its alert"
    lasts = alone = True

    def require_possible(self, leader: str) -> None:
        """The volume is the claim's alone, and the alert comes before the store takes no more writes."""
        claim, _path = self.store.volume(leader)
        found = self.cluster.get(CLAIM, self.store.namespace, claim)
        if found is None:
            raise EngineError(f"there is no claim {self.store.namespace}/{claim}.")
        claimed = found["spec"]["resources"]["requests"]["storage"]
        size, _free = self._room(leader)
        if size > float(quantity(claimed)) * SHARED:
            raise EngineError(
                f"{self.name}: the disk of {claim} has {size / 2**30:.1f} GiB and the claim {claimed}: others share "
                "it, so it is not filled. An embedded cluster with -e local_cluster_volumes_limited=true has volumes "
                "of their own size."
            )
        alert, _labels = self.store.alarm(leader)
        share, most = self.prometheus.share(alert), self.store.most_in_use()
        if share >= most:
            raise EngineError(
                f"{self.name}: {self.store.title} takes no writes with {most:.0%} of its disk in use, and {share:.0%} "
                f"are to be for {alert}: lower the alert's ratio."
            )

    def look(self, leader: str) -> None:
        """The writer may be on any node: none is lost."""
        super().look(leader)
        self.node = ""

    def remains(self) -> str:
        """The alert, until the volume was measured again."""
        state = self._state()
        return f"{self._alert()} is {state}" if state else ""

    def begin(self) -> None:
        """As much as lacks."""
        size, free = self._room(self.leader)
        share = self.prometheus.share(self.store.alarm(self.leader)[0])
        lacking = int(free - size * (1 - share))
        if lacking <= 0:
            raise EngineError(f"{1 - free / size:.0%} of the volume of {self.leader} are in use already.")
        self.store.run(self.leader, "fallocate", "--length", str(lacking), self._file(self.leader))

    def happened(self) -> bool:
        """Prometheus has the alert."""
        return self._state() != ""

    def awaited(self) -> str:
        """The alert."""
        if self._state():
            return ""
        size, free = self._room(self.leader)
        limit = self.prometheus.limit(self.store.alarm(self.leader)[0])
        return f"{self._alert()} comes above {limit:.0%}, and {1 - free / size:.0%} of the volume are in use"

    def end(self) -> None:
        """No member has the file any more.

        :raises EngineError: says of which member it is not known.
        """
        failed = []
        for pod in self.store.pods():
            name = pod["metadata"]["name"]
            try:
                self.store.run(name, "rm", "-f", self._file(name))
            except EngineError as error:
                failed.append(f"{self._file(name)} of {name}: {error}")
        if failed:
            raise EngineError(f"{self.name}: not removed: {'; '.join(failed)}")

    def _file(self, pod: str) -> str:
        return f"{self.store.volume(pod)[1]}/{FILLER}"

    def _room(self, pod: str) -> tuple[int, int]:
        """Bytes of the volume's file system, and those that are free, as a kubelet counts them."""
        told = self.store.run(pod, "df", "--block-size=1", "--output=size,avail", self.store.volume(pod)[1])
        size, free = told.splitlines()[-1].split()
        return int(size), int(free)

    def _state(self) -> str:
        return self.prometheus.state(*self.store.alarm(self.leader))

    def _alert(self) -> str:
        alert, labels = self.store.alarm(self.leader)
        of = ", ".join(f"{name} {value}" for name, value in labels.items())
        return f"{alert} ({SEVERITY}; {of})"


FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        Switchover,
        PodDeleted,
        ProcessKilled,
        NodeLost,
        NetworkCut,
        Drain,
        RollingUpdate,
        AllRestarted,
        DiskFilled,
    )
}
