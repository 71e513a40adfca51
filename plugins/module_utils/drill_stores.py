"""What a drill has to know of each store: who leads, what its process is, when it is at full strength."""

from __future__ import annotations

import json
import re
import ssl
from base64 import b64decode, b64encode
from functools import cached_property
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    SECRET,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.report import is_ready
from ansible_collections.citadelbuy.platform.plugins.module_utils.store_tls import client_context
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import http_through_pod, run_in_pod
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import KINDS, POD

Body = dict[str, Any]
ENDPOINTS = Resource("v1", "Endpoints", "endpoints", True)
ENDPOINT_SLICE = Resource("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", True)
REDIS = "REDISCLI_AUTH=$(cat /etc/citadelbuy/secrets/REDIS_PASSWORD) redis-cli -s /run/redis/redis.sock"
FLOOD_STAGE = "cluster.routing.allocation.disk.watermark.flood_stage"
STATEFUL_SET = KINDS["StatefulSet"]
ASKED = 60  # seconds that a command in a member may take


class Store:
    """One store in one cluster; asking changes nothing."""

    name = title = ""
    ports: tuple[int, ...] = ()
    first = True  # whether the server is the first process of its container

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        """Nothing is sent."""
        self.cluster, self.namespace = cluster, namespace

    def leader(self) -> str:
        """Name of the pod that takes the writes, by what the cluster knows; empty where there is none.

        :raises EngineError: it cannot be asked.
        """
        raise NotImplementedError

    def missing(self) -> str:
        """What lacks of full strength, in words; empty where nothing does."""
        wanted = self.members()
        ready = [pod for pod in self.pods() if is_ready(pod) and not pod["metadata"].get("deletionTimestamp")]
        return "" if len(ready) == wanted else f"{len(ready)} of {wanted} pods are ready"

    def hand_over(self, leader: str) -> None:
        """Have another member lead, in an orderly way."""
        raise NotImplementedError

    def process(self, pod: str) -> str:
        """Identity of the server's process in a pod: another, if it was started anew."""
        raise NotImplementedError

    def kill(self, pod: str) -> None:
        """SIGKILL for that process, where it is not its container's first one: that one heeds it only from outside."""
        raise NotImplementedError

    def writer(self) -> Body:
        """Of the writer's pod: image, env, keys of Secret citadelbuy-secrets, and priority class."""
        raise NotImplementedError

    def remark(self, before: str, after: str, notes: list[str]) -> str:
        """What the notes of a round's writes tell, for its line.

        :param before: note of the last write before the gap.
        :param after: and of the first one after it.
        :param notes: of all of them.
        """
        return ""

    def volume(self, pod: str) -> tuple[str, str]:
        """Of a member's data: the claim, and the folder of the server's container where it is."""
        [template, *_] = self.stateful_set()["spec"]["volumeClaimTemplates"]
        name = template["metadata"]["name"]
        [path] = [item["mountPath"] for item in self.container()["volumeMounts"] if item["name"] == name]
        return f"{name}-{pod}", path

    def alarm(self, pod: str) -> tuple[str, dict[str, str]]:
        """Name and labels of the alert that its volume fills."""
        return "PersistentVolumeFilling", {"namespace": self.namespace, "persistentvolumeclaim": self.volume(pod)[0]}

    def most_in_use(self) -> float:
        """The share of a volume with which the store takes writes no more."""
        return 1.0

    def members(self) -> int:
        """How many there are to be.

        :raises EngineError: the store is not there.
        """
        return int(self.stateful_set()["spec"]["replicas"])

    def stateful_set(self) -> Body:
        """As it is in the cluster."""
        found = self.cluster.get(STATEFUL_SET, self.namespace, self.name)
        if found is None:
            raise EngineError(f"there is no StatefulSet {self.namespace}/{self.name}: run playbooks/site.yml first.")
        return found

    def pods(self) -> list[Body]:
        """Of the members, by name."""
        found = self.cluster.list(POD, self.namespace, labelSelector=f"app.kubernetes.io/name={self.name}")["items"]
        own = [pod for pod in found if pod["metadata"]["name"].rpartition("-")[0] == self.name]
        return sorted(own, key=lambda pod: pod["metadata"]["name"])

    def run(self, pod: str, *words: str) -> str:
        """In the server's container."""
        return run_in_pod(self.cluster, self.namespace, pod, self.name, [*words], ASKED)

    def container_of(self, pod: str) -> str:
        """Identity of the container that the server runs in."""
        status = (self.cluster.get(POD, self.namespace, pod) or {}).get("status") or {}
        found = [item for item in status.get("containerStatuses") or [] if item["name"] == self.name]
        return str(found[0].get("containerID", "")).rpartition("/")[2] if found else ""

    def _writer(self, image: str, *secrets: str, **more: str) -> Body:
        """With the members' priority: one that they pushed out would see the end of nothing."""
        env = {"DRILL_HOST": self.name, "DRILL_RATE": "280", "DRILL_CONNECTIONS": "4"} | more
        return {
            "image": image,
            "env": [{"name": name, "value": value} for name, value in env.items()],
            "secrets": [*secrets],
            "priority": self.stateful_set()["spec"]["template"]["spec"].get("priorityClassName", ""),
        }

    def container(self) -> Body:
        """The server's, as the StatefulSet has it."""
        [found] = [
            item for item in self.stateful_set()["spec"]["template"]["spec"]["containers"] if item["name"] == self.name
        ]
        return found


