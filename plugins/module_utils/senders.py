"""Whether requests may still come to what a run is about to delete, from the proxies that other sets hold.

A proxy knows where to send them by a name in an object of its set, its configuration or a route. Changed, a pod that is
ending still does what that said before.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster
from ansible_collections.citadelbuy.platform.plugins.module_utils.foresee import Foreseen
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import Parent
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import POD, progress

Body = dict[str, Any]
PODS = ("Deployment", "StatefulSet", "DaemonSet")
PAUSE = 0.5  # seconds between looks at what is ending


def members(cluster: Cluster, sets: Iterable[str], namespace: str) -> list[Body]:
    """The objects of some sets.

    :param namespace: where the sets' parents are.
    """
    found: list[Body] = []
    for name in sets:
        parent = Parent(cluster, name, namespace)
        parent.read([])
        found += parent.members.values()
    return found


def named_by(bodies: Iterable[Body], doomed: Iterable[Body], foreseen: Foreseen) -> str:
    """Which object still names a Service that is to be deleted, as a reason to keep it; empty where none does.

    :param foreseen: what a run in check mode would have changed so far, which then names what its set wants.
    """
    services = [re.escape(body["metadata"]["name"]) for body in doomed if body["kind"] == "Service"]
    names = re.compile(rf"(?<![\w-])({'|'.join(services)})(?![\w-])")
    for body in bodies if services else ():
        said = {key: value for key, value in body.items() if key not in ("metadata", "status")}
        found = names.search(json.dumps(said))
        if found and not _would_change(body, foreseen):
            return f"{_title(body)} sends requests to Service {found[1]}; run what ends that first"
    return ""


def wait_until_quiet(
    cluster: Cluster, bodies: Iterable[Body], timeout: float, tell: Callable[[str], None] | None = None
) -> str:
    """Wait until nothing but what these objects say now is done, by their pods and routes' controllers.

    :returns: what was not so in time, as a reason to keep what requests may come to; else nothing.
    """
    began, bodies = time.monotonic(), list(bodies)
    try:
        while busy := next(filter(None, (_busy(cluster, body) for body in bodies)), ""):
            waited = time.monotonic() - began
            if waited > timeout:
                return f"{busy} after {waited:.0f} s, and may send requests there; the next run looks again"
            if tell:
                tell(f"waiting {waited:.0f} s: {busy}")
            time.sleep(PAUSE)
    finally:
        if tell:
            tell("")
    return ""


def _busy(cluster: Cluster, body: Body) -> str:
    """How an object's pods or proxies still do what it said before; empty where they do not."""
    if body["kind"] not in (*PODS, "HTTPRoute"):
        return ""
    namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
    resource = cluster.resource(body["apiVersion"], body["kind"])
    live = cluster.get(resource, namespace, name) if resource else None
    if live is None:
        return ""
    if body["kind"] == "HTTPRoute":
        seen = [
            condition.get("observedGeneration", 0)
            for parent in (live.get("status") or {}).get("parents") or []
            for condition in parent.get("conditions") or []
            if condition["type"] == "Accepted"
        ]
        followed = bool(seen) and min(seen) >= live["metadata"]["generation"]
        return "" if followed else f"{_title(body)} has a change that its controller has not seen"
    done, state = progress(live)
    if not done:
        return f"{_title(body)} rolls ({state})"
    labels = live["spec"]["selector"].get("matchLabels") or {}
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    pods = cluster.list(POD, namespace, labelSelector=selector)["items"]
    ending = [pod["metadata"]["name"] for pod in pods if pod["metadata"].get("deletionTimestamp")]
    return f"pod {namespace}/{ending[0]} is ending" if ending else ""


def _would_change(body: Body, foreseen: Foreseen) -> bool:
    """Whether a run in check mode would have changed an object."""
    metadata = body["metadata"]
    known = foreseen.get(body["kind"], metadata.get("namespace"), metadata["name"])
    return known is not None and known != (
        applyset.hash_keys(body) if body["kind"] == "ConfigMap" else body.get("spec")
    )


def _title(body: Body) -> str:
    return f"{body['kind']} {body['metadata'].get('namespace')}/{body['metadata']['name']}"
