"""The cluster's own objects: Secrets above all, which nothing else brings back, and the others to look at."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from store_backup.repository import Problem

OBJECTS, RECORD = "objects.json", "record.json"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
WAIT = 30
"""Seconds for an answer of the API server."""

KINDS = {
    "Secret": "api/v1/namespaces/{}/secrets",
    "ConfigMap": "api/v1/namespaces/{}/configmaps",
    "Service": "api/v1/namespaces/{}/services",
    "PersistentVolumeClaim": "api/v1/namespaces/{}/persistentvolumeclaims",
    "StatefulSet": "apis/apps/v1/namespaces/{}/statefulsets",
    "Deployment": "apis/apps/v1/namespaces/{}/deployments",
    "CronJob": "apis/batch/v1/namespaces/{}/cronjobs",
}
OF_THE_CLUSTER = ("kubernetes.io/service-account-token", "bootstrap.kubernetes.io/token")
"""Types of Secrets that mean something in the cluster alone that made them."""


def take(folder: Path) -> str:
    """Write all objects and their record into a folder; returns what there is to say of it."""
    objects = []
    for namespace in os.environ["KUBERNETES_NAMESPACES"].split():
        for kind, path in KINDS.items():
            for item in asked(path.format(namespace))["items"]:
                if item.get("type") not in OF_THE_CLUSTER:
                    item["metadata"].pop("managedFields", None)
                    item.pop("status", None)
                    objects.append({"kind": kind} | item)
    (folder / OBJECTS).write_text(json.dumps(objects))
    record = {name_of(item): digest(item) for item in objects}
    (folder / RECORD).write_text(json.dumps(record))
    return said(objects)


def verify(folder: Path) -> str:
    """Compare objects that were fetched with their record; returns what there is to say of it."""
    objects = json.loads((folder / OBJECTS).read_text())
    record = json.loads((folder / RECORD).read_text())
    found = {name_of(item): digest(item) for item in objects}
    for name in sorted(record.keys() | found.keys()):
        if record.get(name) != found.get(name):
            raise Problem(f"{name} is not what it was")
    if not any(item["kind"] == "Secret" for item in objects):
        raise Problem("there is no Secret among the objects, which are backed up for their sake")
    return said(objects)


def secrets(folder: Path) -> list[dict[str, Any]]:
    """The Secrets among objects that were fetched, as they can be applied."""
    kept = ("labels", "annotations", "name", "namespace")
    return [
        {
            "metadata": {key: item["metadata"][key] for key in kept if key in item["metadata"]},
            "type": item["type"],
            "data": item.get("data") or {},
        }
        for item in json.loads((folder / OBJECTS).read_text())
        if item["kind"] == "Secret"
    ]


def asked(path: str, method: str = "GET", body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the API server answers."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    login = {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"}
    data = None if body is None else json.dumps(body).encode()
    headers = login | {"Content-Type": "application/json"}
    request = urllib.request.Request(f"https://{host}:{port}/{path}", data, headers, method=method)
    tls = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=WAIT, context=tls) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise Problem(f"the API server refuses {method} /{path}: {error.code} {said_of(error)}") from None
    except (OSError, ValueError) as error:
        raise Problem(f"the API server does not answer {method} /{path}: {error}") from None


def said_of(refusal: urllib.error.HTTPError) -> str:
    """Why the API server refuses, in its own words."""
    try:
        return json.load(refusal)["message"]
    except (OSError, ValueError, LookupError, TypeError):
        return str(refusal.reason)


def name_of(item: dict[str, Any]) -> str:
    """For people."""
    return f"{item['kind']} {item['metadata']['namespace']}/{item['metadata']['name']}"


def digest(item: dict[str, Any]) -> str:
    """Of all its fields."""
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()


def said(objects: list[dict[str, Any]]) -> str:
    """In words."""
    number = sum(item["kind"] == "Secret" for item in objects)
    return f"{len(objects)} objects, {number} Secrets among them"
