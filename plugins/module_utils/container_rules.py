"""What role admission's policy refuses, judged before the policy is there; tests hold the two to the same cases."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.applyset import pod_template
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest

DIGEST = re.compile(r"@sha256:[0-9a-f]{64}\Z")
TAG = re.compile(r"[^@]+:[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")


def is_allowed(image: str, places: Iterable[str]) -> bool:
    """Whether an image comes from a place: below one that ends with a slash, else of that very repository."""
    return any(
        image.startswith(place)
        and (place.endswith("/") or re.fullmatch(r"([:@][^/]*)?", image[len(place) :]) is not None)
        for place in places
    )


def is_pinned(image: str) -> bool:
    """Whether an image has a digest, or a tag that is not `latest`."""
    return bool(DIGEST.search(image)) or (TAG.match(image) is not None and not image.endswith(":latest"))


def problems(manifests: list[Manifest]) -> Iterator[str]:
    """What is wrong with the containers of workloads, each with the object's and the container's name.

    Where images may come from is read from the policy among the manifests; without a policy, anywhere.
    """
    variables = [
        variable
        for manifest in manifests
        if manifest.kind == "ValidatingAdmissionPolicy"
        for variable in manifest.body["spec"].get("variables") or []
    ]
    places = next((json.loads(item["expression"]) for item in variables if item["name"] == "allowed"), None)
    for manifest in manifests:
        spec: dict[str, Any] = (pod_template(manifest.body) or {}).get("spec") or {}
        for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
            where = f"{manifest}, container {container.get('name')}"
            image = str(container.get("image") or "")
            fault = _image_fault(image, places)
            if fault:
                yield f"{where}: {fault}"
            resources = container.get("resources") or {}
            missing = [
                f"{part}.{name}"
                for part in ("requests", "limits")
                for name in ("cpu", "memory")
                if (resources.get(part) or {}).get(name) in (None, "")
            ]
            if missing:
                yield f"{where}: no {', '.join(missing)}: set them in its *_resources."


def _image_fault(image: str, places: list[str] | None) -> str:
    if not image:
        return "no image: set it in the inventory's images.yml."
    if not is_pinned(image):
        fault = "means another image tomorrow" if image.endswith(":latest") else "has neither tag nor digest"
        return f"image {image} {fault}: give it a tag or a digest in the inventory's images.yml."
    if places is not None and not is_allowed(image, places):
        return f"image {image} is not from an allowed place: add its place to admission_allowed_images."
    return ""
