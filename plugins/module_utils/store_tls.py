"""Whom a client of a store trusts: the authority that has signed the store's certificate, and nobody else."""

from __future__ import annotations

import base64
import ssl

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import SECRET, Cluster, EngineError


def client_context(cluster: Cluster, namespace: str, store: str) -> ssl.SSLContext:
    """For connections to a store, by the `ca.crt` of its Secret; each names whom it expects, as `redis.NAMESPACE.svc`.

    :raises EngineError: there is no such Secret, or no authority in it.
    """
    name = f"{store}-tls"
    data = (cluster.get(SECRET, namespace, name) or {}).get("data") or {}
    if "ca.crt" not in data:
        raise EngineError(
            f"Secret {namespace}/{name} has no ca.crt, so {store} cannot be told from an impostor. To do: run "
            "`ansible-playbook playbooks/site.yml --tags secrets`, which makes it."
        )
    return ssl.create_default_context(cadata=base64.b64decode(data["ca.crt"]).decode())
