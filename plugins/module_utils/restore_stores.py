"""What a restore is for each store: who tells the plan, what is stopped, and who exchanges the data.

What a volume or a server needs is done in a Job's pod, by a program of the image: `postgres-restore`
(images/postgres/files) or `store_backup` (images/backup). It does nothing twice for the same work, so a run that was
killed is simply run again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.apply_own import apply_own
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    SECRET,
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.cronjob_run import (
    JOB,
    cronjob_of,
    last_line,
    log_end,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.report import is_ready
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import run_in_pod
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import KINDS, POD, Failed, Target, Waiter

Body = dict[str, Any]
CLAIM = KINDS["PersistentVolumeClaim"]
ENDPOINTS = Resource("v1", "Endpoints", "endpoints", True)
ENDPOINT_SLICE = Resource("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", True)
STATEFUL_SET = KINDS["StatefulSet"]
MERGE = "application/merge-patch+json"
PAUSE = 0.5  # seconds between looks
ASKED = 120  # seconds that a question to the repository may take
NAME = "app.kubernetes.io/name"
LABELS = {NAME: "restore", "app.kubernetes.io/component": "backup"}  # of a Job
OWN_SECRETS = ("app.kubernetes.io/component", "secrets")  # the label of those that the role secrets makes
BACKUP_SECRET = "citadelbuy-backups"  # of the backups themselves: the one that reads them is the right one
STOPPED = (  # what is told where a Job fails
    "The platform is stopped. To do: mend that and run the same again, or go back by -e restore_undo=true "
    "-e restore_confirm=true."
)
# What Patroni remembers of members that other data does not bear out, by the end of its Endpoints' names.
PATRONI = {
    "": ("leader", "optime", "slots"),
    "-sync": ("leader", "sync_standby"),
    "-failover": ("leader", "member", "scheduled_at"),
}


@dataclass
class Work:
    """What is to be done with each store."""

    identity: str  # the same for all tries of one restore, or of one undoing
    target: str = ""
    timeline: str = ""
    undo: bool = False
    of: str = ""  # the identity of the restore that has not ended and is undone; empty: the last one

    def words(self, *more: str) -> list[str]:
        """Of the programs: what is done, and to which end."""
        return ["undo", *more, self.identity, self.of] if self.undo else ["replace", *more, self.identity, self.target]


class Store:
    """One store in one cluster."""

    name = title = reader = worker = ""
    """Of its objects, for people, and of the Deployment whose pods the network lets at its repository. A Job's pod has
    the label of those, or the one that is named last."""

    def __init__(
        self, cluster: Cluster, namespace: str, timeout: float, ready_timeout: float, say: Callable[[str], None]
    ) -> None:
        """Nothing is sent.

        :param timeout: seconds for the work on a volume.
        :param ready_timeout: seconds until pods are ready, or gone.
        :param say: takes lines about what is done.
        """
        self.cluster, self.namespace, self.say = cluster, namespace, say
        self.timeout, self.ready_timeout = timeout, ready_timeout

    def require_possible(self, undo: bool) -> None:
        """Refuse what cannot be done, before anything is.

        :raises EngineError: why it cannot.
        """

    def plan(self, target: str, timeline: str) -> Body:
        """What a restore to a target would bring: target, label, made, lost_from, size.

        :raises EngineError: there is no such backup, or the repository cannot be read.
        """
        return json.loads(self._ask(*self._plan_words(target, timeline)))

    def members(self) -> int:
        """How many run, or are to."""
        return 0

    def exchange(self, work: Work, members: int) -> Body:
        """Restore, or undo the last restore, while no application runs; returns what was told of it.

        :raises EngineError: what is not done yet, and that the same call completes it.
        """
        raise NotImplementedError

    def discard(self) -> list[str]:
        """Delete what restores have set aside; a line a member."""
        raise EngineError(f"nothing of {self.title} is set aside by a restore.")

    def beside(self, target: str, timeline: str) -> str:
        """Serve a backup in a pod of its own; returns its name."""
        raise EngineError(f"{self.title} is not served beside: restore_beside is for PostgreSQL.")

    def _plan_words(self, target: str, timeline: str) -> list[str]:
        if timeline:
            raise EngineError(f"{self.title} has no timelines: restore_timeline is for PostgreSQL.")
        return ["python3", "-m", "store_backup", "plan", self.name, target]

    def _ask(self, *words: str) -> str:
        """What a program says where the repository can be read."""
        pods = self.cluster.list(POD, self.namespace, labelSelector=f"{NAME}={self.reader}")["items"]
        pods = [
            pod for pod in pods if (pod.get("status") or {}).get("phase") == "Running" and _made_by(pod, "ReplicaSet")
        ]
        if not pods:
            raise EngineError(
                f"no pod of Deployment {self.namespace}/{self.reader} runs, which reads the repository: is "
                "platform_backups true, and has site.yml run?"
            )
        return run_in_pod(self.cluster, self.namespace, pods[0]["metadata"]["name"], "exporter", [*words], ASKED)

    def _backup_pod(self, words: list[str]) -> Body:
        """The pod that makes backups, with other arguments."""
        cronjob = cronjob_of(self.cluster, self.namespace, f"{self.name}-backup")
        spec = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        [container] = spec["containers"]
        container["args"] = words
        return spec

    def _run(self, name: str, spec: Body, otherwise: str = STOPPED) -> Body:
        """Run a pod once; returns the JSON that it told last.

        A Job of a run that was killed is ended; what it has done by then is not done again.

        :param otherwise: what to do where it fails.
        """
        self._delete(JOB, name)
        labels = _pod_labels(self.worker or self.reader)
        body = {
            "apiVersion": JOB.api_version,
            "kind": JOB.kind,
            "metadata": {"name": name, "namespace": self.namespace, "labels": LABELS},
            "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": spec}},
        }
        self.cluster.request("POST", JOB.path(self.namespace), body)
        try:
            Waiter(self.cluster, self.timeout).wait([Target("Job", self.namespace, name)])
        except Failed as error:
            said = last_line(self.cluster, self.namespace, name) or str(error)
            raise EngineError(f"{said} (Job {self.namespace}/{name}). {otherwise}") from None
        line = last_line(self.cluster, self.namespace, name)
        self._delete(JOB, name)
        try:
            return json.loads(line)
        except ValueError:
            raise EngineError(f"Job {self.namespace}/{name} ended well, and told {line!r}: run this again.") from None

    def _delete(self, resource: Resource, name: str) -> None:
        """Delete an object, its pods first, and wait until it is gone."""
        path = resource.path(self.namespace, name)
        try:
            self.cluster.request("DELETE", path, {"propagationPolicy": "Foreground"})
        except ApiError as error:
            if error.status != 404:
                raise
        self._wait(
            lambda: not self.cluster.get(resource, self.namespace, name),
            lambda: f"{resource.kind} {self.namespace}/{name} is not gone",
        )

    def _wait(self, condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
        """Look until a condition holds."""
        deadline = time.monotonic() + self.ready_timeout
        while not condition():
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{otherwise()} after {self.ready_timeout:.0f} s. To do: see why, then run this again."
                )
            time.sleep(PAUSE)


class Members(Store):
    """A store whose members have a volume each: a StatefulSet of its name."""

    def members(self) -> int:
        """How many its sizing has."""
        return self._set()["spec"]["replicas"] or 1

    def exchange(self, work: Work, members: int) -> Body:
        """The members stop; the first one's volume gets the data; the others', none; they start."""
        found = self._set()
        self._scale(0)

        def pods() -> list[str]:
            return pods_of(self.cluster, found)

        self._wait(lambda: not pods(), lambda: f"pods {', '.join(pods())} have not ended")
        told = self._work(found, 0, self._words(work))
        for number in range(1, self._volumes()):
            self._work(found, number, self._aside_words(work))
        self._start(members, told)
        self.say(f"{self.title} serves, {members} member{'s' if members > 1 else ''}")
        return told

    def _words(self, work: Work) -> list[str]:
        raise NotImplementedError

    def _aside_words(self, work: Work) -> list[str]:
        raise NotImplementedError

    def _spec(self, found: Body, data: Body, words: list[str]) -> Body:
        raise NotImplementedError

    def _start(self, members: int, told: Body) -> None:
        self._scale(members)
        Waiter(self.cluster, self.timeout).wait([Target("StatefulSet", self.namespace, self.name)])

    def _work(self, found: Body, number: int, words: list[str]) -> Body:
        volume = {"persistentVolumeClaim": {"claimName": f"data-{self.name}-{number}"}}
        return self._run(f"{self.name}-restore-{number}", self._spec(found, volume, words))

    def _set(self) -> Body:
        found = self.cluster.get(STATEFUL_SET, self.namespace, self.name)
        if found is None:
            raise EngineError(f"there is no StatefulSet {self.namespace}/{self.name}: run playbooks/site.yml first.")
        return found

    def _scale(self, members: int) -> None:
        def change(body: Body, _live: Body) -> None:
            body["spec"] = (body.get("spec") or {}) | {"replicas": members}

        if self._set()["spec"]["replicas"] != members:
            apply_own(self.cluster, STATEFUL_SET, self.namespace, self.name, change)

    def _volumes(self) -> int:
        """How many members have a volume; also those that a smaller sizing has left."""
        names = {body["metadata"]["name"] for body in self.cluster.list(CLAIM, self.namespace)["items"]}
        number = 0
        while f"data-{self.name}-{number}" in names:
            number += 1
        return max(number, 1)

    def _discard(self, command: list[str]) -> list[str]:
        told = []
        for number in range(self._volumes()):
            pod = f"{self.name}-{number}"
            said = run_in_pod(self.cluster, self.namespace, pod, self.name, command, self.timeout)
            told.append(f"{pod}: {said.strip()}")
        return told


class Postgres(Members):
    """PostgreSQL under Patroni: the first member is to lead, and its data is Patroni's cluster."""

    name, title, reader = "postgres", "PostgreSQL", "postgres-backup-exporter"
    kept = ("data", "tmp", "run", "shared-memory")
    """Volumes of a member that a restore needs, beside backup-*."""

    def require_possible(self, undo: bool) -> None:
        """What an upgrade has set aside is of another major than the image."""
        pod = self.cluster.get(POD, self.namespace, f"{self.name}-0") if undo else None
        if not pod or not is_ready(pod):
            return  # the Job refuses it, too
        look = (
            "kept=$(ls -d $PGDATA.before-*[0-9]Z 2>/dev/null | tail -n 1)/PG_VERSION;"
            " [ ! -e $kept ] || cmp -s $PGDATA/PG_VERSION $kept || cat $kept"
        )
        found = run_in_pod(self.cluster, self.namespace, f"{self.name}-0", self.name, ["sh", "-c", look], ASKED).strip()
        if found:
            raise EngineError(
                f"what is set aside is PostgreSQL {found}'s, before an upgrade: -e upgrade_postgres_back=true of"
                " playbooks/upgrade_postgres.yml goes back to it."
            )

    def discard(self) -> list[str]:
        """By the program of the members."""
        return self._discard(["postgres-restore", "discard"])

    def beside(self, target: str, timeline: str) -> str:
        """Serve a backup in a pod of its own, for who wants to look, or to copy rows back; returns its name.

        :raises EngineError: it is there already, or does not come.
        """
        name = f"{self.name}-beside"
        spec = self._spec(self._set(), {"emptyDir": {}}, ["postgres-restore", "beside", target, timeline])
        query = "psql -X -qAt -U postgres -d postgres -c 'SELECT pg_is_in_recovery()' | grep -qx f"
        ready = {"exec": {"command": ["sh", "-c", query]}, "periodSeconds": 1, "timeoutSeconds": 5}
        spec["containers"][0]["readinessProbe"] = ready
        metadata = {"name": name, "namespace": self.namespace, "labels": _pod_labels(self.reader)}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        try:
            self.cluster.request("POST", POD.path(self.namespace), body)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            raise EngineError(
                f"pod {self.namespace}/{name} is there already. To do: `kubectl -n {self.namespace} delete pod {name}`,"
                " then run this again."
            ) from None
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            pod = self.cluster.get(POD, self.namespace, name) or {}
            if is_ready(pod):
                return name
            if (pod.get("status") or {}).get("phase") == "Failed":
                said = log_end(self.cluster, pod)
                self._delete(POD, name)
                raise EngineError(said)
            time.sleep(PAUSE)
        raise EngineError(f"pod {self.namespace}/{name} does not serve after {self.timeout:.0f} s: see its log.")

    def _plan_words(self, target: str, timeline: str) -> list[str]:
        return ["postgres-restore", "plan", target, timeline]

    def _words(self, work: Work) -> list[str]:
        return ["postgres-restore", *work.words(), *([] if work.undo else [work.timeline])]

    def _aside_words(self, work: Work) -> list[str]:
        return ["postgres-restore", "set-aside", work.identity]

    def _spec(self, found: Body, data: Body, words: list[str]) -> Body:
        """A member's container with other arguments, and the volume that its data is on; it takes part in nothing."""
        spec = found["spec"]["template"]["spec"]
        [server] = [item for item in spec["containers"] if item["name"] == self.name]
        container = {
            key: server[key] for key in ("name", "image", "imagePullPolicy", "env", "resources", "securityContext")
        }
        container["args"] = words

        def needed(volume: str) -> bool:
            return volume in self.kept or volume.startswith("backup-")

        container["volumeMounts"] = [item for item in server["volumeMounts"] if needed(item["name"])]
        volumes = [item for item in spec["volumes"] if needed(item["name"])]
        kept = ("securityContext", "imagePullSecrets", "serviceAccountName", "tolerations", "nodeSelector")
        return {key: spec[key] for key in kept if key in spec} | {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [container],
            "volumes": [*volumes, {"name": "data"} | data],
        }

    def _start(self, members: int, told: Body) -> None:
        """The first one alone: the others copy it."""
        self._tell_patroni(told["system"])
        super()._start(1, told)
        self._wait(
            self._first_leads, lambda: f"pod {self.name}-0 has the restored data and does not lead: see its log;"
        )
        if members > 1:
            super()._start(members, told)

    def _first_leads(self) -> bool:
        found = self.cluster.get(ENDPOINTS, self.namespace, self.name) or {"metadata": {}}
        return (found["metadata"].get("annotations") or {}).get("leader") == f"{self.name}-0"

    def _tell_patroni(self, system: str) -> None:
        """The cluster is that of the restored data, and nobody has led it yet.

        Else a member with other data than Patroni remembers would be none of its cluster, or too far behind it.
        """
        for end, names in PATRONI.items():
            self._annotate(self.name + end, dict.fromkeys(names))
        self._annotate(f"{self.name}-config", {"initialize": system})

    def _annotate(self, name: str, annotations: dict[str, str | None]) -> None:
        path = ENDPOINTS.path(self.namespace, name)
        try:
            self.cluster.request("PATCH", path, {"metadata": {"annotations": annotations}}, content=MERGE)
        except ApiError as error:
            if error.status != 404:
                raise


