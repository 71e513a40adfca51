"""What is to be known of a platform that misbehaves: read side by side, each part with a time limit, nothing changed.

A part that fails, hangs or may not be read stands in `problems` with its reason, and stops no other.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    SECRET,
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_logs import (
    ERRORS,
    LOGS,
    ask_logs,
    ready_pod,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_mask import Mask, mask_literals
from ansible_collections.citadelbuy.platform.plugins.module_utils.pod_failure import container_statuses
from ansible_collections.citadelbuy.platform.plugins.module_utils.report import is_ready
from ansible_collections.citadelbuy.platform.plugins.module_utils.store_tls import client_context
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import http_through_pod, run_in_pod
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import EVENT, KINDS, POD, REPLICA_SET

Body = dict[str, Any]
NAMESPACED = {
    "pods": POD,
    "deployments": KINDS["Deployment"],
    "statefulsets": KINDS["StatefulSet"],
    "daemonsets": KINDS["DaemonSet"],
    "replicasets": REPLICA_SET,
    "jobs": KINDS["Job"],
    "autoscalers": KINDS["HorizontalPodAutoscaler"],
    "claims": KINDS["PersistentVolumeClaim"],
    "services": Resource("v1", "Service", "services", True),
    "endpoints": Resource("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", True),
    "policies": Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", True),
    "quotas": Resource("v1", "ResourceQuota", "resourcequotas", True),
    "ingresses": KINDS["Ingress"],
    "events": EVENT,
    "secrets": SECRET,
    "pod_metrics": Resource("metrics.k8s.io/v1beta1", "PodMetrics", "pods", True),
}
CLUSTER_WIDE = {
    "nodes": Resource("v1", "Node", "nodes", False),
    "namespaces": Resource("v1", "Namespace", "namespaces", False),
    "volumes": Resource("v1", "PersistentVolume", "persistentvolumes", False),
    "node_metrics": Resource("metrics.k8s.io/v1beta1", "NodeMetrics", "nodes", False),
}
WORDS = {"autoscalers": "HorizontalPodAutoscalers", "claims": "PersistentVolumeClaims", "node_metrics": "top of nodes"}
WORDS |= {"pod_metrics": "top of pods", "volumes": "PersistentVolumes", "policies": "NetworkPolicies"}
DNS = {"k8s-app": "kube-dns"}
SIDE_BY_SIDE = 12  # requests at a time
LOG_LINES = 40  # of an unhealthy container
APPLICATION_LINES = 1000  # of an application, of which the errors are kept
UNHEALTHY_PODS = 20  # whose logs are read
APPLICATIONS = ("api", "web")  # their tiers
ERROR_LINE = re.compile(r"(?i)\b(error|fatal|panic|exception|unhandled|ECONN\w+|ETIMEDOUT|refused)\b")
CHANGING = ("time", "timestamp", "requestId", "request_id", "traceId", "spanId", "ms", "pid", "hostname")

SQL = {
    "limits": "SELECT current_setting('max_connections')::int AS max_connections,"
    " current_setting('superuser_reserved_connections')::int AS reserved,"
    " (SELECT sum(numbackends)::int FROM pg_stat_database) AS used, pg_is_in_recovery() AS in_recovery,"
    " version() AS version, pg_size_pretty(pg_database_size(current_database())) AS database_size",
    "activity": "SELECT coalesce(usename, backend_type) AS who, application_name AS application,"
    " coalesce(state, '-') AS state, coalesce(wait_event_type, '-') AS waits_for, count(*) AS sessions"
    " FROM pg_stat_activity GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC LIMIT 20",
    "longest": "SELECT pid, usename AS who, application_name AS application, state,"
    " round(extract(epoch FROM now() - coalesce(CASE WHEN state = 'active' THEN query_start END, xact_start))::numeric"
    ", 1) AS seconds, coalesce(wait_event_type || ': ' || wait_event, '-') AS waits_for, left(query, 500) AS query"
    " FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'"
    " ORDER BY 5 DESC NULLS LAST LIMIT 10",
    "blocked": "SELECT b.pid, b.usename AS who, round(extract(epoch FROM now() - b.query_start)::numeric, 1)"
    " AS seconds, left(b.query, 300) AS query, h.pid AS blocked_by, h.usename AS blocker, h.state AS blocker_state,"
    " round(extract(epoch FROM now() - h.xact_start)::numeric, 1) AS blocker_seconds,"
    " left(h.query, 300) AS blocker_query FROM pg_stat_activity b"
    " CROSS JOIN LATERAL unnest(pg_blocking_pids(b.pid)) AS who(pid) JOIN pg_stat_activity h ON h.pid = who.pid"
    " ORDER BY 3 DESC LIMIT 20",
    "statements": "SELECT calls, round(mean_exec_time::numeric, 2) AS mean_ms, round(max_exec_time::numeric, 2)"
    " AS max_ms, round(total_exec_time::numeric, 0) AS total_ms, rows, left(query, 500) AS query"
    " FROM pg_stat_statements WHERE query NOT LIKE 'SELECT json_build_object(%' ORDER BY mean_exec_time DESC LIMIT 10",
    "replicas": "SELECT application_name AS member, state, sync_state,"
    " pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) AS lag_bytes FROM pg_stat_replication",
}
PSQL = 'exec psql -X -A -t -q -U "$POSTGRES_USER" -d "$POSTGRES_DB" "$@" 2>&1'
REDIS = """
export REDISCLI_AUTH="$(cat /etc/citadelbuy/secrets/REDIS_PASSWORD)"
ask() { redis-cli -s /run/redis/redis.sock "$@"; }
for words in 'INFO memory' 'INFO clients' 'INFO stats' 'INFO replication' 'INFO persistence' 'MEMORY DOCTOR' \\
  'LATENCY LATEST'; do
  echo "## $words"; ask $words
