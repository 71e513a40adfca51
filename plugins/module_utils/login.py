"""A kubeconfig for a service account: a token that ends by itself, and the cluster as the admin's file has it."""

from __future__ import annotations

import base64
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError

Body = dict[str, Any]
ENOUGH = 0.5  # of a token's life: with less left a new one is asked for
TARGET = ("server", "tls-server-name", "proxy-url", "insecure-skip-tls-verify", "certificate-authority-data")


def request_token(cluster: Cluster, namespace: str, name: str, hours: float) -> tuple[str, str]:
    """A token of a service account and when it ends; the server may give fewer hours. It dies with the account.

    :raises EngineError: where the account does not exist, or no token of it may be asked for.
    """
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    spec = {"expirationSeconds": round(hours * 3600)}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    status = cluster.request("POST", path, body)[1]["status"]
    return status["token"], status["expirationTimestamp"]


def kubeconfig(target: Body, namespace: str, name: str, token: str) -> Body:
    """A kubeconfig with one context that logs in with a token."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": target}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
    }


def cluster_of(path: str, context: str | None) -> Body:
    """How a kubeconfig's context (default: its current one) reaches the server; certificates inline, no login."""
    file = Path(path).expanduser()
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    entries = {
        section: {item["name"]: item[section[:-1]] for item in config[section]} for section in ("contexts", "clusters")
    }
    found = entries["clusters"][entries["contexts"][context or config["current-context"]]["cluster"]]
    if found.get("certificate-authority") and not found.get("certificate-authority-data"):
        content = (file.parent / found["certificate-authority"]).read_bytes()
        found["certificate-authority-data"] = base64.b64encode(content).decode()
    return {key: found[key] for key in TARGET if key in found}


def is_good(file: Path, target: Body, uid: str) -> bool:
    """Whether a file logs in to this server as this account, with half of its token's life left."""
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        payload = config["users"][0]["user"]["token"].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        left = (claims["exp"] - time.time()) / (claims["exp"] - claims["iat"])
        account = claims["kubernetes.io"]["serviceaccount"]["uid"]
        safe = file.stat().st_mode & 0o077 == 0
        return safe and left > ENOUGH and account == uid and config["clusters"][0]["cluster"] == target
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ZeroDivisionError, yaml.YAMLError):
        return False


def write(file: Path, content: Body) -> None:
    """Write a kubeconfig that only its owner can read; a reader sees the old or the new one."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                yaml.safe_dump(json.loads(json.dumps(content)), stream, sort_keys=False)  # no tagged texts
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise EngineError(f"cannot write kubeconfig {file}: {error.strerror} (variable deployer_kubeconfig).") from None