class Redis(Members):
    """Redis: a copy of all its keys."""

    name, title, reader = "redis", "Redis", "backups-exporter"

    def _start(self, members: int, told: Body) -> None:
        """The first one is to lead, as on a new set: so the agents take a slice that names nobody."""
        path = ENDPOINT_SLICE.path(self.namespace, self.name)
        try:
            self.cluster.request("PATCH", path, {"endpoints": []}, content=MERGE)
        except ApiError as error:
            if error.status != 404:  # a single member has none
                raise
        super()._start(members, told)

    def discard(self) -> list[str]:
        """In the members' own containers, whose image has nothing of ours."""
        command = (
            "cd /data; set -- before-*; [ -e $1 ] || { echo nothing was set aside; exit; }; rm -rf $@; echo deleted: $@"
        )
        return self._discard(["sh", "-ec", command])

    def _words(self, work: Work) -> list[str]:
        return work.words(self.name)

    def _aside_words(self, work: Work) -> list[str]:
        return ["set-aside", self.name, work.identity]

    def _spec(self, found: Body, data: Body, words: list[str]) -> Body:
        """The pod that makes backups, with the volume of a member."""
        spec = self._backup_pod(words)
        [container] = spec["containers"]
        container["env"] = [*container["env"], {"name": "BACKUP_DATA", "value": "/data"}]
        container["volumeMounts"] = [*container["volumeMounts"], {"name": "data", "mountPath": "/data"}]
        return spec | {"volumes": [*spec["volumes"], {"name": "data"} | data]}


