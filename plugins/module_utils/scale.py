"""More or fewer pods of an application, by hand: what its autoscaler keeps at least, or else its replicas.

The fields stay the engine's own, so its next run finds no conflict, and sets what the inventory says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ansible_collections.citadelbuy.platform.plugins.module_utils import capacity
from ansible_collections.citadelbuy.platform.plugins.module_utils.apply_own import apply_own
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import KINDS, POD

AUTOSCALER = KINDS["HorizontalPodAutoscaler"]
DEPLOYMENT = KINDS["Deployment"]
PAUSE = 0.5  # seconds between looks at what the autoscaler does


@dataclass
class Application:
    """A Deployment and the autoscaler that scales it, if any."""

    deployment: Body
    autoscaler: Body | None

    def __str__(self) -> str:
        metadata = self.deployment["metadata"]
        return f"Deployment {metadata['namespace']}/{metadata['name']}"

    @property
    def replicas(self) -> int:
        """Pods that it is to have now."""
        return int(self.deployment["spec"].get("replicas", 1))

    @property
    def ready(self) -> int:
        """Pods that are ready."""
        return int((self.deployment.get("status") or {}).get("readyReplicas") or 0)

    def table(self) -> str:
        """Now, at least, at most, and at what the autoscaler aims; one line."""
        text = f"{self}: {self.replicas} replicas, {self.ready} ready; "
        return text + (f"{limits(self.autoscaler)}, {targets(self.autoscaler)}" if self.autoscaler else "no autoscaler")

    def summary(self) -> Body:
        """Its entry in a task's result."""
        spec = self.autoscaler["spec"] if self.autoscaler else {}
        return {
            "name": self.deployment["metadata"]["name"],
            "replicas": self.replicas,
            "ready": self.ready,
            "min_replicas": spec.get("minReplicas", 1) if spec else None,
            "max_replicas": spec.get("maxReplicas"),
        }


def limits(autoscaler: Body) -> str:
    """Such as `3 to 10 by citadelbuy-api-hpa`."""
    spec = autoscaler["spec"]
    return f"{spec.get('minReplicas', 1)} to {spec['maxReplicas']} by {autoscaler['metadata']['name']}"


def targets(autoscaler: Body) -> str:
    """What its metrics are and shall be, as kubectl writes it: `cpu: 12%/70%`."""
    now = {
        item["resource"]["name"]: item["resource"].get("current", {}).get("averageUtilization")
        for item in (autoscaler.get("status") or {}).get("currentMetrics") or []
        if item.get("type") == "Resource"
    }
    found = []
    for metric in autoscaler["spec"].get("metrics") or []:
        resource = metric.get("resource") or {}
        wanted = (resource.get("target") or {}).get("averageUtilization")
        if wanted is None:
            found.append(f"{metric['type']} metric")
            continue
        current = now.get(resource["name"])
        found.append(f"{resource['name']}: {'<unknown>' if current is None else f'{current}%'}/{wanted}%")
    return ", ".join(found) or "no metrics"


def applications(cluster: Cluster, namespace: str, deployments: list[Body]) -> list[Application]:
    """Deployments, each with its autoscaler."""
    scaled = {
        (target["kind"], target["name"]): body
        for body in cluster.list(AUTOSCALER, namespace)["items"]
        for target in [body["spec"]["scaleTargetRef"]]
    }
    return [Application(body, scaled.get(("Deployment", body["metadata"]["name"]))) for body in deployments]


def too_small(cluster: Cluster, application: Application, replicas: int) -> str | None:
    """Why so many pods of an application do not fit on the nodes beside all that runs; None where they do.

    Those of it that have a node already are there.
    """
    spec = application.deployment["spec"]
    labels = spec["selector"].get("matchLabels") or {}
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    own = cluster.list(POD, application.deployment["metadata"]["namespace"], labelSelector=selector)["items"]
    more = replicas - sum(bool(pod["spec"].get("nodeName")) for pod in own)
    if more < 1:
        return None
    pod = spec["template"]["spec"]
    nodes = capacity.usable_nodes(
        cluster.request("GET", "/api/v1/nodes")[1].get("items") or [], capacity.running_pods(cluster), set()
    )
    wanted = [capacity.Demand(str(application), capacity.pod_size(pod), pod)] * more
    who = f"{more} more {'pod requests' if more == 1 else 'pods request'}"
    return capacity.shortage(wanted, [], nodes, who, "add nodes, or ask for fewer pods")


def scale(cluster: Cluster, application: Application, replicas: int, dry: bool = False) -> Body:
    """Have an application keep so many pods at least, and allow as many; returns the changed object.

    :param dry: only ask what would be.
    """

    def change(body: Body, live: Body) -> None:
        body["spec"] = dict(body.get("spec") or {})
        if live["kind"] != AUTOSCALER.kind:
            body["spec"]["replicas"] = replicas
            return
        body["spec"]["minReplicas"] = replicas
        if live["spec"]["maxReplicas"] < replicas:
            body["spec"]["maxReplicas"] = replicas

    scaler = application.autoscaler or application.deployment
    resource = AUTOSCALER if application.autoscaler else DEPLOYMENT
    metadata = scaler["metadata"]
    return apply_own(cluster, resource, metadata["namespace"], metadata["name"], change, dry)


def wait_for_autoscaler(
    cluster: Cluster,
    application: Application,
    replicas: int,
    timeout: float,
    tell: Callable[[str], None] | None = None,
) -> Body:
    """Wait until the autoscaler has given its Deployment so many replicas; returns the Deployment.

    Its controller looks every 15 seconds.

    :raises EngineError: it did not in time, with what it says about itself.
    """
    metadata = application.deployment["metadata"]
    began = time.monotonic()
    try:
        while True:
            live = cluster.get(DEPLOYMENT, metadata["namespace"], metadata["name"])
            if live is None:
                raise EngineError(f"{application} is gone: something deleted it.")
            now = live["spec"].get("replicas", 1)
            if now >= replicas:
                return live
            waited = time.monotonic() - began
            if waited > timeout:
                raise EngineError(_idle(cluster, application, replicas, timeout))
            if tell:
                tell(f"waiting {waited:.0f} s: {application} ({now} of {replicas} asked for by its autoscaler)")
            time.sleep(PAUSE)
    finally:
        if tell:
            tell("")


def _idle(cluster: Cluster, application: Application, replicas: int, timeout: float) -> str:
    """What to say of an autoscaler that has not done its work."""
    assert application.autoscaler
    metadata = application.autoscaler["metadata"]
    where = f"HorizontalPodAutoscaler {metadata['namespace']}/{metadata['name']}"
    live = cluster.get(AUTOSCALER, metadata["namespace"], metadata["name"])
    if live is None:
        return f"{where} is gone: something deleted it."
    if live["spec"].get("minReplicas", 1) < replicas:
        return f"{where}: another run has set its minimum to {live['spec'].get('minReplicas', 1)} meanwhile."
    said = "; ".join(
        f"{item['reason']}: {item['message']}"
        for item in (live.get("status") or {}).get("conditions") or []
        if item["status"] == "False" and item["type"] != "ScalingLimited"
    )
    return (
        f"{where} has not given {application} its {replicas} replicas in {timeout:.0f} s: {said or 'it says nothing'}. "
        f"To do: kubectl -n {metadata['namespace']} describe hpa {metadata['name']}; does kube-controller-manager run?"
    )
