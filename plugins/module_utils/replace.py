"""Changes that Kubernetes refuses in place: a plan in plain words, and its execution where it is allowed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.capacity import quantity
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest

VARIABLE = "platform_replace"
CLAIM = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims", True)
STORAGE_CLASS = Resource("storage.k8s.io/v1", "StorageClass", "storageclasses", False)
# How API servers word it, kind by kind (pkg/apis/*/validation of Kubernetes).
REFUSALS = (
    "immutable",
    "updates to statefulset spec",
    "may not change once set",
    "cannot change roleRef",
    "updates to provisioner",
    "updates to parameters",
    "updates to reclaimPolicy",
    "updates to volumeBindingMode",
    "may not be changed in an update",
)
# What a StatefulSet may change in place.
MUTABLE = {
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
    "volumeClaimTemplates",
}
COSTS = {
    "Job": "its pods and their logs are deleted, and it runs again",
    "Service": "connections through it break for about a second, and it gets a new address",
    "Deployment": "all its pods end at once, and nothing serves until the new ones are ready",
    "DaemonSet": "all its pods end at once, and nothing serves until the new ones are ready",
    "RoleBinding": "its subjects lose their rights for an instant",
    "ClusterRoleBinding": "its subjects lose their rights for an instant",
}
NEVER = {
    "PersistentVolumeClaim": "add a claim under another name, move the data, then take this one out of the template",
    "PersistentVolume": "add a volume under another name and move the data",
    "Namespace": "undo the change",
    "CustomResourceDefinition": "undo the change, or serve another version beside it",
}


@dataclass
class Remedy:
    """How to get from the live object to the wanted one."""

    action: str  # replaced, expanded
    cost: str
    propagation: str = "Background"
    allowed: bool = False  # without being named
    growing: list[tuple[str, str]] = field(default_factory=list)  # claims and their new sizes


def is_refused_in_place(error: ApiError) -> bool:
    """Whether the server says that this field of this object cannot change."""
    return error.status == 422 and any(words in str(error) for words in REFUSALS)


def has_failed(job: Body | None) -> bool:
    """Whether a Job has failed for good: only a new one runs again."""
    conditions = ((job or {}).get("status") or {}).get("conditions") or []
    return any(item["type"] == "Failed" and item["status"] == "True" for item in conditions)


def find_remedy(cluster: Cluster, manifest: Manifest, live: Body, refusal: str, named: Iterable[str]) -> Remedy:
    """What has to be done.

    :param refusal: the server's words.
    :param named: objects that may be replaced, as `Kind namespace/name`.
    :raises EngineError: with the plan, its cost and the variable that allows it, where it is not allowed.
    """
    where = f"{manifest} (template {manifest.source}): {refusal.rstrip('.')}."
    if manifest.kind in NEVER:
        raise EngineError(f"{where} It is never replaced. To do: {NEVER[manifest.kind]}.")
    if manifest.kind == "Job" and has_failed(live):
        return Remedy("replaced", COSTS["Job"], allowed=True)
    is_named = str(manifest) in set(named)
    if manifest.kind == "StatefulSet":
        remedy = _stateful(cluster, manifest, live, where, is_named)
    else:
        remedy = Remedy("replaced", COSTS.get(manifest.kind, "it does not exist for an instant"))
    if not remedy.allowed and not is_named:
        how = "deleted without its pods and volumes" if remedy.propagation == "Orphan" else "deleted"
        raise EngineError(
            f"{where} Plan: it would be {how} and created anew; {remedy.cost}. "
            f'To do: undo the change, or allow this with -e \'{{"{VARIABLE}": ["{manifest}"]}}\'.'
        )
    return remedy


def _stateful(cluster: Cluster, manifest: Manifest, live: Body, where: str, is_named: bool) -> Remedy:
    """A StatefulSet is deleted without its pods: the new one takes them over, and rolls them where they differ."""
    wanted, old = manifest.body["spec"], live["spec"]
    same_pods = wanted.get("selector") == old.get("selector")
    old_claims = {claim["metadata"]["name"]: claim for claim in old.get("volumeClaimTemplates") or []}
    grown: dict[str, str] = {}
    only_size = set(old_claims) == {c["metadata"]["name"] for c in wanted.get("volumeClaimTemplates") or []}
    for claim in wanted.get("volumeClaimTemplates") or []:
        before = old_claims.get(claim["metadata"]["name"])
        if before is None:
            continue
        new_size, old_size = _size(claim), _size(before)
        only_size &= _within(_without_size(claim["spec"]), before["spec"])
        if quantity(new_size) > quantity(old_size):
            grown[claim["metadata"]["name"]] = new_size
        elif quantity(new_size) < quantity(old_size):
            only_size = False
    others = {key: value for key, value in wanted.items() if key not in MUTABLE}
    only_size &= all(_within(value, old.get(key)) for key, value in others.items())
    try:
        growing = _claims(cluster, manifest, grown, where)
    except EngineError:
        if not is_named:
            raise
        growing, only_size = [], False  # the new size is for new volumes only
    if only_size and grown:
        cost = f"{len(growing)} volumes grow in place"
        return Remedy("expanded", cost, "Orphan", allowed=True, growing=growing)
    cost = (
        "its pods go on and are rolled one by one where their template differs; volumes that exist keep what they are"
        if same_pods
        else "its selector differs, so all its pods end at once; volumes that exist stay"
    )
    return Remedy("replaced", cost, "Orphan" if same_pods else "Background", growing=growing)


def _claims(cluster: Cluster, manifest: Manifest, grown: dict[str, str], where: str) -> list[tuple[str, str]]:
    """The live claims that have to grow, with their new sizes; their class must be able to."""
    if not grown:
        return []
    growing = []
    for claim in cluster.list(CLAIM, manifest.namespace)["items"]:
        name = claim["metadata"]["name"]
        of = re.fullmatch(rf"(.+)-{re.escape(manifest.name)}-\d+", name)
        if not of or of[1] not in grown or quantity(_size(claim)) >= quantity(grown[of[1]]):
            continue
        storage_class = claim["spec"].get("storageClassName") or ""
        live = cluster.get(STORAGE_CLASS, None, storage_class) if storage_class else None
        if not (live or {}).get("allowVolumeExpansion"):
            raise EngineError(
                f"{where} PersistentVolumeClaim {manifest.namespace}/{name} would grow from {_size(claim)} to "
                f"{grown[of[1]]}, but its StorageClass {storage_class or '(none)'} does not allow expansion. To do: "
                "set allowVolumeExpansion on the class if its driver can; else undo the change, or move the data."
            )
        growing.append((name, grown[of[1]]))
    return growing


def _size(claim: Body) -> str:
    return str((((claim.get("spec") or {}).get("resources") or {}).get("requests") or {}).get("storage") or "0")


def _without_size(spec: Body) -> Body:
    return {key: value for key, value in spec.items() if key != "resources"}


def _within(wanted: Any, live: Any) -> bool:
    """Whether all that is wanted is there; what the server has added does not count."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(_within(value, live.get(key)) for key, value in wanted.items())
    return wanted == live