class Elasticsearch(Store):
    """Elasticsearch: its indices are exchanged while it runs."""

    name, title, reader, worker = "elasticsearch", "Elasticsearch", "backups-exporter", "elasticsearch-backup"

    def exchange(self, work: Work, members: int) -> Body:
        """By a Job, which asks Elasticsearch."""
        told = self._run(f"{self.name}-restore", self._backup_pod(work.words(self.name)))
        self.say(f"{self.title} serves")
        return told

    def discard(self) -> list[str]:
        """By another."""
        pod = self._backup_pod(["discard", self.name])
        told = self._run(f"{self.name}-discard", pod, "To do: mend that and run the same again.")
        return [f"{self.name}: {told['said']}"]


class Kubernetes(Store):
    """The Secrets that the role secrets has made: for a new cluster, before its stores know any others."""

    name, title, reader = "kubernetes", "Kubernetes", "backups-exporter"

    def require_possible(self, undo: bool) -> None:
        """Only where no store has taken passwords yet."""
        if undo:
            raise EngineError("what a restore of Kubernetes has written is not undone.")
        sets = {body["metadata"]["name"] for body in self.cluster.list(STATEFUL_SET, self.namespace)["items"]}
        if used := sorted(sets & STORES.keys()):
            raise EngineError(
                f"StatefulSets {', '.join(used)} of {self.namespace} are there, and know the passwords of now: the "
                "Secrets of a backup are for a new cluster, before its stores. To look at them: `kubectl -n "
                f"{self.namespace} exec deployment/{self.reader} -- python3 -m store_backup secrets LABEL`."
            )

    def exchange(self, work: Work, members: int) -> Body:
        """Give the Secrets of the backup to the cluster."""
        names = []
        for secret in json.loads(self._ask("python3", "-m", "store_backup", "secrets", work.target)):
            metadata = secret["metadata"]
            label, value = OWN_SECRETS
            if (metadata.get("labels") or {}).get(label) == value and metadata["name"] != BACKUP_SECRET:
                self._give(secret)
                names.append(f"{metadata['namespace']}/{metadata['name']}")
        return {"secrets": names}

    def _give(self, secret: Body) -> None:
        """Make a Secret, or give it these values."""
        metadata = secret["metadata"]

        def change(body: Body, _live: Body) -> None:
            body["data"] = (body.get("data") or {}) | secret["data"]

        if self.cluster.get(SECRET, metadata["namespace"], metadata["name"]):
            apply_own(self.cluster, SECRET, metadata["namespace"], metadata["name"], change)
        else:
            body = {"apiVersion": "v1", "kind": "Secret"} | secret
            self.cluster.request("POST", SECRET.path(metadata["namespace"]), body)


STORES: dict[str, type[Store]] = {store.name: store for store in (Postgres, Redis, Elasticsearch, Kubernetes)}


def pods_of(cluster: Cluster, workload: Body) -> list[str]:
    """Names of the pods that a Deployment or a StatefulSet selects, those that are ending too."""
    selector = ",".join(f"{key}={value}" for key, value in workload["spec"]["selector"]["matchLabels"].items())
    pods = cluster.list(POD, workload["metadata"]["namespace"], labelSelector=selector)["items"]
    return [pod["metadata"]["name"] for pod in pods]


def _pod_labels(name: str) -> dict[str, str]:
    """By which the network lets a pod at the place of backups."""
    return {NAME: name, "app.kubernetes.io/component": "restore", "tier": "backup"}


def _made_by(pod: Body, kind: str) -> bool:
    return any(owner.get("kind") == kind for owner in pod["metadata"].get("ownerReferences") or [])
