"""A diagnosis as one page: causes first, then how things are, then details; as HTML in one file, and as text."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils import report
from ansible_collections.citadelbuy.platform.plugins.module_utils.capacity import quantity
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_causes import (
    FULL,
    Cause,
    addresses,
    needs_endpoints,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_collect import (
    WORDS,
    Snapshot,
    event_time,
    is_healthy,
    parse_time,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_network import policies_of
from ansible_collections.citadelbuy.platform.plugins.module_utils.pod_failure import container_statuses
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import progress

Body = dict[str, Any]
NOTHING = "No likely cause was found by the rules: read the states below, then the errors, events and recent changes."
EVENTS = 100  # the last ones
CHANGES = 60
WIDTH = 110  # characters of the text's prose
CELL = 70  # characters of a cell in the text
GOOD, BAD = "good", "bad"
REDIS_INFO = (
    *("used_memory_human", "used_memory_peak_human", "maxmemory_human", "maxmemory_policy", "mem_fragmentation_ratio"),
    *("connected_clients", "blocked_clients", "maxclients", "rejected_connections", "evicted_keys", "expired_keys"),
    *("keyspace_hits", "keyspace_misses", "instantaneous_ops_per_sec", "role", "connected_slaves"),
    *("master_link_status", "rdb_last_bgsave_status", "aof_last_write_status"),
)


@dataclass
class Section:
    """A part of the page: a table, or lines of text."""

    title: str
    columns: tuple[str, ...] = ()
    rows: Iterable[tuple[Any, ...]] = ()
    lines: Iterable[str] = ()
    detail: bool = False  # collapsed in HTML
    empty: str = "none"

    def __post_init__(self) -> None:
        self.rows = [tuple("" if cell is None else cell for cell in row) for row in self.rows]
        self.lines = list(self.lines)


@dataclass(frozen=True)
class Bad:
    """A cell that a reader should see first."""

    text: str

    def __str__(self) -> str:
        return self.text


def _flag(bad: bool, text: Any) -> Any:
    return Bad(str(text)) if bad else text


def span(seconds: float) -> str:
    """A length of time in one unit, as in 90s, 12m, 5h or 3d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size or seconds == size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"


