"""JSON schemas for kubeconform, made from the OpenAPI document of a Kubernetes API server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PREFIX = "#/definitions/"
# What OpenAPI v2 cannot say: both a number and a string will do.
BOTH = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": ["integer", "string"],
    "io.k8s.apimachinery.pkg.api.resource.Quantity": ["number", "string"],
}


def write_schemas(openapi: dict[str, Any], folder: Path) -> int:
    """Write `<kind>-<group>-<version>.json` for every kind, strict about unknown fields; returns how many."""
    definitions = {name: _strict(name, definition) for name, definition in openapi["definitions"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for name, definition in openapi["definitions"].items():
        for gvk in definition.get("x-kubernetes-group-version-kind") or []:
            if "metadata" not in definition.get("properties", {}):
                continue
            group = gvk["group"].split(".")[0]
            file = "-".join(part for part in (gvk["kind"], group, gvk["version"]) if part).lower()
            schema = {"$ref": PREFIX + name, "definitions": _closure(name, definitions)}
            (folder / f"{file}.json").write_text(json.dumps(schema), encoding="utf-8")
            written += 1
    return written


def _strict(name: str, definition: dict[str, Any]) -> dict[str, Any]:
    if name in BOTH:
        return {"type": BOTH[name]}
    if "properties" in definition and "additionalProperties" not in definition:
        return definition | {"additionalProperties": False}
    return definition


def _closure(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A definition and all that it refers to."""
    found: dict[str, Any] = {}
    todo = [name]
    while todo:
        current = todo.pop()
        if current not in found:
            found[current] = definitions[current]
            todo += _references(definitions[current])
    return found


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"].removeprefix(PREFIX)] if isinstance(node.get("$ref"), str) else []
        return own + [name for value in node.values() for name in _references(value)]
    if isinstance(node, list):
        return [name for value in node for name in _references(value)]
    return []
