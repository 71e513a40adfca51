"""Back to an earlier revision of a Deployment, its fields still the engine's own: the next run does not conflict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, restart, wait
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
    current: bool  # the Deployment's template is this one
    same: bool  # as the current one, but for the time of a restart
    checksum: str  # of the configuration its pods read when it was applied; "" where they read none
    template: Body

    def summary(self) -> dict[str, Any]:
        """Its entry in a task's result."""
        return {
            "revision": self.number,
            "images": self.images,
            "created": self.created,
            "ready": self.ready,
            "current": self.current,
            "config_checksum": self.checksum,
        }


def revisions(cluster: Cluster, deployment: Body) -> list[Revision]:
    """What a Deployment can go back to, oldest first.

    The current one is told by its template, as the number on the Deployment is that of an earlier one until its
    controller has seen a change.
    """
    metadata = deployment["metadata"]
    wanted = _without_hash(deployment["spec"]["template"])
    found = []
    for body in cluster.list(REPLICA_SET, metadata["namespace"])["items"]:
        if not any(owner.get("uid") == metadata["uid"] for owner in body["metadata"].get("ownerReferences") or []):
            continue
        template = _without_hash(body["spec"]["template"])
        found.append(
            Revision(
                _number(body),
                [container["image"] for container in template["spec"]["containers"]],
                body["metadata"].get("creationTimestamp") or "",
                (body.get("status") or {}).get("readyReplicas") or 0,
                template == wanted,
                restart.without(template) == restart.without(wanted),
                (template["metadata"].get("annotations") or {}).get(applyset.CHECKSUM) or "",
                template,
            )
        )
    return sorted(found, key=lambda revision: revision.number)


def _without_hash(template: Body) -> Body:
    """A pod template as it was applied: without what a ReplicaSet adds, or the server writes as null."""
    metadata = {key: value for key, value in template["metadata"].items() if key != "creationTimestamp"}
    labels = metadata.get("labels") or {}
    metadata["labels"] = {key: labels[key] for key in labels if key != "pod-template-hash"}
    return template | {"metadata": metadata}


def rolled_out(deployment: Body, known: Iterable[Revision]) -> bool:
    """Whether all pods of the current template have been ready once, whatever has become of them since."""
    status = deployment.get("status") or {}
    reasons = {item["type"]: item.get("reason") for item in status.get("conditions") or []}
    return (
        any(revision.current and revision.number == _number(deployment) for revision in known)
        and reasons.get("Progressing") == "NewReplicaSetAvailable"
        and status.get("replicas", 0) == status.get("updatedReplicas", 0)
    )


def _number(body: Body) -> int:
    return int((body["metadata"].get("annotations") or {}).get(REVISION) or 0)


def table(deployment: Body, known: Iterable[Revision]) -> str:
    """The revisions of a Deployment as text."""
    metadata = deployment["metadata"]
    lines = [f"Deployment {metadata['namespace']}/{metadata['name']}"]
    for revision in known:
        text = f"  revision {revision.number}  {revision.created}  {revision.ready} ready  {', '.join(revision.images)}"
        text += f"  configuration {revision.checksum[:8]}" if revision.checksum else ""
        lines.append(text + ("  (current)" if revision.current else ""))
    return "\n".join(lines)


def choose(deployment: Body, known: list[Revision], number: int | None) -> Revision:
    """The revision to go back to; without a number the newest earlier one that still has ready pods, else the newest.

    A restart is a revision too: without a number it is only undone while pods of before it are ready.
    :raises EngineError: where there is none, with those that exist.
    """
    name = f"Deployment {deployment['metadata']['namespace']}/{deployment['metadata']['name']}"
    earlier = [revision for revision in known if not revision.current and (revision.ready or not revision.same)]
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
    What another manager has changed in the template since is taken over: a template is undone as a whole. The
    time of a restart is set by its own manager, before: the engine's next run would take it away and roll the pods.

    :param deployment: as it was when the revision was chosen.
    :raises EngineError: where its template has been changed since, or it is gone.
    """
    metadata = deployment["metadata"]
    name = f"Deployment {metadata['namespace']}/{metadata['name']}"
    for attempt in range(TRIES):
        live = deployment if attempt == 0 else cluster.get(DEPLOYMENT, metadata["namespace"], metadata["name"])
        if live is None:
            raise EngineError(f"{name} is gone: something deleted it.")
        if _without_hash(live["spec"]["template"]) == revision.template:
            return live  # a lost answer, or somebody else's
        if restart.without(live["spec"]["template"]) != restart.without(deployment["spec"]["template"]):
            raise EngineError(f"{name} was changed meanwhile: left as it is. To do: look at it, then run again.")
        body = extract(live, applied_fields(live, MANAGER))
        body |= {"apiVersion": DEPLOYMENT.api_version, "kind": DEPLOYMENT.kind}
        body["metadata"] = body.get("metadata") or {}
        body["metadata"] |= {key: live["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
        body["spec"] = (body.get("spec") or {}) | {"template": revision.template}
        query = {"fieldManager": MANAGER, "force": "true"} | ({"dryRun": "All"} if dry else {})
        path = DEPLOYMENT.path(metadata["namespace"], metadata["name"])
        when = restart.restarted_at(revision.template)
        try:
            if not dry and when != restart.restarted_at(live["spec"]["template"]):
                restart.mark(cluster, live, when, version=live["metadata"]["resourceVersion"])
                continue
            answer = cluster.request("PATCH", path, body, query, "application/apply-patch+yaml")[1]
            if dry:
                answer["spec"]["template"] = revision.template
            return answer
        except ApiError as error:
            if error.status != 409:
                raise
    raise EngineError(f"{name} changes faster than it can be applied. To do: run again.")


def undo_failed(cluster: Cluster, targets: Iterable[wait.Target], timeout: float) -> list[str]:
    """Undo the rollouts among these targets that have not become ready, and wait until the old pods serve.

    Left alone, and told, are those that have no earlier revision with ready pods, and those whose pods have been ready
    and are so no more: what broke them is not their template.

    :returns: one line about each.
    """
    told, undone = [], []
    for target in targets:
        if target.kind != "Deployment":
            continue
        try:
            live = cluster.get(DEPLOYMENT, target.namespace, target.name)
            if live is None or wait.progress(live)[0]:
                continue
            known = revisions(cluster, live)
            if rolled_out(live, known):
                raise EngineError("its pods have been ready in this revision, so what is wrong is something else.")
            revision = choose(live, known, None)
            if not revision.ready:
                raise EngineError(f"no earlier revision has ready pods. It has: {_numbers(known)}.")
            undone.append(undo(cluster, live, revision))
            told.append(f"{target}: rolled back to revision {revision.number} ({', '.join(revision.images)}).")
        except EngineError as error:
            told.append(f"{target}: not rolled back: {error}")
    try:
        wait.Waiter(cluster, timeout).wait(wait.targets_of(undone))
    except EngineError as error:
        told.append(f"What was rolled back is not ready either: {error}")
    return told
