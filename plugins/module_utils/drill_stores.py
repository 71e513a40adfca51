"""What a drill has to know of each store: who leads, what its process is, when it is at full strength."""

from __future__ import annotations

import json
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.report import is_ready
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import run_in_pod
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import KINDS, POD

Body = dict[str, Any]
ENDPOINTS = Resource("v1", "Endpoints", "endpoints", True)
STATEFUL_SET = KINDS["StatefulSet"]
ASKED = 60  # seconds that a command in a member may take


class Store:
    """One store in one cluster; asking changes nothing."""

    name = title = ""
    ports: tuple[int, ...] = ()

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
        """SIGKILL for that process."""
        raise NotImplementedError

    def writer(self) -> Body:
        """Of the writer's pod: image, env, and keys of Secret citadelbuy-secrets."""
        raise NotImplementedError

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

    def container(self) -> Body:
        """The server's, as the StatefulSet has it."""
        [found] = [
            item for item in self.stateful_set()["spec"]["template"]["spec"]["containers"] if item["name"] == self.name
        ]
        return found


class Postgres(Store):
    """PostgreSQL under Patroni."""

    name, title, ports = "postgres", "PostgreSQL", (5432,)

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
            "SELECT json_build_object('streaming', count(*), 'recovering', pg_is_in_recovery(),"
            " 'synchronous', count(*) FILTER (WHERE sync_state = 'sync'))"
            " FROM pg_stat_replication WHERE state = 'streaming' AND application_name LIKE 'postgres-%'"
        )
        found = json.loads(self.run(leader, "psql", "-X", "-qAt", "-U", "postgres", "-d", "postgres", "-c", query))
        if found["recovering"]:
            return f"{leader} leads, and is not promoted yet"
        if found["streaming"] < self.members() - 1:
            return f"{found['streaming']} of {self.members() - 1} replicas stream from {leader}"
        asked = any(
            item["name"] == "POSTGRES_SYNCHRONOUS_MODE" and item["value"] == "true" for item in self.container()["env"]
        )
        return "" if found["synchronous"] or not asked else f"no replica of {leader} is synchronous"

    def hand_over(self, leader: str) -> None:
        """By Patroni, to the replica that the last commits waited for."""
        self.run(leader, "patronictl", "switchover", "--force", "--master", leader)

    def process(self, pod: str) -> str:
        """The postmaster's id, and its time."""
        return self.run(pod, "sh", "-c", "sed -n '1p;3p' $PGDATA/postmaster.pid").strip()

    def kill(self, pod: str) -> None:
        """The postmaster; its children end with it."""
        self.run(pod, "sh", "-c", "kill -9 $(head -n 1 $PGDATA/postmaster.pid)")

    def writer(self) -> Body:
        """With the application's own login."""
        given = {item["name"]: item.get("value") for item in self.container()["env"]}
        env = {
            "DRILL_HOST": self.name,
            "DRILL_DATABASE": given["POSTGRES_DB"],
            "DRILL_OWNER": given["POSTGRES_USER"],
            "DRILL_RATE": "400",
            "DRILL_CONNECTIONS": "4",
        }
        return {
            "image": self.container()["image"],
            "env": [{"name": name, "value": value} for name, value in env.items()],
            "secrets": ["DATABASE_PASSWORD", "DATABASE_USER"],
        }


STORES: dict[str, type[Store]] = {store.name: store for store in (Postgres,)}
