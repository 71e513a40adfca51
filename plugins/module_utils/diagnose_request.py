"""What became of one request: the lines that hold its id, the first error among them, and its traces.

From VictoriaLogs and Jaeger where they are there, else from the running containers' own logs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    SECRET,
    ApiError,
    Cluster,
    EngineError,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_logs import (
    LOGS,
    TRACES,
    ask_logs,
    ask_trace,
    ready_pod,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_mask import Mask
from ansible_collections.citadelbuy.platform.plugins.module_utils.pod_failure import container_statuses
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import POD

Body = dict[str, Any]
REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)  # as the API takes one
LINES = 500  # that are shown
WIDTH = 1000  # characters of a line
TRACES_SHOWN = 5
SPANS = 200  # of a trace
SIDE_BY_SIDE = 12  # logs read at a time
BAD_LEVELS = ("error", "fatal", "critical", "panic")
SHOWN_ELSEWHERE = {"_msg", "_time", "_stream", "_stream_id", "namespace", "pod", "container", "level", "name"}
SHOWN_ELSEWHERE |= {"node", "requestId", "traceId", "spanId", "time", "msg"}


@dataclass(frozen=True)
class Line:
    """A line of a log."""

    time: str
    pod: str
    container: str
    fields: dict[str, str]

    @property
    def level(self) -> str:
        """Its level in small letters; empty where it has none."""
        return self.fields.get("level", "").lower()

    @property
    def text(self) -> str:
        """Its message, then the fields that stand nowhere else."""
        rest = [f"{name}={value}" for name, value in self.fields.items() if name not in SHOWN_ELSEWHERE and value]
        return " ".join(" ".join([self.fields.get("_msg", ""), *rest]).split())


def first_error(lines: list[Line]) -> Line | None:
    """The first line that tells of an error, by its level or else by the status of an answer."""
    by_level = (line for line in lines if line.level in BAD_LEVELS)
    by_status = (line for line in lines if re.fullmatch(r"5\d\d", line.fields.get("status", "")))
    return next(by_level, None) or next(by_status, None)


def spans(trace: Body) -> Iterator[tuple[int, Body]]:
    """The spans of a trace as Jaeger has them, each with its depth, children behind their parent, by time."""
    found = sorted(trace.get("spans") or [], key=lambda span: span["startTime"])
    known = {span["spanID"] for span in found}
    children: dict[str, list[Body]] = {}
    for span in found:
        parents = [item["spanID"] for item in span.get("references") or [] if item.get("refType") == "CHILD_OF"]
        # One whose parent has not come is at the top.
        parent = parents[0] if parents and parents[0] in known else ""
        children.setdefault(parent, []).append(span)
    stack = [(0, span) for span in reversed(children.pop("", []))]
    while stack:
        depth, span = stack.pop()
        yield depth, span
        stack += [(depth + 1, child) for child in reversed(children.pop(span["spanID"], []))]
    # Those that are each other's parents.
    yield from ((0, span) for left in children.values() for span in left)


def trace_lines(trace: Body) -> list[str]:
    """A trace as a tree: service, what it did, when it began, how long it took, its error."""
    rows = list(spans(trace))
    begin = min(span["startTime"] for _depth, span in rows)
    end = max(span["startTime"] + span["duration"] for _depth, span in rows)
    services = {name: process.get("serviceName", "") for name, process in (trace.get("processes") or {}).items()}
    lines = [f"Trace {trace['traceID']}: {len(rows)} spans, {(end - begin) / 1000:.1f} ms"]
    for depth, span in rows[:SPANS]:
        tags = {tag["key"]: tag["value"] for tag in span.get("tags") or []}
        what = f"{'  ' * depth}{services.get(span['processID'], '')}: {' '.join(span['operationName'].split())}"
        store = tags.get("db.system.name") or tags.get("db.system")
        what += f" ({store})" if store else ""
        took = f"{(span['startTime'] - begin) / 1000:>+9.1f} {span['duration'] / 1000:>9.1f} ms"
        lines.append(f"  {took}  {what}{_error(tags)}")
    if len(rows) > SPANS:
        lines.append(f"  and {len(rows) - SPANS} more spans")
    return lines


def _error(tags: Body) -> str:
    if tags.get("error") not in (True, "true"):
        return ""
    said = tags.get("otel.status_description") or tags.get("http.response.status_code") or tags.get("http.status_code")
    return f"  ERROR: {' '.join(str(said).split())}" if said else "  ERROR"


def _printable(text: str) -> str:
    """A line as a terminal may have it: what would move its cursor is left out."""
    return "".join(char for char in text if char.isprintable()).rstrip()


class Request:
    """One request of a platform. It reads only."""

    def __init__(self, cluster: Cluster, namespaces: list[str], request: str, since: timedelta, limit: float) -> None:
        """Ask nothing yet.

        :param limit: seconds that each question may take.
        :raises EngineError: the id is none that the API takes.
        """
        if not REQUEST_ID.fullmatch(request):
            raise EngineError(
                f"diagnose_request_id is {request[:64]!r}: write 1 to 128 letters, digits and . _ : - as the answer's "
                "header X-Request-Id has them."
            )
        self.cluster, self.namespaces, self.request, self.limit = cluster, namespaces, request, limit
        self.seconds = max(1, int(since.total_seconds()))
        self.notes: list[str] = []

    def tell(self, back: str) -> str:
        """All of it, for a terminal, without secrets.

        :param back: how far back, as the user said it.
        :raises EngineError: no line has the id.
        """
        pods = [pod for namespace in self.namespaces for pod in self.cluster.list(POD, namespace)["items"]]
        mask = self._mask(pods)
        lines = self._lines(pods)
        if not lines:
            notes = " ".join(self.notes)
            raise EngineError(
                mask.text(
                    f"no line of the last {back} has the request id {self.request}: look further back with "
                    f"diagnose_since. {notes}".strip()
                )
            )
        # Before lines are cut, which may be in the middle of a value; what is named a secret is masked in the whole.
        shown = [Line(line.time, line.pod, line.container, mask.deep(line.fields)) for line in lines[:LINES]]
        text = [self._headline(shown), "", *self._table(shown)]
        if len(lines) > LINES:
            text.append(f"and more: these are the first {LINES}")
        traces = list(dict.fromkeys(line.fields["traceId"] for line in lines if line.fields.get("traceId")))
        text += self._traces(pods, traces)
        text += ["", *self.notes] if self.notes else []
        return mask.text("\n".join(map(_printable, text)))

    def _lines(self, pods: list[Body]) -> list[Line]:
        """The lines of the request, the first one first."""
        pod = ready_pod(pods, LOGS)
        if not pod:
            self.notes.append("Logs are not kept (platform_logs is false, or the pod victoria-logs-0 is not ready).")
            return self._current(pods)
        # The id is of letters that LogsQL's quotes need not keep in.
        query = f'_time:{self.seconds}s requestId:="{self.request}" | sort by (_time) | limit {LINES + 1}'
        try:
            rows = ask_logs(self.cluster, pod, query, self.limit)
        except EngineError as error:
            self.notes.append(f"VictoriaLogs could not be asked ({' '.join(str(error).split())}).")
            return self._current(pods)
        return [Line(row["_time"], row.get("pod", ""), row.get("container", ""), row) for row in rows]

    def _current(self, pods: list[Body]) -> list[Line]:
        """The same from what the containers' logs hold now."""
        self.notes.append(
            "Read was what the running containers' logs have now, without what was rotated away, or written by pods "
            "that are gone."
        )
        jobs = [
            (pod["metadata"], container["name"])
            for pod in pods
            for container in container_statuses(pod)
            if "running" in (container.get("state") or {})
        ]
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            found = [line for lines in pool.map(lambda job: self._log(*job), jobs) for line in lines]
        return sorted(found, key=lambda line: line.time)

    def _log(self, pod: Body, container: str) -> list[Line]:
        """The request's lines in one container's log."""
        path = f"/api/v1/namespaces/{pod['namespace']}/pods/{pod['name']}/log"
        query = {"container": container, "sinceSeconds": self.seconds, "timestamps": "true"}
        try:
            text = self.cluster.request("GET", path, query=query, text=True)[1]
        except EngineError as error:
            self.notes.append(f"The log of {pod['name']}/{container} could not be read: {error}")
            return []
        finally:
            self.cluster.close()
        found = []
        for line in text.split("\n"):
            time, _, said = line.partition(" ")
            if self.request not in said:
                continue
            try:
                fields = json.loads(said)
            except ValueError:
                continue
            if isinstance(fields, dict) and fields.get("requestId") == self.request:
                texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
                found.append(Line(time, pod["name"], container, texts | {"_msg": texts.get("msg", "")}))
        return found

    def _headline(self, lines: list[Line]) -> str:
        line = first_error(lines)
        if line:
            return f"Request {self.request}: error in pod {line.pod}, container {line.container}: {line.text[:WIDTH]}"
        answers = [line for line in lines if line.fields.get("status")]
        answered = f", answered with {answers[-1].fields['status']} by pod {answers[-1].pod}" if answers else ""
        return f"Request {self.request}: no error in its lines{answered}"

    @staticmethod
    def _table(lines: list[Line]) -> list[str]:
        places = [f"{line.pod}/{line.container}" for line in lines]
        width = max(map(len, places))
        # To the millisecond, as the containers write it.
        times = [line.time.replace("T", " ").rstrip("Z")[:23] for line in lines]
        return [
            f"{time:<23}  {place:<{width}}  {line.level:<5}  {line.text[:WIDTH]}"
            for time, place, line in zip(times, places, lines, strict=True)
        ]

    def _traces(self, pods: list[Body], traces: list[str]) -> list[str]:
        """The request's traces, as far as Jaeger has them."""
        if not traces:
            return []
        pod = ready_pod(pods, TRACES)
        if not pod:
            self.notes.append(
                f"Trace {', '.join(traces[:TRACES_SHOWN])}: traces are not kept (platform_traces is false, or the pod "
                "jaeger-0 is not ready)."
            )
            return []
        text = []
        for trace in traces[:TRACES_SHOWN]:
            try:
                found = ask_trace(self.cluster, pod, trace, self.limit)
            except EngineError as error:
                self.notes.append(f"Jaeger could not be asked: {' '.join(str(error).split())}")
                continue
            if found and found.get("spans"):
                text += ["", *trace_lines(found)]
            else:
                self.notes.append(
                    f"Jaeger has no trace {trace}: it comes some seconds after the lines, and goes before them."
                )
        return text

    def _mask(self, pods: list[Body]) -> Mask:
        """What blanks out the values of the platform's Secrets."""
        secrets: list[Body] = []
        for namespace in self.namespaces:
            try:
                secrets += self.cluster.list(SECRET, namespace)["items"]
            except ApiError as error:
                self.notes.append(
                    f"Secrets of {namespace} could not be read, so only what is named as one is masked: {error}"
                )
        names = {*self.namespaces, *(pod["metadata"]["name"] for pod in pods)}
        names |= {container["name"] for pod in pods for container in pod["spec"]["containers"]}
        return Mask(secrets, names)
