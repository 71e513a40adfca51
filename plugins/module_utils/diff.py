"""Before and after as people read them: server fields stripped, secrets masked."""

from __future__ import annotations

import base64
import binascii
import contextlib
from typing import Any

import yaml

NOISE = ("managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink")
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
KEEP = (
    "citadelbuy.io/keep"  # a Secret's keys of which the cluster's value stands: users, who change with their passwords
)
SHORTEST_MASKED = 8  # shorter values would blank ordinary words out of a message


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Multi-line texts as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def content(body: dict[str, Any] | None) -> dict[str, Any]:
    """An object without what the server keeps for itself: what a user can have changed."""
    if body is None:
        return {}
    plain = {key: value for key, value in body.items() if key != "status"}
    plain["metadata"] = metadata = {key: value for key, value in body.get("metadata", {}).items() if key not in NOISE}
    if LAST_APPLIED in (metadata.get("annotations") or {}):
        metadata["annotations"] = {key: value for key, value in metadata["annotations"].items() if key != LAST_APPLIED}
    return plain


def yaml_diff(before: dict[str, Any] | None, after: dict[str, Any] | None, title: str) -> dict[str, str]:
    """One entry of an Ansible result's `diff` list."""
    old, new = content(before), content(after)
    if (after or before or {}).get("kind") == "Secret":
        for part in ("data", "stringData"):
            was, becomes = old.get(part) or {}, new.get(part) or {}
            if was:
                old[part] = dict.fromkeys(was, "*****")
            if becomes:
                new[part] = {
                    key: "*****" if was.get(key, value) == value else "***** (changed)"
                    for key, value in becomes.items()
                }
    return {
        "before_header": title,
        "after_header": title,
        "before": to_yaml(old) if before else "",
        "after": to_yaml(new) if after else "",
    }


def to_yaml(body: dict[str, Any]) -> str:
    """Block-style YAML, keys in order."""
    return yaml.dump(body, Dumper=_Dumper, default_flow_style=False, sort_keys=True, allow_unicode=True, width=1000)


def secret_values(body: dict[str, Any]) -> set[str]:
    """The values of a Secret, plain and in base64, that must not appear in a message; the names of users may."""
    values = {str(value) for value in (body.get("stringData") or {}).values()}
    annotations = (body.get("metadata") or {}).get("annotations") or {}
    names = str(annotations.get(KEEP) or "").split(",")
    for value in (value for key, value in (body.get("data") or {}).items() if key not in names):
        values.add(str(value))
        with contextlib.suppress(binascii.Error, ValueError):
            values.add(base64.b64decode(str(value)).decode())
    return {value for value in values if len(value) >= SHORTEST_MASKED}


def mask(text: str, values: set[str]) -> str:
    """Blank secret values out of a text, longest first."""
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "*****")
    return text