class Report:
    """The page of one diagnosis."""

    def __init__(self, snapshot: Snapshot, causes: list[Cause]) -> None:
        self.snapshot = snapshot
        self.causes = causes
        self.states = list(self._states())
        self.details = list(self._details())

    @property
    def headline(self) -> str:
        """The answer in one line."""
        count = len(self.causes)
        unhealthy = sum(not is_healthy(pod, self.snapshot) for pod in self.snapshot.of("pods"))
        pods = f"{len(self.snapshot.of('pods'))} pods, {unhealthy or 'none'} of them unwell"
        return f"{count} likely cause{'s' if count != 1 else ''}; {pods}"

    def _ago(self, stamp: str | None) -> str:
        when = parse_time(stamp)
        return span((self.snapshot.taken - when).total_seconds()) if when else ""

    # How things are.

    def _states(self) -> Iterator[Section]:
        yield Section(
            "Nodes",
            ("node", "ready", "pressure", "cpu", "memory", "taints", "version", "age"),
            self._nodes(),
        )
        yield Section(
            "Pods",
            ("pod", "ready", "state", "restarts", "last end", "cpu", "memory", "node", "age"),
            self._pods(),
        )
        yield Section("Workloads", ("workload", "rollout", "revision", "condition", "images", "age"), self._workloads())
        yield Section("Autoscalers", ("autoscaler", "replicas", "from", "to", "conditions"), self._autoscalers())
        yield Section("Volumes", ("claim", "state", "size", "used", "class", "volume"), self._claims())
        yield Section("Services", ("service", "ports", "ready addresses", "not ready"), self._services())
        yield Section(
            "Stores",
            ("store", "state"),
            self._stores(),
            empty="no store could be asked; see what could not be collected",
        )
        yield Section(
            "Firing alerts",
            ("alert", "severity", "since", "summary"),
            self._alerts(),
            empty=self.snapshot.problems.get("alerts", "none fires"),
        )

    def _nodes(self) -> Iterator[tuple[Any, ...]]:
        used = {item["metadata"]["name"]: item.get("usage") or {} for item in self.snapshot.of("node_metrics")}
        for node in self.snapshot.of("nodes"):
            status, name = node.get("status") or {}, node["metadata"]["name"]
            conditions = {item["type"]: item["status"] for item in status.get("conditions") or []}
            ready = conditions.get("Ready", "Unknown")
            pressures = [kind for kind, value in conditions.items() if kind != "Ready" and value == "True"]
            room = status.get("allocatable") or {}
            taints = [f"{item['key']}:{item['effect']}" for item in node["spec"].get("taints") or []]
            yield (
                name,
                _flag(ready != "True", ready),
                _flag(bool(pressures), ", ".join(pressures)),
                _share(used.get(name, {}).get("cpu"), room.get("cpu")),
                _share(used.get(name, {}).get("memory"), room.get("memory")),
                ", ".join(taints),
                (status.get("nodeInfo") or {}).get("kubeletVersion", ""),
                self._ago(node["metadata"].get("creationTimestamp")),
            )

    def _pods(self) -> Iterator[tuple[Any, ...]]:
        used: dict[str, dict[str, float]] = {}
        for item in self.snapshot.of("pod_metrics"):
            usages = [container.get("usage") or {} for container in item.get("containers") or []]
            used[item["metadata"]["name"]] = {
                kind: sum(_number(usage.get(kind)) for usage in usages) for kind in ("cpu", "memory")
            }
        for pod in sorted(self.snapshot.of("pods"), key=lambda pod: is_healthy(pod, self.snapshot)):
            name, containers = pod["metadata"]["name"], container_statuses(pod)
            status = pod.get("status") or {}
            statuses = status.get("containerStatuses") or []
            bad = not is_healthy(pod, self.snapshot)
            ended = max(
                (
                    (item.get("lastState") or {}).get("terminated") or {}
                    for item in containers
                    if (item.get("lastState") or {}).get("terminated")
                ),
                key=lambda end: str(end.get("finishedAt")),
                default=None,
            )
            end = ""
            if ended:
                ago = self._ago(ended.get("finishedAt"))
                end = f"{ended.get('reason')}, exit code {ended.get('exitCode')}, {ago} ago"
            yield (
                name,
                _flag(bad, f"{sum(bool(item.get('ready')) for item in statuses)}/{len(pod['spec']['containers'])}"),
                _flag(bad, _state(pod)),
                sum(item.get("restartCount", 0) for item in containers),
                end,
                _share(used.get(name, {}).get("cpu"), _limit(pod, "cpu")),
                _share(used.get(name, {}).get("memory"), _limit(pod, "memory")),
                pod["spec"].get("nodeName", ""),
                self._ago(pod["metadata"].get("creationTimestamp")),
            )

    def _workloads(self) -> Iterator[tuple[Any, ...]]:
        for kind in ("deployments", "statefulsets", "daemonsets", "jobs"):
            for body in self.snapshot.of(kind):
                ready, state = progress(body)
                status, metadata = body.get("status") or {}, body["metadata"]
                conditions = [
                    f"{item['type']}={item['status']} ({item.get('reason')})"
                    for item in status.get("conditions") or []
                    if (item["type"] == "Failed" or item["status"] != "True") and item.get("reason")
                ]
                revision = (metadata.get("annotations") or {}).get("deployment.kubernetes.io/revision")
                images = [item.get("image", "") for item in body["spec"]["template"]["spec"]["containers"]]
                yield (
                    f"{body['kind']} {metadata['name']}",
                    _flag(not ready, state),
                    revision or status.get("updateRevision", ""),
                    ", ".join(conditions),
                    ", ".join(image.rpartition("/")[2] for image in images),
                    self._ago(metadata.get("creationTimestamp")),
                )

    def _autoscalers(self) -> Iterator[tuple[Any, ...]]:
        for body in self.snapshot.of("autoscalers"):
            status = body.get("status") or {}
            conditions = [
                f"{item['type']}={item['status']} ({item.get('reason')})" for item in status.get("conditions") or []
            ]
            blind = any(text.startswith("ScalingActive=False") for text in conditions)
            yield (
                body["metadata"]["name"],
                f"{status.get('currentReplicas', '?')} of {status.get('desiredReplicas', '?')} wanted",
                body["spec"].get("minReplicas", 1),
                body["spec"].get("maxReplicas"),
                _flag(blind, ", ".join(conditions)),
            )

    def _claims(self) -> Iterator[tuple[Any, ...]]:
        rows = {
            row["claim"]: row
            for part, found in self.snapshot.parts.items()
            if part.startswith("disk ")
            for row in found
        }
        for claim in self.snapshot.of("claims"):
            name, status = claim["metadata"]["name"], claim.get("status") or {}
            row = rows.get(name)
            used = 100 * row["used_kib"] / max(1, row["used_kib"] + row["free_kib"]) if row else None
            yield (
                name,
                _flag(status.get("phase") != "Bound", status.get("phase")),
                (status.get("capacity") or {}).get("storage", ""),
                "" if used is None else _flag(used >= FULL, f"{used:.0f} %"),
                claim["spec"].get("storageClassName", ""),
                claim["spec"].get("volumeName", ""),
            )

    def _services(self) -> Iterator[tuple[Any, ...]]:
        for service in self.snapshot.of("services"):
            ready, waiting = addresses(self.snapshot, service)
            wanted = needs_endpoints(service) and not ready
            yield (
                service["metadata"]["name"],
                ", ".join(str(port["port"]) for port in service["spec"].get("ports") or []),
                _flag(wanted, ", ".join(ready) or "none"),
                ", ".join(waiting),
            )

    def _stores(self) -> Iterator[tuple[Any, ...]]:
        parts = self.snapshot.parts
        postgres = parts.get("postgres")
        if postgres:
            limits = (postgres.get("limits") or [{}])[0]
            blocked = len(postgres.get("blocked") or [])
            yield (
                f"PostgreSQL ({postgres['pod']})",
                f"{limits.get('used', '?')} of {limits.get('max_connections', '?')} connections, {blocked} blocked, "
                f"{limits.get('database_size', '?')}",
            )
        for member in parts.get("patroni") or []:
            well = member.get("state") in ("running", "streaming")
            text = f"{member.get('role')}, {member.get('state')}, timeline {member.get('timeline')}"
            text += f", lag {member['lag']}" if "lag" in member else ""
            yield f"Patroni's {member.get('name')}", _flag(not well, text)
        for part, answers in parts.items():
            if part.startswith("redis "):
                info = answers.get("info") or {}
                most = info.get("maxmemory_human") if info.get("maxmemory") not in (None, "0") else "no limit"
                yield (
                    f"Redis ({part[6:]})",
                    f"{info.get('role')}, {info.get('used_memory_human')} of {most}, {info.get('connected_clients')} "
                    f"clients, {info.get('evicted_keys')} evicted, {info.get('rejected_connections')} refused",
                )
        health = (parts.get("elasticsearch") or {}).get("health")
        if health:
            text = (
                f"{health.get('status')}, {health.get('number_of_nodes')} nodes, {health.get('active_shards')} shards, "
            )
            text += (
                f"{health.get('unassigned_shards')} unassigned, {health.get('number_of_pending_tasks')} tasks pending"
            )
            yield f"Elasticsearch ({parts['elasticsearch']['pod']})", _flag(health.get("status") != "green", text)
        for part, answer in parts.items():
            if part.startswith("readiness ") and answer:
                body = answer.get("body")
                checks = body.get("checks") if isinstance(body, dict) else None
                words = [
                    f"{name} {check.get('status')} ({check.get('ms')} ms)" for name, check in (checks or {}).items()
                ]
                text = f"{answer['path']} answers {answer['status']}" + (f": {', '.join(words)}" if words else "")
                yield f"Readiness of {part[10:]}", _flag(answer["status"] != 200, text)

    def _alerts(self) -> Iterator[tuple[Any, ...]]:
        for alert in self.snapshot.parts.get("alerts") or []:
            labels, notes = alert.get("labels") or {}, alert.get("annotations") or {}
            if alert.get("state") == "firing":
                yield (
                    labels.get("alertname"),
                    _flag(labels.get("severity") == "critical", labels.get("severity", "")),
                    self._ago(alert.get("activeAt")),
                    notes.get("summary") or notes.get("description") or "",
                )

    # Details.

    def _details(self) -> Iterator[Section]:
        parts, since = self.snapshot.parts, span(self.snapshot.since.total_seconds())
        yield Section(
            f"Recent changes ({since})",
            ("ago", "by", "what", "object"),
            self._changes(),
            detail=True,
            empty="nothing changed",
        )
        yield Section(
            f"Events ({since})", ("ago", "type", "reason", "object", "times", "message"), self._events(), detail=True
        )
        errors = [
            (part[7:], entry["count"], entry["line"])
            for part, entries in parts.items()
            if part.startswith("errors ")
            for entry in entries
        ]
        yield Section(f"Errors of API and web ({since})", ("pod", "times", "the last one"), errors, detail=True)
        if "error lines" in parts:
            rows = [
                tuple(row.get(name) for name in ("namespace", "pod", "container", "lines"))
                for row in parts["error lines"]
            ]
            yield Section(
                f"Lines of errors in the logs that are kept ({since})",
                ("namespace", "pod", "container", "lines"),
                rows,
                detail=True,
            )
        for part, lines in parts.items():
            if part.startswith("log "):
                yield Section(f"Log of {part[4:]}", lines=lines, detail=True, empty="it wrote nothing")
        yield Section(
            "Network policies of unhealthy pods", ("pod", "policy", "ingress", "egress"), self._policies(), detail=True
        )
        yield Section("Revisions", ("deployment", "revision", "made", "pods", "images"), self._revisions(), detail=True)
        postgres = parts.get("postgres") or {}
        for name, title in (
            ("activity", "PostgreSQL: sessions"),
            ("longest", "PostgreSQL: longest running"),
            ("blocked", "PostgreSQL: blocked"),
            ("statements", "PostgreSQL: slowest statements (pg_stat_statements, by mean)"),
            ("replicas", "PostgreSQL: replicas"),
        ):
            yield from _table(title, postgres.get(name))
        for part, answers in parts.items():
            if part.startswith("redis "):
                yield from self._redis(part[6:], answers)
        search = parts.get("elasticsearch") or {}
        for name in ("nodes", "indices"):
            yield from _table(f"Elasticsearch: {name}", search.get(name))
        if search:
            yield from _table("Elasticsearch: pending tasks", (search.get("pending") or {}).get("tasks", []))
        if search.get("explain"):
            explain = search["explain"]
            keys = ("index", "shard", "primary", "current_state", "allocate_explanation", "note")
            yield Section(
                "Elasticsearch: why a shard is not allotted",
                ("", ""),
                [(key, explain[key]) for key in keys if key in explain],
                detail=True,
            )
        yield Section(
            "Secrets: when their keys were changed",
            ("secret", "key", "when"),
            self._rotations(),
            detail=True,
            empty="no time is noted",
        )
        yield Section(
            "Certificates of TLS Secrets",
            ("secret", "subject", "until"),
            [(item["secret"], item["subject"], item["until"]) for item in self.snapshot.of("certificates")],
            detail=True,
        )
        yield Section(
            "What could not be collected",
            ("part", "why"),
            [(WORDS.get(part, part), text) for part, text in self.snapshot.problems.items()],
            detail=True,
            empty="all of it was",
        )

    def _changes(self) -> list[tuple[Any, ...]]:
        found = []
        for kind in (
            "deployments",
            "statefulsets",
            "daemonsets",
            "jobs",
            "autoscalers",
            "services",
            "policies",
            "claims",
            "secrets",
            "quotas",
        ):
            for body in self.snapshot.of(kind):
                name = f"{body.get('kind')} {body['metadata'].get('namespace')}/{body['metadata']['name']}"
                for entry in body["metadata"].get("managedFields") or []:
                    if entry.get("subresource") != "status" and self.snapshot.recent(entry.get("time")):
                        what = f"{entry.get('operation')}" + (
                            f" {entry['subresource']}" if entry.get("subresource") else ""
                        )
                        found.append((entry["time"], entry.get("manager"), what, name))
        found.sort(reverse=True)
        return [(self._ago(stamp), *rest) for stamp, *rest in found[:CHANGES]]

    def _events(self) -> list[tuple[Any, ...]]:
        recent = [event for event in self.snapshot.of("events") if self.snapshot.recent(event_time(event))]
        recent.sort(key=event_time, reverse=True)
        rows = []
        for event in recent[:EVENTS]:
            target = event.get("involvedObject") or {}
            rows.append(
                (
                    self._ago(event_time(event)),
                    _flag(event.get("type") == "Warning", event.get("type", "")),
                    event.get("reason", ""),
                    f"{target.get('kind')} {target.get('name')}",
                    event.get("count") or (event.get("series") or {}).get("count") or 1,
                    event.get("message", "").strip(),
                )
            )
        return rows

    def _policies(self) -> Iterator[tuple[Any, ...]]:
        for pod in self.snapshot.of("pods"):
            if is_healthy(pod, self.snapshot):
                continue
            for policy in policies_of(pod, self.snapshot.of("policies")):
                spec = policy["spec"]
                yield (
                    pod["metadata"]["name"],
                    policy["metadata"]["name"],
                    _ways(spec.get("ingress"), "from"),
                    _ways(spec.get("egress"), "to"),
                )

    def _revisions(self) -> Iterator[tuple[Any, ...]]:
        for body in sorted(
            self.snapshot.of("replicasets"),
            key=lambda item: item["metadata"].get("creationTimestamp", ""),
            reverse=True,
        ):
            metadata, status = body["metadata"], body.get("status") or {}
            owner = next((item["name"] for item in metadata.get("ownerReferences") or []), metadata["name"])
            images = [item.get("image", "") for item in body["spec"]["template"]["spec"]["containers"]]
            yield (
                owner,
                (metadata.get("annotations") or {}).get("deployment.kubernetes.io/revision", ""),
                f"{self._ago(metadata.get('creationTimestamp'))} ago",
                f"{status.get('readyReplicas', 0)} of {status.get('replicas', 0)} ready",
                ", ".join(images),
            )

    @staticmethod
    def _redis(pod: str, answers: Body) -> Iterator[Section]:
        info = answers.get("info") or {}
        rows = [(key, info[key]) for key in REDIS_INFO if key in info]
        yield Section(f"Redis {pod}: INFO", ("", ""), rows, detail=True)
        slow = [(row["time"], row["us"], row["command"]) for row in answers.get("slow") or []]
        yield Section(f"Redis {pod}: slow log", ("time", "µs", "command"), slow, detail=True)
        for name in ("MEMORY DOCTOR", "LATENCY LATEST"):
            if answers.get(name, "").strip():
                yield Section(f"Redis {pod}: {name}", lines=answers[name].strip().splitlines(), detail=True)

    def _rotations(self) -> Iterator[tuple[Any, ...]]:
        mark = "rotated.citadelbuy.io/"
        for secret in self.snapshot.of("secrets"):
            for key, value in sorted((secret["metadata"].get("annotations") or {}).items()):
                if key.startswith(mark):
                    yield secret["metadata"]["name"], key.removeprefix(mark), value

    # The page.

    def facts(self) -> list[tuple[str, str]]:
        """What the page is about."""
        snapshot = self.snapshot
        return [
            ("cluster", f"{snapshot.cluster} ({snapshot.server}, {snapshot.version})"),
            ("namespaces", ", ".join(snapshot.namespaces)),
            ("taken", f"{snapshot.taken:%Y-%m-%d %H:%M:%S} UTC, looking back {span(snapshot.since.total_seconds())}"),
            ("secrets", snapshot.masked_by),
        ]

    def causes_text(self) -> str:
        """The likely causes for a terminal."""
        if not self.causes:
            return NOTHING
        lines = []
        for number, cause in enumerate(self.causes, 1):
            lines += _wrap(f"{number}. ", cause.title)
            lines += _wrap("   where: ", ", ".join(cause.objects))
            for text in cause.evidence[:6]:
                lines += _wrap("   sign:  ", text)
            for text in cause.todo:
                lines += _wrap("   do:    ", text)
        return "\n".join(lines)

    def text(self) -> str:
        """The whole page as text."""
        lines = [f"Diagnosis of {self.snapshot.cluster}: {self.headline}", ""]
        lines += [f"{name:<11} {value}" for name, value in self.facts()]
        lines += ["", "LIKELY CAUSES", "", self.causes_text()]
        for section in [*self.states, *self.details]:
            lines += ["", section.title.upper(), ""]
            if section.rows:
                lines += _align([section.columns, *section.rows])
            lines += [line[:400] for line in section.lines]
            if not section.rows and not section.lines:
                lines.append(f"({section.empty})")
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """The whole page as one HTML file that loads nothing."""
        title = f"Diagnosis of {self.snapshot.cluster}, {self.snapshot.taken:%Y-%m-%d %H:%M} UTC"
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        parts = [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head><body><main>",
            f"<h1>{html.escape(title)}</h1>",
            f'<p class="headline {BAD if self.causes else GOOD}">{html.escape(self.headline)}</p>',
            "<dl>" + "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in self.facts()) + "</dl>",
            "<h2>Likely causes</h2>",
        ]
        parts += [self._cause_html(number, cause) for number, cause in enumerate(self.causes, 1)]
        if not self.causes:
            parts.append(f"<p>{html.escape(NOTHING)}</p>")
        parts += ["<h2>How things are</h2>", *(_section_html(section) for section in self.states)]
        parts += ["<h2>Details</h2>", *(_section_html(section) for section in self.details)]
        return "\n".join([*parts, "</main></body></html>", ""])

    @staticmethod
    def _cause_html(number: int, cause: Cause) -> str:
        signs = "".join(f"<li>{html.escape(text)}</li>" for text in cause.evidence[:6])
        todo = "".join(f"<li>{html.escape(text)}</li>" for text in cause.todo)
        return (
            f"<article><h3>{number}. {html.escape(cause.title)}</h3>"
            f'<p class="where">{html.escape(", ".join(cause.objects))}</p>'
            f'<ul class="signs">{signs}</ul><ul class="todo">{todo}</ul></article>'
        )


