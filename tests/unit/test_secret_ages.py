"""How old each secret is, as metrics see it, on a real API server."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import SECRET, Cluster
from ansible_collections.citadelbuy.platform.plugins.module_utils.generate import ROTATED
from ansible_collections.citadelbuy.platform.plugins.module_utils.lease import LEASE, Lease
from ansible_collections.citadelbuy.platform.plugins.module_utils.rotation import MAIN
from ansible_collections.citadelbuy.platform.plugins.module_utils.secret_ages import write_ages

FIRST, LATER = "2030-01-01T00:00:00Z", "2030-02-01T12:30:00Z"


@pytest.fixture
def write_secret(cluster: Cluster, namespace: str) -> Any:
    """Apply the Secret with these times of change."""

    def write(**changed: str) -> None:
        annotations = {f"{ROTATED}{key}": time for key, time in changed.items()}
        metadata = {"name": MAIN, "namespace": namespace, "annotations": annotations}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
        query = {"fieldManager": "test"}
        cluster.request("PATCH", SECRET.path(namespace, MAIN), body, query, "application/apply-patch+yaml")

    return write


def times(cluster: Cluster, namespace: str) -> dict[str, str]:
    """The Leases' times by name."""
    return {item["metadata"]["name"]: item["spec"]["renewTime"] for item in cluster.list(LEASE, namespace)["items"]}


def test_there_is_a_lease_a_key(cluster: Cluster, namespace: str, write_secret: Any) -> None:
    write_secret(DATABASE_PASSWORD=FIRST, JWT_SECRET=FIRST)
    names = ["secret-database-password", "secret-jwt-secret"]
    assert write_ages(cluster, namespace) == names
    assert times(cluster, namespace) == dict.fromkeys(names, "2030-01-01T00:00:00.000000Z")
    assert write_ages(cluster, namespace) == [], "nothing has changed"


def test_what_has_changed_or_gone_is_written_alone(cluster: Cluster, namespace: str, write_secret: Any) -> None:
    write_secret(DATABASE_PASSWORD=FIRST, JWT_SECRET=FIRST, STRIPE_SECRET_KEY=FIRST)
    write_ages(cluster, namespace)
    write_secret(DATABASE_PASSWORD=FIRST, JWT_SECRET=LATER)
    before = times(cluster, namespace)
    assert write_ages(cluster, namespace, check=True) == ["secret-jwt-secret", "secret-stripe-secret-key"]
    assert times(cluster, namespace) == before, "check mode has changed something"
    assert write_ages(cluster, namespace) == ["secret-jwt-secret", "secret-stripe-secret-key"]
    assert times(cluster, namespace) == {
        "secret-database-password": "2030-01-01T00:00:00.000000Z",
        "secret-jwt-secret": "2030-02-01T12:30:00.000000Z",
    }


def test_a_certificates_lease_has_the_name_of_its_store(cluster: Cluster, namespace: str) -> None:
    metadata = {
        "name": "postgres-tls",
        "namespace": namespace,
        "labels": {"app.kubernetes.io/component": "certificates"},
        "annotations": {f"{ROTATED}tls.crt": FIRST},
    }
    cluster.request("POST", SECRET.path(namespace), {"apiVersion": "v1", "kind": "Secret", "metadata": metadata})
    assert write_ages(cluster, namespace) == ["certificate-postgres"]
    assert times(cluster, namespace) == {"certificate-postgres": "2030-01-01T00:00:00.000000Z"}


def test_leases_of_others_stay(cluster: Cluster, namespace: str) -> None:
    with Lease(cluster, namespace, "work", "The work"):
        assert write_ages(cluster, namespace) == []
        assert "work" in times(cluster, namespace)
