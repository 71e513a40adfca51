"""Why a pod does not come, for people: container states, last events, last log lines."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, diff
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import SECRET, Cluster, EngineError

Body = dict[str, Any]
EVENTS = 5
LOG_LINES = 10


def is_ready(pod: Body) -> bool:
    """Whether a pod is Ready, or has ended well."""
    status = pod.get("status") or {}
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions") or [])
    return ready or status.get("phase") == "Succeeded"


def last_exit(container: Body) -> str:
    """How a container ended last, such as `exit code 1 (Error)`."""
    for state in (container.get("state") or {}, container.get("lastState") or {}):
        ended = state.get("terminated")
        if ended:
            return f"exit code {ended.get('exitCode')} ({ended.get('reason')})"
    return "no exit code known"


def secret_values(cluster: Cluster, pods: list[Body]) -> set[str]:
    """The values that logs and messages of these pods must not show: those of every Secret that they use.

    Whole, line by line, in base64 and as they stand in a URL. A value that is also the name of something in the
    report is no secret, and a Secret that the user may not read is left out.
    """
    used, names = set(), set()
    for pod in pods:
        metadata, spec = pod["metadata"], pod.get("spec") or {}
        names |= {metadata["namespace"], metadata["name"]}
        for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
            names |= {container["name"], container.get("image") or ""}
        used |= {(metadata["namespace"], name) for kind, name, _ in applyset.references(spec) if kind == "Secret"}
    values: set[str] = set()
    for namespace, name in used:
        try:
            values |= diff.secret_values(cluster.get(SECRET, namespace, name) or {})
        except EngineError:  # not allowed, or out of reach
            continue
    values |= {line for value in values for line in value.splitlines() if len(line) >= diff.SHORTEST_MASKED}
    values |= {quote(value, safe="") for value in values}
    return {value for value in values if not any(value in name for name in names)}


def describe(
    cluster: Cluster, body: Body | None, pods: list[Body], events: list[Body], secrets: set[str] | None = None
) -> list[str]:
    """Indented lines about an object that is not ready and about its pods.

    :param secrets: values to blank out of the logs.
    """
    lines = []
    for pod in pods:
        status = pod.get("status") or {}
        lines.append(f"  pod {pod['metadata']['name']}: {status.get('phase', 'Unknown')}")
        lines += [
            f"    {condition['type']}: {condition['message']}"
            for condition in status.get("conditions") or []
            if condition.get("status") == "False" and condition.get("message") and condition["type"] == "PodScheduled"
        ]
        containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
        for container in containers:
            if not (container.get("ready") or _ended_well(container)):
                lines.append(f"    container {container['name']}: {_state(container)}")
        lines += _events(pod, events)
        for container in containers:
            if not (container.get("ready") or _ended_well(container)):
                lines += _log(cluster, pod, container, secrets or set())
    if body:
        lines += _events(body, events)
    return lines


def _ended_well(container: Body) -> bool:
    return ((container.get("state") or {}).get("terminated") or {}).get("exitCode") == 0


def _state(container: Body) -> str:
    """A container's state in one line."""
    text = "unknown"
    for name, detail in (container.get("state") or {}).items():
        words = [name, detail.get("reason"), detail.get("message")]
        text = ": ".join(str(word).strip() for word in words if word)
    if container.get("restartCount"):
        text += f", {container['restartCount']} restarts, last {last_exit(container)}"
    elif "terminated" in (container.get("state") or {}):
        text += f", {last_exit(container)}"
    elif "running" in (container.get("state") or {}):
        text += ", not ready"
    return text


def _events(body: Body, events: list[Body]) -> list[str]:
    """The last warnings about an object (all events, where there is no warning)."""
    own = [event for event in events if (event.get("involvedObject") or {}).get("uid") == body["metadata"].get("uid")]
    own.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    chosen = [event for event in own if event.get("type") == "Warning"] or own
    return [
        f"    event {event.get('reason')}"
        + (f" x{event['count']}" if event.get("count", 1) > 1 else "")
        + f": {event.get('message', '').strip()}"
        for event in chosen[-EVENTS:]
    ]


def _log(cluster: Cluster, pod: Body, container: Body, secrets: set[str]) -> list[str]:
    """The last log lines of a container; of its previous run where it has crashed."""
    metadata = pod["metadata"]
    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/log"
    query = {"container": container["name"], "tailLines": str(LOG_LINES)}
    if "waiting" in (container.get("state") or {}) and not container.get("restartCount"):
        return []  # never ran
    previous = {"previous": "true"} if "waiting" in (container.get("state") or {}) else {}
    try:
        text = cluster.request("GET", path, query=query | previous, text=True)[1]
    except EngineError:
        return []
    # Masked as a whole, before anything is cut: half a secret would not be found.
    lines = [line for line in diff.mask(text, secrets).splitlines() if line.strip()]
    return [f"    log of {container['name']}:"] + [f"      {line[:300]}" for line in lines] if lines else []
