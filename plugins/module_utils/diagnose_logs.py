"""VictoriaLogs and Jaeger, asked through their pods."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.report import is_ready
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import http_through_pod

Body = dict[str, Any]
LOGS, TRACES = "victoria-logs", "jaeger"
PORTS = {LOGS: 9428, TRACES: 16686}
TRACE_ID = re.compile(r"[0-9a-f]{32}")

# The same filter is that of the dashboard Logs. The collector gives levels in small letters; what has none is text.
ERRORS = '(level:in(error,fatal,critical,panic) or level:"" (i(error) or i(fatal) or i(panic)))'


def ready_pod(pods: Iterable[Body], name: str) -> Body | None:
    """A pod of this name that may be asked; None where there is none, as where the part is switched off."""
    named = [pod for pod in pods if (pod["metadata"].get("labels") or {}).get("app.kubernetes.io/name") == name]
    return next((pod for pod in named if is_ready(pod)), None)


def ask_logs(cluster: Cluster, pod: Body, query: str, timeout: float) -> list[Body]:
    """The rows that a LogsQL query answers with; all their values are texts.

    :raises EngineError: there is no answer, or none of rows.
    """
    path = "/select/logsql/query"
    reply = _get(cluster, pod, LOGS, f"{path}?{urlencode({'query': query})}", timeout)
    if reply.status != 200:
        raise EngineError(f"GET {path} answered {reply.status}: {reply.text[:200]}")
    try:
        # Not splitlines: it also splits at characters that stand in texts.
        return [json.loads(line) for line in reply.body.split(b"\n") if line]
    except ValueError:
        raise EngineError(f"GET {path} answered with what is no JSON: {reply.text[:200]}") from None


def ask_trace(cluster: Cluster, pod: Body, trace: str, timeout: float) -> Body | None:
    """A trace as Jaeger has it; None where it has none of that id.

    :raises EngineError: there is no answer, or the id is none.
    """
    if not TRACE_ID.fullmatch(trace):
        raise EngineError(f"{trace[:64]!r} is no id of a trace")
    reply = _get(cluster, pod, TRACES, f"/api/traces/{trace}", timeout)
    if reply.status == 404:
        return None
    answer = reply.json()
    if reply.status != 200 or not isinstance(answer, dict):
        raise EngineError(f"GET /api/traces/{trace} answered {reply.status}: {reply.text[:200]}")
    return next(iter(answer.get("data") or []), None)


def _get(cluster: Cluster, pod: Body, name: str, path: str, timeout: float) -> Any:
    metadata = pod["metadata"]
    return http_through_pod(cluster, metadata["namespace"], metadata["name"], PORTS[name], "GET", path, timeout=timeout)
