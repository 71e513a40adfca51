"""Whether pods fit on a cluster's nodes, by the requests that a scheduler counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.applyset import pod_template
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError

Body = dict[str, Any]
QUANTITY = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi))?$")
UNITS = {"m": Decimal("0.001")} | {
    unit: Decimal(base) ** power
    for base, suffix in ((1000, ""), (1024, "i"))
    for power, letter in enumerate("kMGTP", 1)
    for unit in [("K" if suffix and letter == "k" else letter) + suffix]
}


def quantity(text: Any) -> Decimal:
    """The number that a Kubernetes quantity stands for.

    :raises EngineError: where it is none.
    """
    match = QUANTITY.match(str(text))
    if not match:
        raise EngineError(f"{text!r} is not a quantity: write it as 500m, 2, 512Mi or 20Gi")
    return Decimal(match[1] + (match[2] or "")) * UNITS.get(match[3] or "", 1)


@dataclass
class Size:
    """Cores, bytes and pods."""

    cpu: Decimal = Decimal(0)
    memory: Decimal = Decimal(0)
    pods: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.cpu + other.cpu, self.memory + other.memory, self.pods + other.pods)

    def __sub__(self, other: Size) -> Size:
        return Size(self.cpu - other.cpu, self.memory - other.memory, self.pods - other.pods)

    def fits(self, free: Size) -> bool:
        """Whether this much is in what is free."""
        return self.cpu <= free.cpu and self.memory <= free.memory and self.pods <= free.pods

    def __str__(self) -> str:
        return f"{self.cpu:.2f} cores and {self.memory / 2**30:.1f} GiB"


@dataclass
class Demand:
    """A pod that is to run: whose it is, what it requests, where it may run."""

    owner: str
    size: Size
    spec: Body


@dataclass
class Node:
    """A node that takes pods, and what is left of it."""

    name: str
    free: Size
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[Body] = field(default_factory=list)

    def takes(self, spec: Body) -> bool:
        """Whether node selector and taints let a pod run here."""
        selected = all(self.labels.get(key) == value for key, value in (spec.get("nodeSelector") or {}).items())
        return selected and all(_tolerated(taint, spec.get("tolerations") or []) for taint in self.taints)


def _tolerated(taint: Body, tolerations: list[Body]) -> bool:
    if taint.get("effect") == "PreferNoSchedule":
        return True
    return any(
        toleration.get("key") in (None, taint.get("key"))
        and toleration.get("effect") in (None, "", taint.get("effect"))
        and (toleration.get("operator") == "Exists" or (toleration.get("value") or "") == (taint.get("value") or ""))
        for toleration in tolerations
    )


def pod_size(spec: Body) -> Size:
    """What the scheduler counts for a pod; limits stand in for requests that are not there."""

    def requests(container: Body) -> Size:
        resources = container.get("resources") or {}
        wanted = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        return Size(quantity(wanted.get("cpu", 0)), quantity(wanted.get("memory", 0)))

    running, peak = Size(), Size()
    for container in spec.get("initContainers") or []:
        size = requests(container)
        if container.get("restartPolicy") == "Always":
            running += size
            size = Size()
        total = running + size
        peak = Size(max(peak.cpu, total.cpu), max(peak.memory, total.memory))
    for container in spec.get("containers") or []:
        running += requests(container)
    return Size(max(peak.cpu, running.cpu), max(peak.memory, running.memory), 1)


def demands(bodies: Iterable[Body], nodes: int = 1) -> tuple[list[Demand], list[Demand]]:
    """The pods that manifests make: those that stay, and those that come for a while (an update's surge, a Job).

    :raises EngineError: names the object with a quantity that is none.
    """
    bodies = list(bodies)
    scaled = {
        (target.get("kind"), target.get("name")): int(body["spec"].get("minReplicas") or 1)
        for body in bodies
        if body["kind"] == "HorizontalPodAutoscaler"
        for target in [body["spec"].get("scaleTargetRef") or {}]
    }
    lasting: list[Demand] = []
    passing: list[Demand] = []
    for body in bodies:
        template = pod_template(body)
        if template is None:
            continue
        kind, name = body["kind"], body["metadata"]["name"]
        spec = template.get("spec") or {}
        try:
            demand = Demand(f"{kind} {name}", pod_size(spec), spec)
        except EngineError as error:
            raise EngineError(f"{kind} {name}: resources: {error}.") from None
        if kind in ("Job", "CronJob"):
            passing.append(demand)
            continue
        given = body["spec"].get("replicas")
        replicas = nodes if kind == "DaemonSet" else scaled.get((kind, name), 1 if given is None else int(given))
        lasting += [demand] * replicas
        if kind == "Deployment" and replicas and (body["spec"].get("strategy") or {}).get("type") != "Recreate":
            passing.append(demand)
    return lasting, passing


def usable_nodes(nodes: Iterable[Body], pods: Iterable[Body], own_namespaces: set[str]) -> list[Node]:
    """Nodes that take pods, with what the pods of others leave of them."""
    usable: dict[str, Node] = {}
    for body in nodes:
        status, spec = body.get("status") or {}, body.get("spec") or {}
        ready = any(item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions") or [])
        if not ready or spec.get("unschedulable"):
            continue
        room = status.get("allocatable") or {}
        free = Size(quantity(room.get("cpu", 0)), quantity(room.get("memory", 0)), int(room.get("pods", 110)))
        metadata = body["metadata"]
        # Of a node that has just become Ready, the controller takes this taint away a moment later.
        taints = [taint for taint in spec.get("taints") or [] if taint["key"] != "node.kubernetes.io/not-ready"]
        usable[metadata["name"]] = Node(metadata["name"], free, metadata.get("labels") or {}, taints)
    for pod in pods:
        node = usable.get(pod["spec"].get("nodeName", ""))
        if node and pod["metadata"]["namespace"] not in own_namespaces:
            node.free -= pod_size(pod["spec"])
    return list(usable.values())


def running_pods(cluster: Cluster, elsewhere: Iterable[str] = ()) -> Iterator[Body]:
    """Pods that have not ended, page by page.

    :param elsewhere: namespaces whose pods are left out.
    """
    fields = ["status.phase!=Succeeded", "status.phase!=Failed"]
    fields += [f"metadata.namespace!={namespace}" for namespace in sorted(elsewhere)]
    query = {"fieldSelector": ",".join(fields), "limit": "500"}
    while True:
        page = cluster.request("GET", "/api/v1/pods", query=query)[1]
        yield from page.get("items") or []
        following = (page.get("metadata") or {}).get("continue")
        if not following:
            return
        query["continue"] = following


def shortage(
    lasting: list[Demand],
    passing: list[Demand],
    nodes: list[Node],
    who: str = "the platform requests",
    advice: str = "add nodes, or lower *_replicas and *_resources in the inventory",
) -> str | None:
    """Why the pods do not fit, in one line; None where they do.

    Counted are all that stay and the largest of those that come for a while: updates take their turn.

    :param who: begins the sentence about the sum of the pods.
    """
    extra = max(passing, key=lambda demand: (demand.size.memory, demand.size.cpu), default=None)
    wanted = [*lasting, *([extra] if extra else [])]
    if not nodes:
        return "the cluster has no node that is Ready and takes pods: see `kubectl describe nodes`."
    nodes = [node for node in nodes if any(node.takes(demand.spec) for demand in wanted)]
    if not nodes:
        return f"no node lets the platform's pods in (nodeSelector, taints): {advice}."
    need = sum((demand.size for demand in wanted), Size())
    free = sum((node.free for node in nodes), Size())
    where = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    if not need.fits(free):
        more = f", the largest pod of an update or Job ({extra.owner}) included" if extra else ""
        pods = f", {need.pods} pods" if need.pods > free.pods else ""
        room = f", {free.pods} pods" if pods else ""
        return f"the cluster is too small: {who} {need}{pods}{more}; {free}{room} are free on {where}: {advice}."
    left = {node.name: node.free for node in nodes}
    for demand in sorted(wanted, key=lambda item: _share(item.size, free), reverse=True):
        open_nodes = [node for node in nodes if node.takes(demand.spec)]
        place = next((node for node in open_nodes if demand.size.fits(left[node.name])), None)
        if not open_nodes:
            return f"{demand.owner}: no node has its labels and lets its pods in (nodeSelector, taints): {advice}."
        if place is None:
            biggest = max((node.free for node in open_nodes), key=lambda size: _share(size, free))
            return (
                f"{demand.owner}: a pod of {demand.size} fits on no node once the larger ones are placed; the roomiest"
                f" of {where} has {biggest} free: {advice}."
            )
        left[place.name] -= demand.size
    return None


def _share(size: Size, whole: Size) -> Decimal:
    return max(size.cpu / (whole.cpu or 1), size.memory / (whole.memory or 1))
