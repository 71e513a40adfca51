"""What a field manager owns of a live object, by its managedFields (FieldsV1 of Kubernetes' structured-merge-diff)."""

from __future__ import annotations

import json
from typing import Any

Body = dict[str, Any]


def applied_fields(live: Body, manager: str) -> Body:
    """The FieldsV1 tree that a manager has applied; empty where it has applied nothing."""
    for entry in live["metadata"].get("managedFields") or []:
        if entry.get("manager") == manager and entry.get("operation") == "Apply" and not entry.get("subresource"):
            return entry.get("fieldsV1") or {}
    return {}


def extract(live: Any, fields: Body) -> Any:
    """The part of a live value that a FieldsV1 tree names.

    `f:name` is a field, `k:{...}` the list item with these keys, `v:...` the list item of this value, and an empty tree
    stands for all of the value. List items come in the live list's order, which may matter.
    """
    if not fields:
        return live
    if isinstance(live, dict):
        names = [key[2:] for key in fields if key.startswith("f:")]
        return {name: extract(live[name], fields[f"f:{name}"]) for name in names if name in live}
    if isinstance(live, list):
        found = []
        for key, below in fields.items():
            if key.startswith("k:"):
                wanted = json.loads(key[2:])
                found += [(at, extract(item, below)) for at, item in enumerate(live) if wanted.items() <= item.items()]
            elif key.startswith("v:"):
                found += [(at, item) for at, item in enumerate(live) if item == json.loads(key[2:])]
        return [item for _at, item in sorted(found, key=lambda pair: pair[0])]
    return live