done
echo '## SLOWLOG'; ask --json SLOWLOG GET 10 2>/dev/null || ask SLOWLOG GET 10
"""
SEARCH = {
    "health": "/_cluster/health",
    "nodes": "/_cat/nodes?format=json"
    "&h=name,heap.percent,ram.percent,cpu,load_1m,disk.used_percent,disk.avail,node.role",
    "pending": "/_cluster/pending_tasks",
    "indices": "/_cat/indices?format=json&h=index,health,status,pri,rep,docs.count,store.size&expand_wildcards=all",
}


@dataclass
class Snapshot:
    """Everything that was collected; texts in it are masked once `collect` has returned."""

    cluster: str
    server: str
    version: str
    namespaces: list[str]
    taken: datetime
    since: timedelta
    parts: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)  # by part
    masked_by: str = ""

    def of(self, part: str) -> list[Body]:
        """The objects of a kind; none where they could not be read."""
        return self.parts.get(part) or []

    def pods_of(self, namespace: str, selector: dict[str, str]) -> list[Body]:
        """The pods with these labels."""
        return [
            pod
            for pod in self.of("pods")
            if pod["metadata"]["namespace"] == namespace
            and all((pod["metadata"].get("labels") or {}).get(key) == value for key, value in selector.items())
        ]

    def recent(self, stamp: str | None) -> bool:
        """Whether a time of the cluster is within the time looked back."""
        when = parse_time(stamp)
        return when is not None and when >= self.taken - self.since


def parse_time(stamp: str | None) -> datetime | None:
    """A time of the API; None where there is none."""
    try:
        return datetime.fromisoformat(stamp.replace("Z", "+00:00")) if stamp else None
    except ValueError:
        return None


def event_time(event: Body) -> str:
    """When an event was last seen."""
    series = (event.get("series") or {}).get("lastObservedTime")
    metadata = event.get("metadata") or {}
    return str(
        series or event.get("lastTimestamp") or event.get("eventTime") or metadata.get("creationTimestamp") or ""
    )


def is_healthy(pod: Body, snapshot: Snapshot) -> bool:
    """Whether a pod is ready, and none of its containers has ended badly in the time looked back."""
    if not is_ready(pod):
        return False
    for container in container_statuses(pod):
        ended = (container.get("lastState") or {}).get("terminated") or {}
        if ended.get("exitCode") and snapshot.recent(ended.get("finishedAt")):
            return False
    return True


class Collector:
    """Reads one platform.

    :param limit: seconds that each part may take.
    """

    def __init__(self, cluster: Cluster, namespaces: list[str], since: timedelta, limit: float) -> None:
        self.cluster = cluster
        self.limit = limit
        self.snapshot = Snapshot(cluster.name, cluster.server, "", namespaces, datetime.now(UTC), since)
        self.secrets: list[Body] = []
        self._closed = False

    def collect(self) -> Snapshot:
        """Read everything.

        :raises EngineError: the cluster cannot be reached, or does not accept the login.
        """
        found = self.snapshot
        found.version = str(self.cluster.request("GET", "/version")[1].get("gitVersion"))
        found.taken = datetime.now(UTC) + timedelta(seconds=self.cluster.clock_offset)
        jobs: dict[str, Callable[[], Any]] = {
            part: lambda part=part, resource=resource: self._list(part, resource)
            for part, resource in NAMESPACED.items()
        }
        jobs |= {
            part: lambda resource=resource: [self._slim(item) for item in self.cluster.list(resource)["items"]]
            for part, resource in CLUSTER_WIDE.items()
        }
        jobs["dns"] = self._dns
        self._run(jobs)
        self.secrets = found.parts.get("secrets") or []
        self._run(self._later())
        self._mask()
        return found

    def _run(self, jobs: dict[str, Callable[[], Any]]) -> None:
        """Run the parts side by side; none is waited for longer than its limit after the one before it."""
        results: dict[str, Any] = {}
        errors: dict[str, str] = {}
        room = threading.Semaphore(SIDE_BY_SIDE)
        begun: dict[str, float] = {}
        done = threading.Condition()

        def work(part: str, job: Callable[[], Any]) -> None:
            with room:
                begun[part] = time.monotonic()
                try:
                    result = job()
                except Exception as error:  # a part that nobody thought of must not hide the others
                    known = isinstance(error, EngineError)
                    text = f"{error}" if known else f"{type(error).__name__}: {error}"
                    with done:
                        errors[part] = " ".join(text.split())
                else:
                    with done:
                        results[part] = result
                finally:
                    self.cluster.close()
                with done:
                    done.notify_all()

        threads = [threading.Thread(target=work, args=item, daemon=True) for item in jobs.items()]
        for thread in threads:
            thread.start()
        # As many rounds as there is no room for all at once.
        end = time.monotonic() + self.limit * (1 + len(jobs) // SIDE_BY_SIDE)

        def is_over() -> bool:
            open_parts = [part for part in jobs if part not in results and part not in errors]
            now = time.monotonic()
            return not open_parts or now > end or all(now - begun.get(part, now) > self.limit for part in open_parts)

        with done:
            while not is_over():
                done.wait(0.5)
            for part in jobs:
                if part in results:
                    self.snapshot.parts[part] = results[part]
                else:
                    hung = f"no answer within {self.limit:g} s"
                    self._tell(part, errors.get(part, hung))

    def _tell(self, part: str, text: str) -> None:
        if self._closed:  # a part that was given up, and ends after the rest was masked
            return
        problems = self.snapshot.problems
        problems[part] = f"{problems[part]}; {text}" if part in problems else text

    # What the API server has.

    def _list(self, part: str, resource: Resource) -> list[Body]:
        """The objects of both namespaces; what one of them refuses is told."""
        items: list[Body] = []
        for namespace in self.snapshot.namespaces:
            try:
                items += self.cluster.list(resource, namespace)["items"]
            except ApiError as error:
                if part == "pod_metrics" and error.status == 404:
                    raise EngineError("metrics.k8s.io is not served: metrics-server is missing") from None
                self._tell(part, str(error))
        return items if part == "secrets" else [self._slim(item) for item in items]

    @staticmethod
    def _slim(item: Body) -> Body:
        """An object without what nobody reads here; of its managers, who and when."""
        metadata = item["metadata"]
        metadata["managedFields"] = [
            {key: entry.get(key) for key in ("manager", "operation", "time", "subresource")}
            for entry in metadata.get("managedFields") or []
        ]
        annotations = metadata.get("annotations") or {}
        annotations.pop("kubectl.kubernetes.io/last-applied-configuration", None)
        return item

    def _dns(self) -> dict[str, Any]:
        """The cluster's DNS servers, where they may be read."""
        selector = ",".join(f"{key}={value}" for key, value in DNS.items())
        pods = self.cluster.list(POD, "kube-system", labelSelector=selector)["items"]
        return {"pods": [self._slim(pod) for pod in pods], "ready": sum(is_ready(pod) for pod in pods)}

    # What is asked of pods, once they are known.

    def _later(self) -> dict[str, Callable[[], Any]]:
        jobs: dict[str, Callable[[], Any]] = {}
        pods = self.snapshot.of("pods")
        unhealthy = [pod for pod in pods if not is_healthy(pod, self.snapshot)][:UNHEALTHY_PODS]
        for pod in unhealthy:
            for container in container_statuses(pod):
                ran = container.get("containerID") or container.get("restartCount")
                if container.get("restartCount"):
                    jobs[self._log_name(pod, container, "previous")] = self._reader(pod, container, previous="true")
                if ran and "waiting" not in (container.get("state") or {}):
                    jobs[self._log_name(pod, container)] = self._reader(pod, container)
        for pod in pods:
            labels = pod["metadata"].get("labels") or {}
            running = (pod.get("status") or {}).get("phase") == "Running"
            if not running:
                continue
            if labels.get("tier") in APPLICATIONS:
                name = pod["metadata"]["name"]
                jobs[f"errors {name}"] = lambda pod=pod: self._error_lines(pod)
                jobs[f"readiness {name}"] = lambda pod=pod: self._readiness(pod)
            if self._claims(pod):
                jobs[f"disk {pod['metadata']['name']}"] = lambda pod=pod: self._disk(pod)
        platform = self.snapshot.namespaces[0]
        named = {
            name: [
                pod
                for pod in self.snapshot.pods_of(namespace, {"app.kubernetes.io/name": name})
                if (pod.get("status") or {}).get("phase") == "Running"
            ]
            for name, namespace in {"postgres": platform, "redis": platform, "elasticsearch": platform}.items()
        }
        prometheus = ready_pod(pods, "prometheus")
        if named["postgres"]:
            jobs["postgres"] = lambda: self._postgres(named["postgres"])
            if any(self._port(pod, "patroni") for pod in named["postgres"]):
                jobs["patroni"] = lambda: self._patroni(named["postgres"])
        for pod in named["redis"]:
            jobs[f"redis {pod['metadata']['name']}"] = lambda pod=pod: self._redis(pod)
        if named["elasticsearch"]:
            jobs["elasticsearch"] = lambda: self._elasticsearch(named["elasticsearch"])
        for name, found in named.items():
            if not found:
                self._tell(name, f"no pod {name} runs, so nothing could be asked")
        if prometheus:
            jobs["alerts"] = lambda: self._alerts(prometheus)
        else:
            self._tell("alerts", "no pod prometheus is ready, so there are no alerts to show")
        logs = ready_pod(pods, LOGS)
        if logs:
            jobs["error lines"] = lambda: self._counted_errors(logs)
        return jobs

    @staticmethod
    def _log_name(pod: Body, container: Body, run: str = "") -> str:
        return " ".join(
            word for word in ("log", f"{pod['metadata']['name']}/{container['name']}", run and f"({run} run)") if word
        )

    @staticmethod
    def _port(pod: Body, name: str | int) -> int:
        """The number of a container's port; 0 where there is none."""
        if isinstance(name, int):
            return name
        ports = [port for container in pod["spec"]["containers"] for port in container.get("ports") or []]
        return next((port["containerPort"] for port in ports if port.get("name") == name), 0)

    def _log(self, pod: Body, container: str, **query: str) -> list[str]:
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/log"
        text = self.cluster.request("GET", path, query={"container": container} | query, text=True)[1]
        if text.startswith("unable to retrieve container logs"):  # said with status 200
            raise EngineError("the node has it no more")
        return [line for line in text.splitlines() if line.strip()]

    def _reader(self, pod: Body, container: Body, **query: str) -> Callable[[], list[str]]:
        return lambda: self._log(pod, container["name"], tailLines=str(LOG_LINES), **query)

    def _error_lines(self, pod: Body) -> list[Body]:
        """The errors in an application's log, the same ones counted, the last one last."""
        seconds = str(max(1, int(self.snapshot.since.total_seconds())))
        container = pod["spec"]["containers"][0]["name"]
        found: dict[str, Body] = {}
        for line in self._log(pod, container, sinceSeconds=seconds, tailLines=str(APPLICATION_LINES)):
            alike = error_of(line)
            if alike:
                earlier = found.pop(alike, {"count": 0})
                found[alike] = {"count": earlier["count"] + 1, "line": line}
        return list(found.values())[-20:]

    def _readiness(self, pod: Body) -> Body:
        """What the readiness probe of a pod's first container answers."""
        probe = (pod["spec"]["containers"][0].get("readinessProbe") or {}).get("httpGet")
        if not probe:
            return {}
        port = self._port(pod, probe["port"])
        metadata = pod["metadata"]
        reply = http_through_pod(
            self.cluster, metadata["namespace"], metadata["name"], port, "GET", probe.get("path", "/"), timeout=10
        )
        return {"status": reply.status, "path": probe.get("path", "/"), "body": reply.json() or reply.text[:500]}

    @staticmethod
    def _claims(pod: Body) -> dict[str, str]:
        """The names of a pod's claims by the volume's name."""
        return {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["spec"].get("volumes") or []
            if volume.get("persistentVolumeClaim")
        }

    def _disk(self, pod: Body) -> list[Body]:
        """How full a pod's claims are, as its first container that mounts them sees it."""
        metadata, rows = pod["metadata"], []
        for volume, claim in self._claims(pod).items():
            for container in pod["spec"]["containers"]:
                paths = [item["mountPath"] for item in container.get("volumeMounts") or [] if item["name"] == volume]
                if not paths:
                    continue
                command = ["df", "-P", "-k", paths[0]]
                text = run_in_pod(self.cluster, metadata["namespace"], metadata["name"], container["name"], command, 10)
                _device, size, used, free, *_ = text.splitlines()[-1].split()
                rows.append({"claim": claim, "kib": int(size), "used_kib": int(used), "free_kib": int(free)})
                break
        return rows

    def _postgres(self, pods: list[Body]) -> Body:
        """Tables by name, from the primary; one that cannot be had is told."""
        roles = ("master", "primary")
        primary = [pod for pod in pods if (pod["metadata"].get("labels") or {}).get("role") in roles]
        pod = (primary or [pod for pod in pods if is_ready(pod)] or pods)[0]
        words = ["-c", "SET statement_timeout = '8s'", "-c", "SET default_transaction_read_only = on"]
        for name, query in SQL.items():
            # Not json_agg, which writes a line a row.
            rows = "coalesce(array_to_json(array_agg(t)), '[]')"
            words += ["-c", f"SELECT json_build_object('{name}', {rows}) FROM ({query}) t"]
        words += ["-c", "SELECT json_build_object('end', true)"]
        command = ["sh", "-c", PSQL, "sh", *words]
        metadata = pod["metadata"]
        text = run_in_pod(self.cluster, metadata["namespace"], metadata["name"], "postgres", command, self.limit)
        tables: Body = {"pod": metadata["name"]}
        said = []
        for line in text.splitlines():
            try:
                tables |= json.loads(line)
            except ValueError:
                if re.search("ERROR|FATAL|error:", line):
                    said.append(line)
        missing = [name for name in SQL if name not in tables]
        if missing:
            self._tell("postgres", f"{', '.join(missing)}: {' '.join(' '.join(said).split())[:300]}")
        for name in ("longest", "blocked"):
            for row in tables.get(name) or []:
                for column in ("query", "blocker_query"):
                    if row.get(column):
                        row[column] = mask_literals(row[column])
        return tables

    def _patroni(self, pods: list[Body]) -> list[Body]:
        """The members as Patroni has them, by the first pod that can tell."""
        problem: EngineError | None = None
        for pod in pods:
            place = pod["metadata"]["namespace"], pod["metadata"]["name"]
            try:
                text = run_in_pod(self.cluster, *place, "postgres", ["docker-entrypoint.py", "cluster"], 8)
                return json.loads(text).get("members") or []
            except (EngineError, ValueError) as error:
                problem = error if isinstance(error, EngineError) else EngineError(f"no answer: {error}")
        raise problem or EngineError("there is no pod of PostgreSQL")

    def _redis(self, pod: Body) -> Body:
        """INFO as one dictionary, the doctors' words, and the slowest commands without their arguments."""
        metadata = pod["metadata"]
        command = ["sh", "-c", REDIS]
        text = run_in_pod(self.cluster, metadata["namespace"], metadata["name"], "redis", command, self.limit)
        return redis_answers(text)

    def _elasticsearch(self, pods: list[Body]) -> Body:
        user, password = self._search_login()
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        metadata = ([pod for pod in pods if is_ready(pod)] or pods)[0]["metadata"]
        namespace = metadata["namespace"]
        tls = client_context(self.cluster, namespace, "elasticsearch"), f"elasticsearch.{namespace}.svc"
        answers: Body = {"pod": metadata["name"]}

        def ask(path: str) -> Any:
            reply = http_through_pod(
                self.cluster,
                namespace,
                metadata["name"],
                9200,
                "GET",
                path,
                timeout=8,
                headers={"Authorization": f"Basic {token}"},
                tls=tls,
            )
            if reply.status != 200:
                raise EngineError(f"GET {path.partition('?')[0]} answered {reply.status}: {reply.text[:200]}")
            return reply.json()

        for name, path in SEARCH.items():
            try:
                answers[name] = ask(path)
            except EngineError as error:
                self._tell("elasticsearch", str(error))
                if name == "health":
                    raise
        if (answers["health"] or {}).get("status") != "green":
            try:
                answers["explain"] = ask("/_cluster/allocation/explain")
            except EngineError as error:
                self._tell("elasticsearch", str(error))
        return answers

    def _search_login(self) -> tuple[str, str]:
        for secret in self.secrets:
            data = secret.get("data") or {}
            if "ELASTICSEARCH_PASSWORD" in data:
                user = base64.b64decode(data.get("ELASTICSEARCH_USERNAME") or "").decode() or "elastic"
                return user, base64.b64decode(data["ELASTICSEARCH_PASSWORD"]).decode()
        raise EngineError("no Secret with ELASTICSEARCH_PASSWORD could be read, and Elasticsearch asks for it")

    def _alerts(self, pod: Body) -> list[Body]:
        metadata = pod["metadata"]
        reply = http_through_pod(
            self.cluster, metadata["namespace"], metadata["name"], 9090, "GET", "/api/v1/alerts", timeout=10
        )
        answer = reply.json()
        if reply.status != 200 or not isinstance(answer, dict):
            raise EngineError(f"GET /api/v1/alerts answered {reply.status}: {reply.text[:200]}")
        return answer["data"]["alerts"]

    def _counted_errors(self, pod: Body) -> list[Body]:
        """How many lines of errors each container has written in the time looked back, the most first."""
        seconds = max(1, int(self.snapshot.since.total_seconds()))
        query = f"_time:{seconds}s {ERRORS} | stats by (namespace, pod, container) count() lines | sort by (lines desc)"
        return ask_logs(self.cluster, pod, query, self.limit)

    # What may be shown.

    def _mask(self) -> None:
        """Take the secrets out of all that was collected; of Secrets, names and times remain."""
        self._closed = True
        found = self.snapshot
        names: set[str] = set(found.namespaces)
        for part in (*NAMESPACED, *CLUSTER_WIDE):
            names |= {item["metadata"]["name"] for item in found.of(part)}
        for pod in found.of("pods"):
            names |= {container["name"] for container in pod["spec"]["containers"]}
        refused = found.problems.get("secrets")
        found.masked_by = (
            f"Secrets could not all be read ({refused}): of those, values are masked by the names of variables only"
            if refused
            else f"the values of {len(self.secrets)} Secrets are masked"
        )
        found.parts["certificates"] = certificates(self.secrets)
        found.parts["secrets"] = [
            {key: value for key, value in self._slim(secret).items() if key in ("kind", "metadata", "type")}
            for secret in self.secrets
        ]
        mask = Mask(self.secrets, names)
        # _slim has changed the Secrets' metadata only, their data is what the mask learns from.
        found.parts = mask.deep(found.parts)
        found.problems = mask.deep(found.problems)
        found.masked_by = mask.text(found.masked_by)


