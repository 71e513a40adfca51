"""What is deployed, as the manifests that the engine applied: read back from the fields that it owns."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible.plugins.loader import init_plugin_loader
from pairing import CHECKOUT, BenchmarkError

init_plugin_loader([str(CHECKOUT / "collections")])

from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, diff  # noqa: E402
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (  # noqa: E402
    Cluster,
    EngineError,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import (  # noqa: E402
    CONFIG_MAP,
    ID,
    MANAGER,
    Parent,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.rank import rank_of  # noqa: E402
from ansible_collections.citadelbuy.platform.plugins.module_utils.restore_stores import (  # noqa: E402
    CLAIM,
    Postgres,
)

KUBECONFIG = Path("/var/lib/citadelbuy/citadelbuy/admin.conf")  # of inventories/local
NAMESPACE = "citadelbuy"
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")
Body = dict[str, Any]


def live_objects(cluster: Cluster, namespace: str = NAMESPACE) -> list[Body]:
    """Every member of every set whose list of members is in a namespace, in the order of application.

    :raises BenchmarkError: when there is no platform.
    """
    try:
        parents = cluster.list(CONFIG_MAP, namespace, labelSelector=ID)["items"]
    except EngineError as error:
        raise BenchmarkError(f"no cluster to measure on: {error} To do: `make up` first.") from None
    members: list[Body] = []
    for parent in parents:
        found = Parent(cluster, parent["metadata"]["name"].removeprefix("applyset-"), namespace)
        found.read([])
        members += found.members.values()
    if not members:
        raise BenchmarkError("the platform is not deployed on the embedded cluster: `make up` first.")
    return sorted(members, key=lambda body: (rank_of(body), body["kind"] != "Namespace"))


def embedded_cluster() -> Cluster:
    """The cluster of `make up`.

    :raises BenchmarkError: when it has never been there, or when the way to it slows one contender more than another.
    """
    try:
        cluster = Cluster.from_kubeconfig("local", str(KUBECONFIG))
    except EngineError as error:
        raise BenchmarkError(f"no cluster to measure on: {error} To do: `make up` first.") from None
    _check_forwarder(urlsplit(cluster.server).port)
    return cluster


def _check_forwarder(port: int | None) -> None:
    """Refuse a forwarder that joins small packets: it delays clients that send head and body apart, by 40 ms a request.

    kubectl and Helm do, the engine hardly: every ratio would be too good.
    """
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        listens = [word for word in words if word.startswith(f"TCP-LISTEN:{port},")]
        if words[0].endswith("socat") and listens and "nodelay" not in listens[0].split(","):
            raise BenchmarkError(
                f"no fair pair: the forwarder on port {port} delays the rivals' requests (socat without nodelay), "
                "for an older checkout made this cluster. To do: `make down up`."
            )


def applied(live: Body) -> Body:
    """The manifest that the engine applied last: identity, and exactly the fields that its manager owns."""
    entries = live["metadata"].get("managedFields") or []
    entry = next(
        (
            item
            for item in entries
            if item.get("manager") == MANAGER and item.get("operation") == "Apply" and not item.get("subresource")
        ),
        None,
    )
    if entry is None:
        raise BenchmarkError(
            f"{live['kind']} {live['metadata']['name']} was not applied by {MANAGER}: `make up` first."
        )
    body = _owned(live, entry["fieldsV1"])
    metadata = {key: live["metadata"][key] for key in ("name", "namespace") if key in live["metadata"]}
    return (
        {"apiVersion": live["apiVersion"], "kind": live["kind"]}
        | body
        | {"metadata": metadata | body.get("metadata", {})}
    )


def _owned(value: Any, fields: Body) -> Any:
    """The part of a value that FieldsV1 names; a leaf is taken whole."""
    if isinstance(value, list):
        keyed = [(json.loads(key[2:]), sub) for key, sub in fields.items() if key.startswith("k:")]
        plain = [json.loads(key[2:]) for key in fields if key.startswith("v:")]
        items: list[Any] = []
        for item in value:
            if isinstance(item, dict):
                items += [_owned(item, sub) for key, sub in keyed if key == {name: item.get(name) for name in key}]
            elif item in plain:
                items.append(item)
        return items
    names = [key[2:] for key in fields if key.startswith("f:")]
    return {
        name: _owned(value[name], fields[f"f:{name}"]) if fields[f"f:{name}"] else value[name]
        for name in names
        if name in value
    }


def what_matters(bodies: Iterable[Body]) -> list[Body]:
    """Objects without what a controller may write at any time: no status, only the engine's own managed fields."""
    kept = []
    for body in bodies:
        fields = [
            [entry.get("time"), entry.get("fieldsV1")]
            for entry in body["metadata"].get("managedFields") or []
            if entry.get("manager") == MANAGER and entry.get("operation") == "Apply"
        ]
        kept.append(diff.content(body) | {"owned": fields, "generation": body["metadata"].get("generation")})
    return kept