class Postgres(Store):
    """PostgreSQL under Patroni."""

    name, title, ports = "postgres", "PostgreSQL", (5432,)
    first = False

    def leader(self) -> str:
        """By the Endpoints, which Patroni's leader writes."""
        found = self.cluster.get(ENDPOINTS, self.namespace, self.name) or {}
        return str(((found.get("metadata") or {}).get("annotations") or {}).get("leader") or "")

    def missing(self) -> str:
        """All pods ready, all others stream from the leader, and one of them is waited for where that is wished."""
        if missing := super().missing():
            return missing
        leader = self.leader()
        if not leader:
            return "there is no leader"
        query = (
            "SELECT json_build_object('streaming', count(*), 'recovering', pg_is_in_recovery())"
            " FROM pg_stat_replication WHERE state = 'streaming' AND application_name LIKE 'postgres-%'"
        )
        found = json.loads(self.run(leader, "psql", "-X", "-qAt", "-U", "postgres", "-d", "postgres", "-c", query))
        if found["recovering"]:
            return f"{leader} leads, and is not promoted yet"
        if found["streaming"] < self.members() - 1:
            return f"{found['streaming']} of {self.members() - 1} replicas stream from {leader}"
        asked = self.members() > 1 and any(
            item["name"] == "POSTGRES_SYNCHRONOUS_MODE" and item["value"] == "true" for item in self.container()["env"]
        )
        return f"no replica of {leader} may lead after it" if asked and not self._synchronous() else ""

    def _synchronous(self) -> str:
        """The replica that commits wait for and that may be promoted, by the Endpoints that Patroni's leader writes."""
        found = self.cluster.get(ENDPOINTS, self.namespace, f"{self.name}-sync") or {}
        return str(((found.get("metadata") or {}).get("annotations") or {}).get("sync_standby") or "")

    def remark(self, before: str, after: str, notes: list[str]) -> str:
        """The timeline, which is another after each change of who leads."""
        return f", timeline {before} -> {after}"

    def hand_over(self, leader: str) -> None:
        """By Patroni, to the replica that the last commits waited for."""
        self.run(leader, "patronictl", "switchover", "--force", "--leader", leader)

    def process(self, pod: str) -> str:
        """The postmaster's id, and its time."""
        return self.run(pod, "sh", "-c", "sed -n '1p;3p' $PGDATA/postmaster.pid").strip()

    def kill(self, pod: str) -> None:
        """The postmaster; its children end with it."""
        self.run(pod, "sh", "-c", "kill -9 $(head -n 1 $PGDATA/postmaster.pid)")

    def writer(self) -> Body:
        """With the application's own login."""
        given = {item["name"]: item.get("value") for item in self.container()["env"]}
        login = {"DRILL_DATABASE": given["POSTGRES_DB"], "DRILL_OWNER": given["POSTGRES_USER"]}
        return self._writer(self.container()["image"], "DATABASE_PASSWORD", "DATABASE_USER", **login)


class Redis(Store):
    """Redis with Sentinel."""

    name, title, ports = "redis", "Redis", (6379,)

    def leader(self) -> str:
        """By the EndpointSlice, which the master's agent writes."""
        found = self.cluster.get(ENDPOINT_SLICE, self.namespace, self.name) or {}
        names = [(item.get("targetRef") or {}).get("name", "") for item in found.get("endpoints") or []]
        return str(names[0]) if names else ""

    def missing(self) -> str:
        """All pods ready, and all others have all of the leader's data."""
        if missing := super().missing():
            return missing
        leader = self.leader()
        if not leader:
            return "there is no leader"
        told = self._info(leader, "replication")
        if told.get("role") != "master":
            return f"{leader} is {told.get('role')}"
        online = sum("state=online" in value for name, value in told.items() if re.fullmatch(r"slave\d+", name))
        return "" if online == self.members() - 1 else f"{online} of {self.members() - 1} replicas follow {leader}"

    def hand_over(self, leader: str) -> None:
        """As its agent does it when the pod ends. A failover that a sentinel is asked for loses acknowledged writes."""
        self.cluster.request("DELETE", POD.path(self.namespace, leader))

    def process(self, pod: str) -> str:
        """Redis' own identity of a run."""
        return self._info(pod, "server")["run_id"]

    def writer(self) -> Body:
        """By the agent's image, which has Redis' client for Python."""
        containers = self.stateful_set()["spec"]["template"]["spec"]["containers"]
        [agent] = [item for item in containers if item["name"] == "agent"]
        return self._writer(agent["image"], "REDIS_PASSWORD")

    def _info(self, pod: str, section: str) -> dict[str, str]:
        text = self.run(pod, "sh", "-c", f"{REDIS} info {section}")
        return dict(line.strip().split(":", 1) for line in text.splitlines() if ":" in line)


