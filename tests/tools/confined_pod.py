"""A pod that the platform's namespaces let in: confined as Pod Security `restricted` asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SLEEP = ("sleep", "infinity")


def confined_pod(
    name: str,
    image: str,
    command: Sequence[str] = SLEEP,
    *,
    namespace: str = "citadelbuy",
    labels: Mapping[str, str] | None = None,
    cpu: str = "10m",
    memory: str = "32Mi",
    **container: Any,
) -> dict[str, Any]:
    """A pod with one container, which has further fields where they are given."""
    room = {"cpu": cpu, "memory": memory, "ephemeral-storage": "16Mi"}
    confined = {
        "name": "test",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "resources": {"requests": room, "limits": room},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels or {})},
        "spec": {
            "containers": [confined | container],
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        },
    }
