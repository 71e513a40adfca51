#!/usr/bin/python
"""Read from an API server's audit log who did what."""

from __future__ import annotations

DOCUMENTATION = r"""
module: audit_log
short_description: Read from an API server's audit log who did what
description:
  - Reads an audit log in JSON lines and the rotated files beside it; returns the deeds as a table, newest last.
  - Reads are left out unless an object is named; what Kubernetes' own parts do is, too.
options:
  path:
    description: The log that is written now; rotated ones beside it are called C(<name>-<time>.log), compressed or not.
    type: path
    required: true
  since:
    description: How far back, as in V(90s), V(30m), V(1h) or V(2d).
    type: str
    default: 1h
  object:
    description: One object, as C(kind/name) in singular or plural, or as C(namespace/kind/name).
    type: str
    default: ""
author: CitadelBuy Infrastructure
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Who touched the API's Deployment
  citadelbuy.platform.audit_log:
    path: /var/lib/citadelbuy/citadelbuy/logs/audit/audit.log
    object: deployment/citadelbuy-api
"""

RETURN = r"""
deeds:
  description: What was done, oldest first.
  type: list
  elements: dict
  returned: success
  sample:
    - time: "2026-11-23T08:00:00Z"
      who: kubernetes-admin
      did: patch
      object: citadelbuy/deployments/citadelbuy-api
      from: 10.89.0.11
      result: "200"
msg:
  description: The same as a table for people.
  type: str
  returned: always
"""

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
CHANGES = {"create", "update", "patch", "delete", "deletecollection"}
CONTROL_PLANE = re.compile("system:(node|apiserver|kube-|serviceaccount:kube-system:)")
COLUMNS = ("time", "who", "did", "object", "from", "result")
Deed = dict[str, str]


class LogError(Exception):
    """The log or the question is not what it should be; the message says what to do."""


def seconds_back(text: str) -> timedelta:
    """A span such as 90s, 30m, 1h or 2d.

    Raises:
        LogError: it is none.
    """
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if not found:
        raise LogError(f"diagnose_since is {text!r}: write a number and s, m, h or d, as in 90s, 30m, 1h or 2d.")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def wanted_object(text: str) -> tuple[str, str, str]:
    """Namespace ("" for any), kind in lower case and name of `kind/name` or `namespace/kind/name`.

    Raises:
        LogError: it is neither.
    """
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise LogError(f"diagnose_object is {text!r}: write kind/name or namespace/kind/name, as in deployment/api.")
    namespace, kind, name = parts if len(parts) == 3 else ["", *parts]
    return namespace, kind.lower(), name


def is_kind(resource: str, kind: str) -> bool:
    """Whether a resource's plural is that of a kind, given in singular or plural: networkpolicies, networkpolicy."""
    return resource in (kind, f"{kind}s", f"{kind}es", f"{kind[:-1]}ies")


def files_of(path: Path) -> list[Path]:
    """The log and its rotated files, oldest first: the API server puts the time into their names.

    Raises:
        LogError: there is none.
    """
    rotated = sorted(path.parent.glob(f"{path.stem}-*{path.suffix}*")) if path.parent.is_dir() else []
    found = [*rotated, *([path] if path.is_file() else [])]
    if not found:
        raise LogError(
            f"there is no audit log {path}: set diagnose_audit_log to the file where the API server or your cloud's"
            " export has written it (docs/audit.md); the embedded cluster has one since it was last brought up."
        )
    return found


def events(files: list[Path]) -> Iterator[Mapping[str, Any]]:
    """The events of these files; half a line, as at the end of a file that is being written, is passed over."""
    for file in files:
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and event.get("kind") == "Event":
                    yield event


def deed(event: Mapping[str, Any]) -> Deed:
    """One event in a few words."""
    reference = event.get("objectRef") or {}
    resource = reference.get("resource", "")
    place = [reference.get("namespace"), resource, reference.get("name")]
    target = "/".join(part for part in place if part) or str(event.get("requestURI", "")).partition("?")[0]
    status = event.get("responseStatus") or {}
    code = str(status.get("code", ""))
    user = event.get("user", {}).get("username", "")
    acted_as = (event.get("impersonatedUser") or {}).get("username")
    verb = event.get("verb", "") + (f" {reference['subresource']}" if reference.get("subresource") else "")
    return {
        "time": str(event.get("requestReceivedTimestamp", ""))[:19] + "Z",
        "who": f"{user} as {acted_as}" if acted_as else user,
        "did": verb + (" (dry run)" if "dryRun=All" in str(event.get("requestURI", "")) else ""),
        "object": target,
        "from": ",".join(event.get("sourceIPs") or []),
        "result": f"{code} {status.get('reason', '')}".strip() if code >= "300" else code,
    }


def deeds(path: Path, since: timedelta, target: str, now: datetime) -> list[Deed]:
    """What was done since then, oldest first: every deed to an object, else the changes by people and programs.

    Raises:
        LogError: there is no such log, or the object is not one.
    """
    namespace, kind, name = wanted_object(target) if target else ("", "", "")
    begin = (now - since).strftime("%Y-%m-%dT%H:%M:%S")
    found = []
    for event in events(files_of(path)):
        reference = event.get("objectRef") or {}
        if event.get("stage") not in ("ResponseComplete", "Panic") or event.get("requestReceivedTimestamp", "") < begin:
            continue
        if target:
            body_name = (((event.get("requestObject") or {}).get("metadata")) or {}).get("name")
            if not is_kind(reference.get("resource", ""), kind) or name not in (reference.get("name"), body_name):
                continue
            if namespace and reference.get("namespace") != namespace:
                continue
        elif event.get("verb") not in CHANGES or CONTROL_PLANE.match(event.get("user", {}).get("username", "")):
            continue
        found.append((event["requestReceivedTimestamp"], deed(event)))
    return [item for _, item in sorted(found, key=lambda pair: pair[0])]


def table(rows: list[Deed]) -> str:
    """The deeds as text, columns aligned."""
    cells = [COLUMNS, *(tuple(row[column] for column in COLUMNS) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "since": {"type": "str", "default": "1h"},
            "object": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    path, since, target = Path(module.params["path"]), module.params["since"], module.params["object"]
    try:
        found = deeds(path, seconds_back(since), target, datetime.now(UTC))
    except (LogError, OSError) as error:
        module.fail_json(msg=str(error))
    what = f" to {target}" if target else ""
    text = table(found) if found else f"nothing was done{what} in the last {since}, as far as {path} tells"
    module.exit_json(changed=False, deeds=found, msg=text)


if __name__ == "__main__":
    main()