class Elasticsearch(Store):
    """Elasticsearch; any node takes writes, and the elected master is the one that is missed most."""

    name, title, ports = "elasticsearch", "Elasticsearch", (9200,)

    @cached_property
    def tls(self) -> tuple[ssl.SSLContext, str]:
        """Whom to trust, and as whom a member is to show itself."""
        return client_context(self.cluster, self.namespace, self.name), f"elasticsearch.{self.namespace}.svc"

    def leader(self) -> str:
        """By the first member that answers; empty while they have none."""
        try:
            told = self._ask("/_cat/master?format=json&h=node&master_timeout=2s")
        except EngineError as error:
            if "master_not_discovered_exception" in str(error):
                return ""
            raise
        return str(told[0]["node"]) if told else ""

    def missing(self) -> str:
        """All pods ready, all of them in the cluster, and it is green."""
        if missing := super().missing():
            return missing
        health = self._ask("/_cluster/health?master_timeout=2s")
        if health["number_of_nodes"] < self.members():
            return f"{health['number_of_nodes']} of {self.members()} nodes are in the cluster"
        return "" if health["status"] == "green" else f"the cluster is {health['status']}"

    def remark(self, before: str, after: str, notes: list[str]) -> str:
        """Whether the cluster was red in between: a primary shard was nowhere."""
        return ", red" if "red" in notes else ", never red" if any(notes) else ", of unknown health"

    def hand_over(self, leader: str) -> None:
        """By leaving it out of the votes for as long as it takes."""
        self._ask(f"/_cluster/voting_config_exclusions?node_names={leader}&timeout=30s", "POST")
        self._ask("/_cluster/voting_config_exclusions?wait_for_removal=false", "DELETE")

    def alarm(self, pod: str) -> tuple[str, dict[str, str]]:
        """Its own, which comes before indices are read-only."""
        return "ElasticsearchDiskFilling", {"namespace": self.namespace, "pod": pod}

    def most_in_use(self) -> float:
        """The flood stage."""
        told = self._ask("/_cluster/settings?include_defaults=true&flat_settings=true")
        parts = [told.get(part) or {} for part in ("transient", "persistent", "defaults")]
        return float(next(part[FLOOD_STAGE] for part in parts if FLOOD_STAGE in part).rstrip("%")) / 100

    def process(self, pod: str) -> str:
        """Of its container: the server is the container's first process."""
        return self.container_of(pod)

    def writer(self) -> Body:
        """By PostgreSQL's image, which has Python."""
        image = Postgres(self.cluster, self.namespace).container()["image"]
        # Each write is on two disks when it is acknowledged: more at a time come to the rate.
        more = {"DRILL_OWNER": "elastic", "DRILL_CONNECTIONS": "12"}
        return self._writer(image, "ELASTICSEARCH_PASSWORD", "ELASTICSEARCH_USERNAME", **more)

    def _ask(self, path: str, method: str = "GET") -> Any:
        """One of the members that are ready; of those that do not answer, the next.

        :raises EngineError: none answers.
        """
        data = (self.cluster.get(SECRET, self.namespace, "citadelbuy-secrets") or {}).get("data") or {}
        user, password = (b64decode(data.get(f"ELASTICSEARCH_{key}", "")).decode() for key in ("USERNAME", "PASSWORD"))
        login = b64encode(f"{user or 'elastic'}:{password}".encode()).decode()
        said = "no pod is ready"
        for pod in self.pods():
            name = pod["metadata"]["name"]
            if not is_ready(pod):
                continue
            try:
                headers = {"Authorization": f"Basic {login}"}
                reply = http_through_pod(
                    self.cluster, self.namespace, name, 9200, method, path, None, 40, headers, self.tls
                )
            except EngineError as error:
                said = str(error)
                continue
            if reply.status == 200:
                return reply.json()
            said = f"{name} answers {reply.status} to {method} {path}: {reply.text[:200]}"
        raise EngineError(f"Elasticsearch does not answer: {said}")


STORES: dict[str, type[Store]] = {store.name: store for store in (Postgres, Redis, Elasticsearch)}
