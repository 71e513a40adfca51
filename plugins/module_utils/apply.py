"""Server-side apply of a set: rank by rank, concurrently within a rank, for real or as the server's dry run."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import string
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, diff
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest

MANAGER = "citadelbuy-platform"
GENERATE = "citadelbuy.io/generate"
THREADS = 8
TRIES = 8  # reads and patches of an object that others keep changing
FIRST = {"Namespace", "CustomResourceDefinition"}
SECOND = {
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
ALPHABET = string.ascii_letters + string.digits


@dataclass
class Applied:
    """What became of one manifest. `after` is the server's answer, in check mode its prediction."""

    manifest: Manifest
    action: str  # created, changed, unchanged
    seconds: float
    before: dict[str, Any] | None
    after: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """The entry of this object in the task's result."""
        manifest = self.manifest
        return {
            "kind": manifest.kind,
            "namespace": manifest.namespace,
            "name": manifest.name,
            "action": self.action,
            "seconds": round(self.seconds, 3),
        }


@dataclass
class Outcome:
    """Everything applied, in the manifests' order, and the failures, one message each."""

    applied: list[Applied] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    secret_values: set[str] = field(default_factory=set)


class Foreseen:
    """What earlier tasks of a check-mode run would have applied, kept in the run's own temporary folder.

    Hashes and names only, never a Secret's data.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _file(self, *key: str | None) -> Path:
        return self._folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()

    def add(self, value: Any, *key: str | None) -> None:
        """Remember a value under (kind, namespace, name) or the like."""
        self._file(*key).write_text(json.dumps(value), encoding="utf-8")

    def get(self, *key: str | None) -> Any:
        """The remembered value or None."""
        file = self._file(*key)
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


class Applier:
    """Applies the manifests of one set to one cluster."""

    def __init__(
        self, cluster: Cluster, foreseen: Foreseen, check: bool = False, force_conflicts: bool = False
    ) -> None:
        self.cluster = cluster
        self.check = check
        self.force = force_conflicts
        self.foreseen = foreseen
        self.outcome = Outcome()
        self._hashes: dict[tuple[str, str | None, str], dict[str, str] | None] = {}

    def apply(self, manifests: list[Manifest], after_rank: Any = None) -> Outcome:
        """Apply the manifests, already labelled; stops after the first rank with a failure.

        :param after_rank: called with a rank's list of Applied before the next rank starts (waits for CRDs).
        """
        self.cluster.resource("v1", "Namespace")  # an unreachable server ends it here, once
        for manifest in manifests:
            if manifest.kind == "Secret":
                self.outcome.secret_values |= diff.secret_values(manifest.body)
        with ThreadPoolExecutor(min(THREADS, len(manifests) // 2 + 1)) as pool:
            for rank in (0, 1, 2):
                members = [manifest for manifest in manifests if _rank(manifest.kind) == rank]
                if not members:
                    continue
                done = [item for item in pool.map(self._attempt, members) if item]
                self.outcome.applied += done
                if self.outcome.errors:
                    break
                if after_rank and not self.check:
                    after_rank(done)
        return self.outcome

    def _attempt(self, manifest: Manifest) -> Applied | None:
        try:
            return self._apply_one(manifest)
        except ApiError as error:
            message = explain(error, manifest)
        except EngineError as error:
            message = str(error)
        self.outcome.errors.append(diff.mask(message, self.outcome.secret_values))
        return None

    def _apply_one(self, manifest: Manifest) -> Applied:
        started = time.monotonic()
        resource = self._resource(manifest)
        applyset.add_checksum(manifest, self._key_hashes)
        if resource is None:
            before, after = None, manifest.body
        else:
            if resource.namespaced and not manifest.namespace:
                raise EngineError(f"template {manifest.source}: {manifest} has no metadata.namespace.")
            if not resource.namespaced:
                manifest.body["metadata"].pop("namespace", None)
            before, after = self._read_and_patch(manifest, resource)
        if manifest.kind in ("ConfigMap", "Secret"):
            self._hashes[manifest.kind, manifest.namespace, manifest.name] = applyset.hash_keys(after)
        if manifest.kind == "Secret":
            self.outcome.secret_values |= diff.secret_values(after)
        if self.check:
            self._foresee(manifest, after)
        if before is None:
            action = "created"
        elif before["metadata"]["resourceVersion"] == after["metadata"].get("resourceVersion") and not self.check:
            action = "unchanged"
        else:
            action = "unchanged" if diff.content(before) == diff.content(after) else "changed"
        return Applied(manifest, action, time.monotonic() - started, before, after)

    def _resource(self, manifest: Manifest) -> Resource | None:
        """How the cluster serves the kind; None in check mode for a kind whose CRD this run would install."""
        resource = self.cluster.resource(manifest.api_version, manifest.kind)
        if resource or (self.check and self.foreseen.get("CustomResourceDefinition", manifest.key[0], manifest.kind)):
            return resource
        raise EngineError(
            f"{manifest} (template {manifest.source}): the cluster does not know kind {manifest.kind} of "
            f"{manifest.api_version}. To do: install its CRD first, or check apiVersion and kind for a slip."
        )

    def _read_and_patch(self, manifest: Manifest, resource: Resource) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """The object before and after; what others change at the same time is in neither or in both."""
        for attempt in range(TRIES):
            before = current = self.cluster.get(resource, manifest.namespace, manifest.name)
            if manifest.kind == "Secret":
                current = self._generate(manifest, resource, before)
            if manifest.autoscaled and before and _owns_replicas(before):
                # Dropping the field would scale to 1; once the autoscaler has changed it, it is the owner.
                manifest.body["spec"]["replicas"] = before["spec"]["replicas"]
            try:
                return before, self._patch(manifest, resource, current)
            except ApiError as error:
                if error.status != 409 or error.causes or attempt == TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def _patch(self, manifest: Manifest, resource: Resource, current: dict[str, Any] | None) -> dict[str, Any]:
        query = {"fieldManager": MANAGER, "force": str(self.force).lower(), "fieldValidation": "Strict"}
        if self.check:
            query["dryRun"] = "All"
        try:
            body = manifest.body
            version = (current or {}).get("metadata", {}).get("resourceVersion")
            if version:
                body = body | {"metadata": body["metadata"] | {"resourceVersion": version}}
            return self._send(body, resource, query)
        except ApiError as error:
            if self.check and error.status == 404 and self.foreseen.get("Namespace", None, manifest.namespace or ""):
                return manifest.body
            raise

    def _send(self, body: dict[str, Any], resource: Resource, query: dict[str, str]) -> dict[str, Any]:
        metadata = body["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"])
        return self.cluster.request("PATCH", path, body, query, "application/apply-patch+yaml")[1]

    def _generate(self, manifest: Manifest, resource: Resource, live: dict[str, Any] | None) -> dict[str, Any] | None:
        """Fill the keys that `citadelbuy.io/generate` names: from the live Secret, else random.

        New values are first applied alone by a field manager that exists once: of two runs at the same time one
        conflicts, and takes the other's values. Returns the Secret as it is then.
        """
        names = (manifest.body["metadata"].get("annotations") or {}).get(GENERATE, "")
        keys = [key.strip() for key in names.split(",") if key.strip()]
        if not keys:
            return live
        data = manifest.body["data"] = dict(manifest.body.get("data") or {})
        missing = [key for key in keys if key not in ((live or {}).get("data") or {})]
        if missing:
            fresh = {
                key: "".join(secrets.choice(ALPHABET) for _ in range(32)) if not self.check else "generated-by-the-run"
                for key in missing
            }
            encoded = {key: base64.b64encode(value.encode()).decode() for key, value in fresh.items()}
            if self.check:
                live = (live or {}) | {"data": ((live or {}).get("data") or {}) | encoded}
            else:
                body = {part: manifest.body[part] for part in ("apiVersion", "kind", "type") if part in manifest.body}
                body |= {"metadata": {"name": manifest.name, "namespace": manifest.namespace}, "data": encoded}
                try:
                    query = {"fieldManager": f"{MANAGER}-generate-{secrets.token_hex(4)}", "force": "false"}
                    live = self._send(body, resource, query)
                except ApiError as error:
                    if error.status != 409:
                        raise
                    live = self.cluster.get(resource, manifest.namespace, manifest.name)
        data |= {key: live["data"][key] for key in keys if live and key in (live.get("data") or {})}
        return live

    def _key_hashes(self, kind: str, namespace: str | None, name: str) -> dict[str, str] | None:
        """Hashes of a ConfigMap's or Secret's values: as just applied, as foreseen by a check, or live."""
        key = (kind, namespace, name)
        if key not in self._hashes:
            hashes = self.foreseen.get(*key) if self.check else None
            if hashes is None:
                live = self.cluster.get(Resource("v1", kind, f"{kind.lower()}s", True), namespace, name)
                hashes = applyset.hash_keys(live) if live else None
            self._hashes[key] = hashes
        return self._hashes[key]

    def _foresee(self, manifest: Manifest, after: dict[str, Any]) -> None:
        if manifest.kind == "Namespace":
            self.foreseen.add(True, "Namespace", None, manifest.name)
        elif manifest.kind == "CustomResourceDefinition":
            spec = manifest.body["spec"]
            self.foreseen.add(True, "CustomResourceDefinition", spec["group"], spec["names"]["kind"])
        elif manifest.kind in ("ConfigMap", "Secret"):
            self.foreseen.add(applyset.hash_keys(after), manifest.kind, manifest.namespace, manifest.name)


def _rank(kind: str) -> int:
    """0: what others live in; 1: what pods need; 2: pods and everything around them."""
    return 0 if kind in FIRST else 1 if kind in SECOND else 2


def _owns_replicas(body: dict[str, Any]) -> bool:
    """Whether the engine, and not an autoscaler, set a workload's replicas last."""
    return any(
        entry.get("manager") == MANAGER and "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        for entry in body["metadata"].get("managedFields") or []
    )


