"""Deletes what a set applied before and no longer renders, except for what holds data."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from ansible_collections.citadelbuy.platform.plugins.module_utils import diff
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import ApiError, Cluster, Resource
from ansible_collections.citadelbuy.platform.plugins.module_utils.generate import GENERATE
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body, Change
from ansible_collections.citadelbuy.platform.plugins.module_utils.rank import RANKS, rank_of

VARIABLE = "platform_prune_data"
GUARDED = {
    "Namespace": "everything in it would go with it",
    "PersistentVolume": "it holds data",
    "PersistentVolumeClaim": "it holds data",
    "CustomResourceDefinition": "all objects of its kind would go with it",
}
TRIES = 8


def guard(body: Body) -> str:
    """Why an object is only deleted on an explicit word; empty where it is not."""
    if body["kind"] == "StatefulSet" and (body.get("spec") or {}).get("volumeClaimTemplates"):
        return "it holds data in volumes"
    if body["kind"] == "Secret" and GENERATE in (body["metadata"].get("annotations") or {}):
        return "its generated values exist nowhere else"
    if body["kind"] == "Job" and (body.get("status") or {}).get("ready"):
        return "its pod is at work, and the next run deletes it when it has ended"
    return GUARDED.get(body["kind"], "")


def prune(
    cluster: Cluster,
    leftovers: Iterable[Body],
    applied: Iterable[Body],
    allowed: Iterable[str],
    dry: bool,
    held: str = "",
) -> list[Change]:
    """Delete the members that no manifest stands for, workloads first.

    :param leftovers: live objects, as they were when the run began.
    :param applied: live objects that the run has applied; they stay, even where a leftover owns them.
    :param allowed: guarded objects that may go, as `Kind namespace/name`.
    :param held: why none of them may go.
    :raises ApiError: when the server refuses a deletion.
    """
    owners = {owner["uid"] for body in applied for owner in body["metadata"].get("ownerReferences") or []}
    leftovers = [body for body in leftovers if not body["metadata"].get("deletionTimestamp") and not _controlled(body)]
    if held:
        return sorted((_kept(body, held) for body in leftovers), key=str)
    changes: list[Change] = []
    for rank in reversed(RANKS):
        members = [body for body in leftovers if rank_of(body) == rank]
        if members:
            with ThreadPoolExecutor(min(4, len(members))) as pool:
                changes += pool.map(lambda body: _delete(cluster, body, owners, set(allowed), dry), members)
    return sorted(changes, key=str)


def _controlled(body: Body) -> bool:
    """Whether a controller has made an object, and its labels those of its owner: a Service's EndpointSlices."""
    return any(owner.get("controller") for owner in body["metadata"].get("ownerReferences") or [])


def _kept(body: Body, reason: str = "") -> Change:
    metadata = body["metadata"]
    return Change(body["kind"], metadata.get("namespace"), metadata["name"], "kept", before=body, reason=reason)


def _delete(cluster: Cluster, body: Body, owners: set[str], allowed: set[str], dry: bool) -> Change:
    """Delete one object, unless it is guarded or another run has applied it since it was read."""
    started = time.monotonic()
    metadata = body["metadata"]
    change = _kept(body)
    resource = cluster.resource(body["apiVersion"], body["kind"])
    live: Body | None = body
    for _attempt in range(TRIES):
        if live is None or live["metadata"]["uid"] != metadata["uid"] or live["metadata"].get("deletionTimestamp"):
            break  # somebody was quicker
        reason = guard(live)
        if reason and str(change) not in allowed:
            change.reason = f'{reason}; to delete it: {VARIABLE}: ["{change}"]'
            return change
        if diff.content(live) != diff.content(body) or _applied_at(live) != _applied_at(body):
            change.reason = "another run or user has changed it since this run began"
            return change
        try:
            _send(cluster, resource, live, "Orphan" if metadata["uid"] in owners else "Background", dry)
            break
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            live = cluster.get(resource, change.namespace, change.name)  # its status has moved on
    else:
        change.reason = "it keeps changing"
        return change
    change.action, change.seconds = "pruned", time.monotonic() - started
    return change


def _send(cluster: Cluster, resource: Resource | None, live: Body, propagation: str, dry: bool) -> None:
    assert resource, live["kind"]
    metadata = live["metadata"]
    options: Body = {
        "propagationPolicy": propagation,
        "preconditions": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
    }
    # With a body, the server does not look at the query: dryRun has to be in here.
    options |= {"dryRun": ["All"]} if dry else {}
    cluster.request("DELETE", resource.path(metadata.get("namespace"), metadata["name"]), options)


def _applied_at(body: Body) -> list[tuple[str, str, str]]:
    """Who has written an object, and when; its status aside."""
    return [
        (str(entry.get("manager")), str(entry.get("operation")), str(entry.get("time")))
        for entry in body["metadata"].get("managedFields") or []
        if not entry.get("subresource")
    ]
