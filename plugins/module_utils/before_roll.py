"""What has to be done before pods of a StatefulSet are replaced or go: a command, which its annotation names.

The annotation counts that the live object has, and a pod that is made from its present template: such a pod knows the
command. One of an earlier version may not, and without any nothing is done, for the roll may be what repairs.
"""

from __future__ import annotations

import shlex

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError, Resource
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body, Change
from ansible_collections.citadelbuy.platform.plugins.module_utils.report import is_ready
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import run_in_pod

BEFORE_ROLL = "citadelbuy.io/before-roll"
REVISION = "controller-revision-hash"
DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
POD = Resource("v1", "Pod", "pods", True)
TIMEOUT = 240  # seconds


def command(change: Change) -> str:
    """The command that has to run before a change is made; empty where there is none, or no pod is replaced or goes.

    :param change: as the server's dry run predicts it.
    """
    before, after = change.before, change.after
    if change.kind != "StatefulSet" or not before or not after:
        return ""
    old, new = before["spec"], after["spec"]
    fewer = new.get("replicas", 1) < old.get("replicas", 1)
    return _command(before) if fewer or old["template"] != new["template"] else ""


def run(cluster: Cluster, live: Body) -> str:
    """Run the command of a StatefulSet, where it has one, in a ready pod; returns what it said, in one line.

    :raises EngineError: names the StatefulSet, the command and what it said, when it failed.
    """
    said = _command(live)
    if not said:
        return ""
    pod = _pod(cluster, live)
    if pod is None:
        return f"no ready pod could run `{said}` first"
    name, namespace = live["metadata"]["name"], live["metadata"]["namespace"]
    metadata = pod["metadata"]
    container = (metadata.get("annotations") or {}).get(DEFAULT_CONTAINER) or pod["spec"]["containers"][0]["name"]
    try:
        answer = run_in_pod(cluster, namespace, metadata["name"], container, shlex.split(said), TIMEOUT)
    except EngineError as error:
        raise EngineError(
            f"StatefulSet {namespace}/{name}: its pods are left as they are, for `{said}` has to run in one of them "
            f"first, and failed: {str(error).rstrip('.')}. To do: see to that and run again; or, to roll without, "
            f"kubectl -n {namespace} annotate statefulset {name} {BEFORE_ROLL}-"
        ) from None
    return " ".join(answer.split()) or f"`{said}` has run first"


def _command(live: Body) -> str:
    """What its annotation says; nothing where one pod is all there is."""
    if live["spec"].get("replicas", 1) < 2:
        return ""
    return str((live["metadata"].get("annotations") or {}).get(BEFORE_ROLL) or "")


def _pod(cluster: Cluster, live: Body) -> Body | None:
    """A ready pod of the present template."""
    labels = live["spec"]["selector"].get("matchLabels") or {}
    labels = labels | {REVISION: (live.get("status") or {}).get("updateRevision") or ""}
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    pods = cluster.list(POD, live["metadata"]["namespace"], labelSelector=selector)["items"]
    ready = [pod for pod in pods if is_ready(pod) and not pod["metadata"].get("deletionTimestamp")]
    return min(ready, key=lambda pod: pod["metadata"]["name"], default=None)