def carry_out(
    cluster: Cluster, manifest: Manifest, resource: Resource, live: Body, remedy: Remedy, create: Callable[[], Body]
) -> Body:
    """Grow the claims, delete the live object, create the wanted one; the next run goes on where one died in between.

    :param create: applies the manifest.
    """
    for name, size in remedy.growing:
        patch = {"spec": {"resources": {"requests": {"storage": size}}}}
        cluster.request("PATCH", CLAIM.path(manifest.namespace, name), patch, None, "application/merge-patch+json")
    options = {"propagationPolicy": remedy.propagation, "preconditions": {"uid": live["metadata"]["uid"]}}
    try:
        cluster.request("DELETE", resource.path(manifest.namespace, manifest.name), options)
    except ApiError as error:
        if error.status != 404:
            raise
    wait_gone(cluster, resource, manifest)
    return create()


def wait_gone(cluster: Cluster, resource: Resource, manifest: Manifest, timeout: float = 60.0) -> None:
    """Return when an object that is being deleted no longer exists.

    :raises EngineError: after `timeout` seconds, with the finalizers that hold it.
    """
    deadline, pause = time.monotonic() + timeout, 0.05
    while True:
        live = cluster.get(resource, manifest.namespace, manifest.name)
        if live is None or not live["metadata"].get("deletionTimestamp"):
            return
        if time.monotonic() > deadline:
            held = ", ".join(live["metadata"].get("finalizers") or []) or "no finalizer"
            raise EngineError(
                f"{manifest}: it is being deleted since {live['metadata']['deletionTimestamp']}, held by: {held}. "
                "To do: find out what that waits for, then run again."
            )
        time.sleep(pause)
        pause = min(pause * 2, 1.0)
