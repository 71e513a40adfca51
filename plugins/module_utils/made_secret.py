"""Secrets that a controller makes from an object of its own: External Secrets, Sealed Secrets."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    SECRET,
    Cluster,
    EngineError,
    Resource,
)

# The object that a Secret is made from, and its condition that says so.
MAKERS = {
    "ExternalSecret": (
        Resource("external-secrets.io/v1", "ExternalSecret", "externalsecrets", True),
        "Ready",
        "External Secrets",
    ),
    "SealedSecret": (
        Resource("bitnami.com/v1alpha1", "SealedSecret", "sealedsecrets", True),
        "Synced",
        "Sealed Secrets",
    ),
}
INTERVAL = 0.5  # seconds; the controllers themselves look at a failed object every few seconds or minutes


def wait_for_secret(
    cluster: Cluster, made_by: str, namespace: str, name: str, keys: Iterable[str], timeout: float
) -> None:
    """Wait until its maker has made the Secret with all keys.

    :raises EngineError: when that has not come after `timeout` seconds; names the maker, its status and missing keys.
    """
    resource, done, controller = MAKERS[made_by]
    deadline = time.monotonic() + timeout
    while True:
        maker = cluster.get(resource, namespace, name) or {}
        conditions = (maker.get("status") or {}).get("conditions") or []
        condition = next((item for item in conditions if item.get("type") == done), {})
        data = (cluster.get(SECRET, namespace, name) or {}).get("data") or {}
        missing = sorted({key for key in keys if not data.get(key)})
        seen = (maker.get("status") or {}).get("observedGeneration", 0)
        current = made_by != "SealedSecret" or seen >= (maker.get("metadata") or {}).get("generation", 1)
        if condition.get("status") == "True" and current and not missing:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(INTERVAL)
    if not condition:
        told = f"it says nothing: is the controller of {controller} running?"
    elif condition["status"] == "True":
        told = f"it says {done}: nothing is wrong with what it holds, so give it the missing keys."
    else:
        reason = condition.get("reason") or done
        told = f"it says {reason}: {condition.get('message') or condition['status']}"
    lacks = f"lacks {', '.join(missing)}" if missing else "is not up to date"
    raise EngineError(f"Secret {namespace}/{name} {lacks} after {timeout:g} s. {made_by} {namespace}/{name}: {told}")
