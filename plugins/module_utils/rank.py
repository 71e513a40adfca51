"""The order in which the objects of one set are applied."""

from __future__ import annotations

RANKS = (0, 1, 2)
_FIRST = {"Namespace", "CustomResourceDefinition"}
_SECOND = {
    "ServiceAccount",
    "Role",
    "RoleBinding",
    "ClusterRole",
    "ClusterRoleBinding",
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


def rank_of(kind: str) -> int:
    """0: what others live in; 1: what pods need; 2: pods and everything around them."""
    return 0 if kind in _FIRST else 1 if kind in _SECOND else 2