def changes(before: Iterable[Body], after: Iterable[Body]) -> list[str]:
    """Names of objects that differ in what matters, or exist on one side only."""

    def index(bodies: Iterable[Body]) -> dict[str, Body]:
        return {
            f"{body['kind']} {body['metadata'].get('namespace', '')}/{body['metadata']['name']}": body
            for body in what_matters(bodies)
        }

    old, new = index(before), index(after)
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def masker(bodies: Iterable[Body]) -> Callable[[str], str]:
    """A function that masks the values of all these Secrets in a text."""
    values: set[str] = set()
    for body in bodies:
        if body["kind"] == "Secret":
            values |= diff.secret_values(body)
    return lambda text: diff.mask(text, values)


def without_pods(bodies: Iterable[Body], prefix: str) -> list[Body]:
    """A copy of the platform for namespaces of its own: as many objects, no pods, no real secrets, in no ApplySet."""
    copies = []
    for body in copy.deepcopy(list(bodies)):
        _rename_namespaces(body, prefix)
        if body["kind"] == "Namespace":
            body["metadata"]["name"] = prefix + body["metadata"]["name"]
        body["metadata"].get("labels", {}).pop(applyset.PART_OF, None)
        if body["kind"] in WORKLOADS:
            body["spec"]["replicas"] = 0
        elif body["kind"] == "Job":
            body["spec"]["suspend"] = True
        elif body["kind"] == "Secret":
            body["data"] = dict.fromkeys(body.get("data") or {}, "bWFkZSB1cA==")
        copies.append(body)
    return copies


def restore_pod(cluster: Cluster, name: str, words: Sequence[str]) -> list[Body]:
    """The pod of the Job of playbooks/restore.yml with other arguments, and a volume like the first member's.

    It does not archive what it recovers: the repository is the platform's.
    """
    store = Postgres(cluster, NAMESPACE, 0, 0, print)
    member = cluster.get(CLAIM, NAMESPACE, f"data-{store.name}-0")["spec"]
    wanted = {key: member[key] for key in ("accessModes", "resources", "storageClassName")}
    spec = store._spec(store._set(), {"persistentVolumeClaim": {"claimName": name}}, list(words))
    spec["containers"][0]["env"] += [{"name": "POSTGRES_BACKUP_READ_ONLY", "value": "true"}]
    spec["terminationGracePeriodSeconds"] = 1
    labels = {"app.kubernetes.io/name": store.reader}  # by which the network lets it at the repository
    return [
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": wanted},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec},
    ]


def _rename_namespaces(value: Any, prefix: str) -> None:
    for key, item in value.items() if isinstance(value, dict) else ():
        if key == "namespace" and isinstance(item, str):
            value[key] = prefix + item
        else:
            _rename_namespaces(item, prefix)
    for item in value if isinstance(value, list) else ():
        _rename_namespaces(item, prefix)
