"""The ApplySet's parent (KEP-3659): which kinds and namespaces hold members, and how each looked when all was well."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.fields import applied_fields, extract
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest

MANAGER = "citadelbuy-platform"
CONFIG_MAP = Resource("v1", "ConfigMap", "configmaps", True)
ID = "applyset.kubernetes.io/id"
TOOLING = "applyset.kubernetes.io/tooling"
GROUP_KINDS = "applyset.kubernetes.io/contains-group-kinds"
NAMESPACES = "applyset.kubernetes.io/additional-namespaces"
TOOL = f"{MANAGER}/v1"
RECORD = "unchanged.json"
RECORD_LIMIT = 900_000  # bytes; a ConfigMap holds 1 MiB
TRIES = 8
FEW = 8  # requests

Body = dict[str, Any]
Key = tuple[str, str, str | None, str]  # API group, kind, namespace, name
GroupKind = tuple[str, str]


class Parent:
    """The ConfigMap `applyset-<set>`.

    Beside what the KEP asks for it keeps one record: for each member a hash of its manifest, and one of the live
    object that applying this manifest led to. While both are the same, applying again would change nothing, whoever
    has been at it meanwhile, and is left out. The record only saves time: without it, every object is applied.
    """

    def __init__(self, cluster: Cluster, name: str, namespace: str) -> None:
        self.cluster = cluster
        self.name, self.namespace = applyset.parent_name(name), namespace
        self.id = applyset.applyset_id(name, namespace)
        self.members: dict[Key, Body] = {}
        self._body: Body | None = None
        self._record: dict[str, str] = {}

    def read(self, manifests: Iterable[Manifest]) -> None:
        """Read the parent and, by label, all members of the kinds and namespaces that it or the manifests name."""
        self.read_again()
        versions = {(manifest.key[0], manifest.kind): manifest.api_version for manifest in manifests}
        namespaces = self.namespaces() | {manifest.namespace for manifest in manifests if manifest.namespace}
        collections: list[tuple[Resource, str | None]] = []
        for group, kind in self.group_kinds() | set(versions):
            version = versions.get((group, kind)) or self.cluster.preferred_version(group)
            resource = self.cluster.resource(version, kind) if version else None
            if resource:
                collections += [(resource, place) for place in (sorted(namespaces) if resource.namespaced else [None])]
        # A new connection costs three round trips: it has to be worth it.
        if len(collections) < FEW:
            answers = [self._list(collection) for collection in collections]
        else:
            with ThreadPoolExecutor(min(4, len(collections) // 4)) as pool:
                answers = list(pool.map(self._list, collections))
        self.members = {key_of(body): body for found in answers for body in found}

    def read_again(self) -> None:
        """Read the parent alone: it may have gone with its namespace, or another run has written it."""
        self._body = self.cluster.get(CONFIG_MAP, self.namespace, self.name)
        if self._body and self._annotation(TOOLING) not in ("", TOOL):
            raise EngineError(
                f"ConfigMap {self.namespace}/{self.name}: the set belongs to {self._annotation(TOOLING)}, not to "
                f"{TOOL}. To do: rename the role (the set), or delete this ConfigMap if that tool no longer manages it."
            )
        try:
            record = json.loads(((self._body or {}).get("data") or {}).get(RECORD) or "{}")
            self._record = record if isinstance(record, dict) else {}
        except ValueError:
            self._record = {}

    def _list(self, collection: tuple[Resource, str | None]) -> list[Body]:
        return self.cluster.list(*collection, labelSelector=f"{applyset.PART_OF}={self.id}")["items"]

    def _annotation(self, name: str) -> str:
        return str(((self._body or {}).get("metadata", {}).get("annotations") or {}).get(name) or "")

    def group_kinds(self) -> set[GroupKind]:
        """Groups and kinds of members, as the parent said when it was read."""
        pairs = (item.partition(".") for item in self._annotation(GROUP_KINDS).split(",") if item)
        return {(group, kind) for kind, _dot, group in pairs}

    def namespaces(self) -> set[str]:
        """Where members may be, as the parent said when it was read."""
        return {self.namespace} | {item for item in self._annotation(NAMESPACES).split(",") if item}

    def is_unchanged(self, manifest: Manifest, live: Body) -> bool:
        """Whether applying the manifest to the live object is known to change nothing."""
        if manifest.kind == "Secret" and manifest.body.get("data") != live.get("data"):
            return False
        return self._record.get(_text(manifest.key)) == _entry(manifest.body, live)

    def widen(self, manifests: Iterable[Manifest]) -> bool:
        """Name the manifests' kinds and namespaces before they are applied, so that a run that dies leaves no stranger.

        :returns: False when the parent's namespace does not exist yet.
        """
        kinds = {(manifest.key[0], manifest.kind) for manifest in manifests}
        places = {manifest.namespace for manifest in manifests if manifest.namespace}
        return self._write(kinds, places, None)

    def finish(self, members: Iterable[Body], applied: Iterable[tuple[Manifest, Body]] | None) -> None:
        """Name exactly the kinds and namespaces of what is left, and record how it looks.

        :param members: every object that is or may still be in the set.
        :param applied: manifests with their live objects; None after a failure: nothing is narrowed or recorded.
        """
        kinds, places = set(), set()
        for body in members:
            group, kind, namespace, _name = key_of(body)
            kinds.add((group, kind))
            places |= {namespace} if namespace else set()
        if applied is None:
            self._write(kinds, places, None)
            return
        record = {_text(manifest.key): _entry(manifest.body, live) for manifest, live in applied}
        self._write(kinds, places, record)

    def _write(self, kinds: set[GroupKind], places: set[str], record: dict[str, str] | None) -> bool:
        """Write the parent where it differs. What another run has written since it was read is kept beside ours."""
        own = True  # nobody else has written since we read
        for _attempt in range(TRIES):
            narrow = own and record is not None
            all_kinds = kinds if narrow else kinds | self.group_kinds()
            all_places = (places if narrow else places | self.namespaces()) - {self.namespace}
            wanted = record if narrow else self._record | (record or {})
            text = json.dumps(wanted, sort_keys=True, separators=(",", ":"))
            body = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": self.name,
                    "namespace": self.namespace,
                    "labels": {ID: self.id, "app.kubernetes.io/managed-by": MANAGER},
                    "annotations": {
                        TOOLING: TOOL,
                        GROUP_KINDS: ",".join(
                            sorted(f"{kind}.{group}" if group else kind for group, kind in all_kinds)
                        ),
                        NAMESPACES: ",".join(sorted(all_places)),
                    },
                },
                "data": {RECORD: text if len(text) <= RECORD_LIMIT else "{}"},
            }
            old = self._body or {}
            metadata = old.get("metadata") or {}
            if (
                old.get("data") == body["data"]
                and metadata.get("labels") == body["metadata"]["labels"]
                and metadata.get("annotations") == body["metadata"]["annotations"]
            ):
                return True
            try:
                query = {"fieldManager": MANAGER}
                if self._body:
                    body["metadata"]["resourceVersion"] = metadata["resourceVersion"]
                    path, content = CONFIG_MAP.path(self.namespace, self.name), "application/merge-patch+json"
                    self._body = self.cluster.request("PATCH", path, body, query, content)[1]
                else:
                    self._body = self.cluster.request("POST", CONFIG_MAP.path(self.namespace), body, query)[1]
                self._record = wanted
                return True
            except ApiError as error:
                if error.status == 404 and not self._body:
                    return False
                if error.status not in (404, 409):
                    raise
                own = False
                self.read_again()
        raise EngineError(
            f"ConfigMap {self.namespace}/{self.name}: other runs keep writing it. To do: run again when they are over."
        )


def key_of(body: Body) -> Key:
    """An object's identity in a cluster, as Manifest.key."""
    metadata = body["metadata"]
    return body["apiVersion"].rpartition("/")[0], body["kind"], metadata.get("namespace"), metadata["name"]


def _text(key: Key) -> str:
    group, kind, namespace, name = key
    return f"{kind}.{group}/{namespace or ''}/{name}"


def _entry(manifest: Body, live: Body) -> str:
    """Hashes of what is applied, and of the fields that are ours with their values: 80 bits each.

    A Secret's values are left out, for a hash lets them be guessed; they are compared themselves.
    """
    if manifest["kind"] == "Secret":
        manifest, live = (
            {key: body[key] for key in body if key not in ("data", "stringData")} for body in (manifest, live)
        )
    fields = applied_fields(live, MANAGER)
    return f"{_hash(manifest)}:{_hash([fields, extract(live, fields)])}"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:20]
