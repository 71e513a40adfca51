"""When each secret was changed last, where kube-state-metrics finds it without reading a Secret: a Lease a key.

Its renewTime is the time of the change, and becomes `kube_lease_renew_time{lease="secret-database-password"}`. That of
a server's certificate is of the name `certificate-postgres`, and tells when it was made.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import SECRET, Cluster
from ansible_collections.citadelbuy.platform.plugins.module_utils.generate import ROTATED
from ansible_collections.citadelbuy.platform.plugins.module_utils.lease import LEASE
from ansible_collections.citadelbuy.platform.plugins.module_utils.rotation import MAIN, MEMBERS

MANAGER = "citadelbuy-secret-ages"
CERTIFICATES = "app.kubernetes.io/component=certificates"
LABELS = {"app.kubernetes.io/component": "secret-age", "app.kubernetes.io/part-of": "citadelbuy"}


def write_ages(cluster: Cluster, namespace: str, check: bool = False) -> list[str]:
    """Bring the Leases up to the Secrets' annotations; those of keys that are gone go.

    :param check: change nothing.
    :returns: names of the Leases that were (in check mode: would be) made, changed or deleted.
    """
    wanted: dict[str, dict[str, Any]] = {}
    for secret in (MAIN, MEMBERS):
        annotations = ((cluster.get(SECRET, namespace, secret) or {}).get("metadata") or {}).get("annotations") or {}
        for annotation, changed in annotations.items():
            if annotation.startswith(ROTATED):
                name = f"secret-{annotation.removeprefix(ROTATED).lower().replace('_', '-')}"
                wanted[name] = _spec(secret, changed)
    for secret in cluster.list(SECRET, namespace, labelSelector=CERTIFICATES)["items"]:
        if made := (secret["metadata"].get("annotations") or {}).get(f"{ROTATED}tls.crt"):
            name = secret["metadata"]["name"]
            wanted[f"certificate-{name.removesuffix('-tls')}"] = _spec(name, made)
    selector = ",".join(f"{key}={value}" for key, value in LABELS.items())
    known = {item["metadata"]["name"]: item for item in cluster.list(LEASE, namespace, labelSelector=selector)["items"]}
    changes = [name for name, spec in wanted.items() if (known.get(name) or {}).get("spec") != spec]
    gone = [name for name in known if name not in wanted]
    if not check:
        query = {"fieldManager": MANAGER, "force": "true"}
        for name in changes:
            body = {
                "apiVersion": LEASE.api_version,
                "kind": LEASE.kind,
                "metadata": {"name": name, "namespace": namespace, "labels": LABELS},
                "spec": wanted[name],
            }
            cluster.request("PATCH", LEASE.path(namespace, name), body, query, "application/apply-patch+yaml")
        for name in gone:
            cluster.request("DELETE", LEASE.path(namespace, name))
    return sorted([*changes, *gone])


def _spec(secret: str, changed: str) -> dict[str, str]:
    """Of a Lease: whose value it is, and when it was changed, in the microseconds that a Lease has."""
    return {"holderIdentity": f"Secret {secret}", "renewTime": changed.replace("Z", ".000000Z")}