def explain(error: ApiError, manifest: Manifest) -> str:
    """One message for a refused apply: which object, from which template, why, and what to do."""
    what, advice = str(error), ""
    if error.status == 409 and any(cause.get("reason") == "FieldManagerConflict" for cause in error.causes):
        owners = "; ".join(f"{cause.get('field')}: {cause.get('message')}" for cause in error.causes)
        what = f"another field manager owns what the template sets: {owners}"
        advice = "remove the field from the template, or take it over with `force_conflicts: true`."
    elif error.status == 403 and "being terminated" in what:
        advice = "wait until the namespace is gone, then run again."
    elif error.status == 403:
        advice = "grant this to the kubeconfig's user, or use another context (cluster_kubeconfig, cluster_context)."
    elif error.status == 404:
        advice = f"create the namespace {manifest.namespace} first (role namespaces)." if "namespaces" in what else ""
    elif error.status == 422 and ("immutable" in what or "updates to statefulset spec" in what):
        advice = (
            "this field cannot change in place: undo the change, or delete the object (mind its data) and run again."
        )
    elif error.status in (400, 422):
        advice = "correct the template or the variable it takes this value from."
    return f"{manifest} (template {manifest.source}): {what.rstrip('.')}." + (f" To do: {advice}" if advice else "")
