"""Rolling restarts, as `kubectl rollout restart` makes them: by the time of it, written on the pod template.

That annotation is not the engine's: its runs neither take it away nor write it again, so they leave a restart alone.
"""

from __future__ import annotations

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import MANAGER
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import KINDS

RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"  # kubectl's own, so that the two are one


def restarted_at(template: Body) -> str:
    """When the pods of a template were restarted last; empty where never."""
    return str((template["metadata"].get("annotations") or {}).get(RESTARTED_AT) or "")


def without(template: Body) -> Body:
    """A pod template without the time of its restart."""
    metadata = template["metadata"]
    annotations = {key: value for key, value in (metadata.get("annotations") or {}).items() if key != RESTARTED_AT}
    metadata = {key: value for key, value in metadata.items() if key != "annotations"}
    return template | {"metadata": metadata | ({"annotations": annotations} if annotations else {})}


def mark(cluster: Cluster, live: Body, when: str, dry: bool = False, version: str = "") -> Body:
    """Write the time of a restart on a workload's pod template, which replaces its pods; returns the server's answer.

    :param when: empty takes it away.
    :param version: its resourceVersion, where it has to be as it was read.
    """
    metadata = live["metadata"]
    change: Body = {"spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: when or None}}}}}
    change |= {"metadata": {"resourceVersion": version}} if version else {}
    query = {"fieldManager": f"{MANAGER}-restart"} | ({"dryRun": "All"} if dry else {})
    path = KINDS[live["kind"]].path(metadata["namespace"], metadata["name"])
    return cluster.request("PATCH", path, change, query, "application/merge-patch+json")[1]
