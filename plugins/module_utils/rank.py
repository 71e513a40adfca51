"""The order in which the objects of one set are applied."""

from __future__ import annotations

from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.generate import ISSUER

RANKS = (0, 1, 2, 3)
_FIRST = {"Namespace", "CustomResourceDefinition"}
_SECOND = {
    "ServiceAccount",
    "Role",
    "ClusterRole",
    "ConfigMap",
    "Secret",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "StorageClass",
    "ResourceQuota",
    "LimitRange",
    "PriorityClass",
    "NetworkPolicy",
}
_THIRD = {"RoleBinding", "ClusterRoleBinding"}


def rank_of(body: dict[str, Any]) -> int:
    """0: what others live in; 1: what pods need; 2: what comes from those; 3: pods and everything around them.

    A certificate comes from the authority that signs it.
    Whoever is no administrator may only bind a role that exists: the API server looks whether he holds its rights.
    A NetworkPolicy that selects every pod is of the last rank: what is allowed stands before the rest is denied, and
    goes after it.
    """
    kind = body["kind"]
    if kind == "Secret" and ISSUER in (body["metadata"].get("annotations") or {}):
        return 2
    if kind == "NetworkPolicy" and not (body.get("spec") or {}).get("podSelector"):
        return 3
    return 0 if kind in _FIRST else 1 if kind in _SECOND else 2 if kind in _THIRD else 3