def _section_html(section: Section) -> str:
    body = ""
    if section.rows:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in section.columns)
        rows = "".join("<tr>" + "".join(_cell_html(cell) for cell in row) + "</tr>" for row in section.rows)
        body += f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    if section.lines:
        body += f"<pre>{html.escape(chr(10).join(section.lines))}</pre>"
    count = len(list(section.rows)) or len(list(section.lines))
    if not section.detail:
        return f"<section><h3>{html.escape(section.title)}</h3>{body or _empty_html(section)}</section>"
    if not body:
        return f'<p class="empty">{html.escape(section.title)}: {html.escape(section.empty)}</p>'
    return f"<details><summary>{html.escape(section.title)} <small>{count}</small></summary>{body}</details>"


def _empty_html(section: Section) -> str:
    return f'<p class="empty">{html.escape(section.empty)}</p>'


def _cell_html(cell: Any) -> str:
    flag = f' class="{BAD}"' if isinstance(cell, Bad) and str(cell) else ""
    return f"<td{flag}>{html.escape(str(cell))}</td>"


def _wrap(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _align(rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """Columns side by side; the last cell has all the room it wants."""
    cells = [[" ".join(str(cell).split()) for cell in row] for row in rows]
    cells = [[*(cell[:CELL] for cell in row[:-1]), row[-1][:300]] for row in cells]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _table(title: str, rows: list[Body] | None) -> Iterator[Section]:
    """A section of what a store answered with; none where it did not answer."""
    if rows is not None:
        columns = tuple(rows[0]) if rows else ()
        yield Section(title, columns, [tuple(row.get(column) for column in columns) for row in rows], detail=True)


def _number(text: Any) -> float:
    try:
        return float(quantity(text)) if text is not None else 0.0
    except EngineError:
        # metrics-server counts in nanocores, which specifications never do.
        digits = str(text).rstrip("nu")
        return float(digits) * (1e-9 if str(text).endswith("n") else 1e-6) if digits.isdigit() else 0.0


def _share(used: Any, room: Any) -> Any:
    """A use and its share of what there is; cores below 64, bytes above."""
    if used is None:
        return ""
    amount = used if isinstance(used, float) else _number(used)
    most = room if isinstance(room, float) else _number(room)
    shown = f"{amount:.2f}" if max(amount, most) < 1024 else f"{amount / 2**20:.0f} Mi"
    if not most:
        return shown
    share = 100 * amount / most
    return _flag(share >= 90, f"{shown} ({share:.0f} %)")


def _limit(pod: Body, kind: str) -> float:
    """What all containers of a pod may use; 0 where one has no limit."""
    limits = [((item.get("resources") or {}).get("limits") or {}).get(kind) for item in pod["spec"]["containers"]]
    return sum(_number(limit) for limit in limits) if all(limits) else 0.0


def _state(pod: Body) -> str:
    """What keeps a pod from being ready, in a word or two; else its phase."""
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for container in container_statuses(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return str(waiting["reason"])
    placed = {item["type"]: item for item in status.get("conditions") or []}.get("PodScheduled", {})
    phase = str(status.get("reason") or status.get("phase") or "Unknown")
    if placed.get("status") == "False":
        return f"{phase}, {placed.get('reason')}"
    return phase if report.is_ready(pod) else f"{phase}, not ready"


def _ways(rules: list[Body] | None, peers: str) -> str:
    """The rules of a policy in a few words."""
    if rules is None:
        return "-"
    words = []
    for rule in rules:
        ports = ", ".join(
            f"{port.get('port', 'any')}/{port.get('protocol', 'TCP')}" for port in rule.get("ports") or []
        )
        names = []
        for peer in rule.get(peers) or []:
            labels = (peer.get("podSelector") or {}).get("matchLabels") or {}
            block = (peer.get("ipBlock") or {}).get("cidr")
            names.append(block or ", ".join(labels.values()) or "all pods")
        words.append(f"{'; '.join(names) or 'anybody'} ({ports or 'all ports'})")
    return ", ".join(words) or "nothing"


def stamp(taken: datetime) -> str:
    """The time as it stands in the names of the files."""
    return f"{taken:%Y%m%dT%H%M%SZ}"


STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --line: #d1d9e0; --page: #fff; --card: #f6f8fa;
  --bad: #b3261e; --bad-page: #fdecea; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9198a1; --line: #3d444d; --page: #0d1117;
  --card: #151b23; --bad: #ff8a80; --bad-page: #3a1815; --good: #56d364; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 20px; }
h1 { font-size: 22px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 32px 0 8px; border-bottom: 1px solid var(--line); }
h3 { font-size: 16px; margin: 16px 0 6px; }
.headline { font-size: 18px; font-weight: 600; margin: 0 0 8px; }
.headline.bad { color: var(--bad); }
.headline.good { color: var(--good); }
dl { display: grid; grid-template-columns: max-content 1fr;
  gap: 0 12px; color: var(--soft); font-size: 13px; margin: 0; }
dd { margin: 0; }
article { border: 1px solid var(--line); border-left: 5px solid var(--bad); background: var(--card); border-radius: 6px;
  padding: 10px 14px; margin: 10px 0; }
article h3 { margin: 0; font-size: 17px; } article p, article ul { margin: 4px 0; }
.where { color: var(--soft); font-size: 13px; }
ul { padding-left: 20px; } .signs { font: 13px/1.45 ui-monospace, monospace; overflow-wrap: anywhere; }
.todo { list-style: "\\2192  "; font-weight: 600; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; color: var(--soft); font-weight: 600; white-space: nowrap; }
th, td { padding: 3px 10px 3px 0;
  border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: break-word; }
td { max-width: 520px; min-width: 40px; } td.bad { color: var(--bad); background: var(--bad-page); font-weight: 600; }
details { border-bottom: 1px solid var(--line); } summary { cursor: pointer; padding: 7px 0; font-weight: 600; }
small { color: var(--soft); font-weight: 400; } .empty { color: var(--soft); margin: 6px 0; }
pre { background: var(--card); padding: 10px; border-radius: 6px; overflow-x: auto; font-size: 12px;
  white-space: pre-wrap;
  overflow-wrap: anywhere; }
"""
