"""What the engine writes on every object: ApplySet label (KEP-3659), common labels, configuration checksum."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest

PART_OF = "applyset.kubernetes.io/part-of"
CHECKSUM = "citadelbuy.io/config-checksum"
NOT_ROLLED_BY = "citadelbuy.io/not-rolled-by"  # a pod template's list of what its running pods follow, as `Secret/name`
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
ROLLED_BY_CHECKSUM = ("Deployment", "StatefulSet", "DaemonSet")  # a Job's template cannot change

# (kind, namespace, name) -> {key: hash of its value}, or None where the object does not exist
KeyHashes = Callable[[str, str | None, str], dict[str, str] | None]


def parent_name(name: str) -> str:
    """The ConfigMap that is the ApplySet's parent object."""
    return f"applyset-{name.replace('_', '-')}"


def applyset_id(name: str, namespace: str) -> str:
    """The ApplySet ID of a set, as KEP-3659 derives it from its parent ConfigMap."""
    identity = f"{parent_name(name)}.{namespace}.ConfigMap."
    digest = base64.urlsafe_b64encode(hashlib.sha256(identity.encode()).digest()).decode().rstrip("=")
    return f"applyset-{digest}-v1"


def add_labels(manifests: list[Manifest], set_id: str, instance: str) -> None:
    """Put the common labels on every object, and `part-of` on pod templates."""
    for manifest in manifests:
        metadata = manifest.body["metadata"]
        metadata["labels"] = (metadata.get("labels") or {}) | {
            "app.kubernetes.io/part-of": "citadelbuy",
            "app.kubernetes.io/managed-by": "citadelbuy-platform",
            "app.kubernetes.io/instance": instance,
            PART_OF: set_id,
        }
        template = pod_template(manifest.body)
        if template is not None:
            pod = template.setdefault("metadata", {})
            pod["labels"] = (pod.get("labels") or {}) | {"app.kubernetes.io/part-of": "citadelbuy"}


def leave_replicas_to_autoscalers(manifests: list[Manifest]) -> None:
    """Drop `spec.replicas` of each workload that an autoscaler of the same set scales."""
    scaled = {
        (target.get("kind"), manifest.namespace, target.get("name"))
        for manifest in manifests
        if manifest.kind == "HorizontalPodAutoscaler"
        for target in [(manifest.body.get("spec") or {}).get("scaleTargetRef") or {}]
    }
    for manifest in manifests:
        if (manifest.kind, manifest.namespace, manifest.name) in scaled:
            manifest.autoscaled = True
            manifest.body["spec"].pop("replicas", None)


def pod_template(body: dict[str, Any]) -> dict[str, Any] | None:
    """The pod template of a workload or CronJob, or None."""
    spec = body.get("spec") or {}
    if body["kind"] == "CronJob":
        spec = (spec.get("jobTemplate") or {}).get("spec") or {}
    elif body["kind"] not in WORKLOADS:
        return None
    template = spec.get("template")
    return template if isinstance(template, dict) else None


def add_checksum(manifest: Manifest, key_hashes: KeyHashes) -> None:
    """Put a hash of the configuration that a workload's pods use on its template: a change of it rolls the pods.

    Of an object that a pod uses key by key, only those keys count; one that the template names as `not-rolled-by` does
    not count at all.
    """
    template = pod_template(manifest.body) if manifest.kind in ROLLED_BY_CHECKSUM else None
    if template is None:
        return
    used: dict[str, Any] = {}
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    followed = {item.strip() for item in annotations.get(NOT_ROLLED_BY, "").split(",")}
    for kind, name, keys in references(template.get("spec") or {}):
        if f"{kind}/{name}" in followed:
            continue
        hashes = key_hashes(kind, manifest.namespace, name)
        place = used.setdefault(f"{kind}/{name}", {})
        if hashes is None:
            used[f"{kind}/{name}"] = None
        elif place is not None:
            place |= {key: value for key, value in hashes.items() if keys is None or key in keys}
    if used:
        digest = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:32]
        metadata = template.setdefault("metadata", {})
        metadata["annotations"] = (metadata.get("annotations") or {}) | {CHECKSUM: digest}


def references(pod: dict[str, Any]) -> Iterator[tuple[str, str, set[str] | None]]:
    """The ConfigMaps and Secrets of a pod spec: kind, name and the keys used (None: all of them).

    The cluster's own ConfigMap of certificate authorities is left out: the kubelet updates it in running pods, and a
    pod may be applied before Kubernetes has published it in a new namespace.
    """
    for container in [*(pod.get("initContainers") or []), *(pod.get("containers") or [])]:
        for env in container.get("env") or []:
            source = env.get("valueFrom") or {}
            for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                if source.get(field):
                    yield kind, source[field].get("name", ""), {source[field].get("key", "")}
        for source in container.get("envFrom") or []:
            for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if source.get(field):
                    yield kind, source[field].get("name", ""), None
    for volume in pod.get("volumes") or []:
        for source in [volume, *((volume.get("projected") or {}).get("sources") or [])]:
            for kind, field in (("ConfigMap", "configMap"), ("Secret", "secret")):
                if isinstance(source.get(field), dict):
                    content = source[field]
                    items = content.get("items")
                    name = content.get("name") or content.get("secretName") or ""
                    if (kind, name) == ("ConfigMap", "kube-root-ca.crt"):
                        continue
                    yield kind, name, {item.get("key", "") for item in items} if items else None


def hash_keys(body: dict[str, Any]) -> dict[str, str]:
    """Key by key hashes of a live ConfigMap's or Secret's data."""
    data = (body.get("data") or {}) | (body.get("binaryData") or {})
    return {key: hashlib.sha256(str(value).encode()).hexdigest() for key, value in data.items()}
