"""Back to an earlier revision of a Deployment, its fields still the engine's own: the next run does not conflict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils import wait
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.fields import applied_fields, extract
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import MANAGER

DEPLOYMENT = Resource("apps/v1", "Deployment", "deployments", True)
REPLICA_SET = Resource("apps/v1", "ReplicaSet", "replicasets", True)
REVISION = "deployment.kubernetes.io/revision"
TRIES = 8  # its status moves on between read and write


@dataclass
class Revision:
    """One pod template that a Deployment has had and still remembers, by its ReplicaSet."""

    number: int
    images: list[str]
    created: str
    ready: int  # pods
    current: bool
    template: Body

    def summary(self) -> dict[str, Any]:
        """Its entry in a task's result."""
        return {
            "revision": self.number,
            "images": self.images,
            "created": self.created,
            "ready": self.ready,
            "current": self.current,
        }


def revisions(cluster: Cluster, deployment: Body) -> list[Revision]:
    """What a Deployment can go back to, oldest first, the current one last."""
    metadata = deployment["metadata"]
    current = _number(deployment)
    found = [
        Revision(
            _number(body),
            [container["image"] for container in body["spec"]["template"]["spec"]["containers"]],
            body["metadata"].get("creationTimestamp") or "",
            (body.get("status") or {}).get("readyReplicas") or 0,
            _number(body) == current,
            body["spec"]["template"],
        )
        for body in cluster.list(REPLICA_SET, metadata["namespace"])["items"]
        if any(owner.get("uid") == metadata["uid"] for owner in body["metadata"].get("ownerReferences") or [])
    ]
    return sorted(found, key=lambda revision: revision.number)


def _number(body: Body) -> int:
    return int((body["metadata"].get("annotations") or {}).get(REVISION) or 0)


def table(deployment: Body, known: Iterable[Revision]) -> str:
    """The revisions of a Deployment as text."""
    metadata = deployment["metadata"]
    lines = [f"Deployment {metadata['namespace']}/{metadata['name']}"]
    for revision in known:
        mark = "  (current)" if revision.current else ""
        images = ", ".join(revision.images)
        lines.append(f"  revision {revision.number}  {revision.created}  {revision.ready} ready  {images}{mark}")
    return "\n".join(lines)


def choose(deployment: Body, known: list[Revision], number: int | None) -> Revision:
    """The revision to go back to; without a number the newest earlier one that still has ready pods, else the newest.

    :raises EngineError: where there is none, with those that exist.
    """
    name = f"Deployment {deployment['metadata']['namespace']}/{deployment['metadata']['name']}"
    earlier = [revision for revision in known if not revision.current]
    if number is not None:
        earlier = [revision for revision in known if revision.number == number]
        if not earlier:
            raise EngineError(f"{name} has no revision {number}. It has: {_numbers(known)}.")
    if not earlier:
        raise EngineError(f"{name} has no earlier revision to go back to: this is its first one.")
    return max(earlier, key=lambda revision: (revision.ready > 0, revision.number))


def _numbers(known: Iterable[Revision]) -> str:
    return ", ".join(str(revision.number) for revision in known)


def undo(cluster: Cluster, deployment: Body, revision: Revision, dry: bool = False) -> Body:
    """Give a Deployment the template of an earlier revision; returns the server's answer.

    Applied by the engine's own field manager with all else that it owns, so that the next run finds its fields its own.
    What another manager has changed in the template since is taken over: a template is undone as a whole.
    """
    metadata = deployment["metadata"]
    for attempt in range(TRIES):
        live = deployment if attempt == 0 else cluster.get(DEPLOYMENT, metadata["namespace"], metadata["name"])
        if live is None:
            break
        body = extract(live, applied_fields(live, MANAGER))
        body |= {"apiVersion": DEPLOYMENT.api_version, "kind": DEPLOYMENT.kind}
        body["metadata"] = body.get("metadata") or {}
        body["metadata"] |= {key: live["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
        template = revision.template | {"metadata": dict(revision.template["metadata"])}
        labels = template["metadata"].get("labels") or {}
        template["metadata"]["labels"] = {key: labels[key] for key in labels if key != "pod-template-hash"}
        template["metadata"].pop("creationTimestamp", None)
        body["spec"] = (body.get("spec") or {}) | {"template": template}
        query = {"fieldManager": MANAGER, "force": "true"} | ({"dryRun": "All"} if dry else {})
        path = DEPLOYMENT.path(metadata["namespace"], metadata["name"])
        try:
            return cluster.request("PATCH", path, body, query, "application/apply-patch+yaml")[1]
        except ApiError as error:
            if error.status != 409 or attempt == TRIES - 1:
                raise
    raise EngineError(f"Deployment {metadata['namespace']}/{metadata['name']} is gone: something deleted it.")


def undo_failed(cluster: Cluster, targets: Iterable[wait.Target], timeout: float) -> list[str]:
    """Undo the rollouts among these targets that have not become ready, and wait until the old pods serve.

    :returns: one line about each.
    """
    told, undone = [], []
    for target in targets:
        live = cluster.get(DEPLOYMENT, target.namespace, target.name) if target.kind == "Deployment" else None
        if live is None or wait.progress(live)[0]:
            continue
        try:
            revision = choose(live, revisions(cluster, live), None)
            undone.append(undo(cluster, live, revision))
            told.append(f"{target}: rolled back to revision {revision.number} ({', '.join(revision.images)}).")
        except EngineError as error:
            told.append(f"{target}: not rolled back: {error}")
    try:
        wait.Waiter(cluster, timeout).wait(wait.targets_of(undone))
    except EngineError as error:
        told.append(f"What was rolled back is not ready either: {error}")
    return told
