"""Why a pod does not run, by what Kubernetes says of it: for a wait, and for a diagnosis of one moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ansible_collections.citadelbuy.platform.plugins.module_utils import report

Body = dict[str, Any]
CRASHES = 2  # restarts after which a crash loop counts
IMAGE_ERRORS = {"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
# A kubelet that has just started has not read these yet.
PASSING_CONFIG = ("have not yet been read", "failed to sync")
# An unschedulable pod with one of these may still find its place.
PASSING = (
    "PersistentVolumeClaim",
    "persistentvolumeclaim",
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.cloudprovider.kubernetes.io/uninitialized",
    "no nodes available",
)


class Failure(NamedTuple):
    """What keeps one container from running."""

    reason: str  # as Kubernetes has it, such as ImagePullBackOff
    container: str
    text: str  # for people, without the place
    sure: bool  # false: it counts when it lasts


def container_statuses(pod: Body) -> list[Body]:
    """The states of a pod's containers, those of initialisation first."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def container_failures(pod: Body) -> Iterator[Failure]:
    """The containers of a pod that do not run, in order."""
    for container in container_statuses(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, message, name = waiting.get("reason", ""), waiting.get("message", ""), container["name"]
        if reason in IMAGE_ERRORS or reason == "ErrImagePull":
            sure = reason in IMAGE_ERRORS or "not found" in message or "NotFound" in message
            yield Failure(reason, name, f"{reason}: image {container.get('image')}: {message}", sure)
        elif reason == "CreateContainerConfigError" and not any(word in message for word in PASSING_CONFIG):
            yield Failure(reason, name, f"{reason}: {message}", True)
        elif reason in ("CreateContainerError", "RunContainerError"):
            yield Failure(reason, name, f"{reason}: {message}", False)
        elif reason == "CrashLoopBackOff" and container.get("restartCount", 0) >= CRASHES:
            text = f"{reason} after {container['restartCount']} restarts: {report.last_exit(container)}"
            yield Failure(reason, name, text, True)


def unschedulable(pod: Body) -> str | None:
    """What the scheduler says of a pod that no node can take; None where it has a node, or is to get one."""
    status = pod.get("status") or {}
    placed = {item["type"]: item for item in status.get("conditions") or []}.get("PodScheduled", {})
    if placed.get("status") != "False" or placed.get("reason") != "Unschedulable" or status.get("nominatedNodeName"):
        return None
    return str(placed.get("message", ""))
