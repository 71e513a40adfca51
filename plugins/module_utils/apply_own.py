"""A change to one object, by the engine's own field manager, beside the sets that roles apply."""

from __future__ import annotations

from collections.abc import Callable

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.fields import applied_fields, extract
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import MANAGER

TRIES = 8  # somebody else may write at the same time


def apply_own(
    cluster: Cluster,
    resource: Resource,
    namespace: str,
    name: str,
    change: Callable[[Body, Body], None],
    dry: bool = False,
) -> Body:
    """Change an object as the engine would: with all else that it owns, so that its next run finds its own.

    :param change: is given what will be applied, to be changed, and the object as it is.
    :param dry: only ask what would be.
    :raises EngineError: the object is gone, or changes all the time.
    """
    for _attempt in range(TRIES):
        live = cluster.get(resource, namespace, name)
        if live is None:
            raise EngineError(f"{resource.kind} {namespace}/{name} is gone: something deleted it.")
        body = extract(live, applied_fields(live, MANAGER) or {"f:metadata": {}})
        body |= {"apiVersion": resource.api_version, "kind": resource.kind}
        body["metadata"] = dict(body.get("metadata") or {})
        body["metadata"] |= {key: live["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
        change(body, live)
        try:
            query = {"fieldManager": MANAGER, "force": "true"} | ({"dryRun": "All"} if dry else {})
            path = resource.path(namespace, name)
            return cluster.request("PATCH", path, body, query, "application/apply-patch+yaml")[1]
        except ApiError as error:
            if error.status != 409:
                raise
    raise EngineError(f"{resource.kind} {namespace}/{name} changes faster than it can be applied. Run again.")