def error_of(line: str) -> str:
    """What errors of the same kind have in common; empty for a line that tells of none."""
    try:
        said = json.loads(line)
    except ValueError:
        return re.sub(r"\d+", "#", line) if ERROR_LINE.search(line) else ""
    if not isinstance(said, dict):
        return ""
    level = str(said.get("level", "")).lower()
    status = said.get("status") or said.get("statusCode") or 0
    if level not in ("error", "fatal", "warn", "50", "60") and not (isinstance(status, int) and status >= 500):
        return ""
    return json.dumps({key: value for key, value in said.items() if key not in CHANGING}, sort_keys=True)


def redis_answers(text: str) -> Body:
    """The answers of redis-cli by command: numbers and words of INFO as `info`, the rest as texts."""
    answers: Body = {"info": {}}
    name = ""
    for line in text.splitlines():
        if line.startswith("## "):
            name = line[3:]
        elif name.startswith("INFO"):
            key, separator, value = line.strip().partition(":")
            if separator and not key.startswith("#"):
                answers["info"][key] = value
        elif name:
            answers[name] = answers.get(name, "") + line + "\n"
    answers["slow"] = slow_commands(answers.pop("SLOWLOG", ""))
    return answers


def slow_commands(text: str) -> list[Body]:
    """Redis' slow log: microseconds and the command with its first argument; later ones may be data."""
    try:
        entries = json.loads(text)
    except ValueError:
        return []
    return [
        {
            "time": datetime.fromtimestamp(entry[1], UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "us": entry[2],
            "command": " ".join(str(word)[:60] for word in entry[3][:2])
            + (f" (and {len(entry[3]) - 2} more arguments)" if len(entry[3]) > 2 else ""),
        }
        for entry in entries
    ]


def certificates(secrets: Iterable[Body]) -> list[Body]:
    """The TLS Secrets' certificates: place, names and the end of their validity."""
    from cryptography import x509

    found = []
    for secret in secrets:
        encoded = (secret.get("data") or {}).get("tls.crt")
        if not encoded:
            continue
        place = f"{secret['metadata']['namespace']}/{secret['metadata']['name']}"
        try:
            certificate = x509.load_pem_x509_certificate(base64.b64decode(encoded))
        except ValueError:
            found.append({"secret": place, "subject": "no certificate can be read", "until": ""})
            continue
        until = certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")
        found.append({"secret": place, "subject": certificate.subject.rfc4514_string(), "until": until})
    return found
