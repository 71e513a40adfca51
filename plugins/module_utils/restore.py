"""PostgreSQL's data exchanged for that of a backup, with the applications stopped around it.

What a volume needs is done by `postgres-restore` (images/postgres/files) in a Job's pod; here is the order, and what
was running before: a ConfigMap holds it while a restore is under way, so the next run completes one that was killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.cronjob_run import JOB, last_line, log_end
from ansible_collections.citadelbuy.platform.plugins.module_utils.fields import applied_fields, extract
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import MANAGER
from ansible_collections.citadelbuy.platform.plugins.module_utils.report import is_ready
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import run_in_pod
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import (
    KINDS,
    POD,
    Failed,
    Target,
    Waiter,
    find_workloads,
)

Body = dict[str, Any]
CONFIG_MAP = Resource("v1", "ConfigMap", "configmaps", True)
CLAIM = KINDS["PersistentVolumeClaim"]
ENDPOINTS = Resource("v1", "Endpoints", "endpoints", True)
STATEFUL_SET = KINDS["StatefulSet"]
STATE = "restore"  # the ConfigMap's name, and the Lease's
STORE = "postgres"  # its StatefulSet, its container and Patroni's scope
MERGE = "application/merge-patch+json"
READERS = {"app.kubernetes.io/name": "postgres-backup-exporter"}  # whom the network lets at the backups
KEPT = ("data", "tmp", "run", "shared-memory")  # volumes of a member that a restore needs, beside backup-*
PAUSE = 0.5  # seconds between looks
ASKED = 120  # seconds that a question to the repository may take
POD_LABELS = READERS | {"app.kubernetes.io/component": "restore", "tier": "backup"}
LABELS = {"app.kubernetes.io/name": "restore", "app.kubernetes.io/component": "backup"}
# What Patroni remembers of members that other data does not bear out, by the end of its Endpoints' names.
PATRONI = {
    "": ("leader", "optime", "slots"),
    "-sync": ("leader", "sync_standby"),
    "-failover": ("leader", "member", "scheduled_at"),
}


class Restore:
    """One restore in one cluster."""

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

    def plan(self, target: str, timeline: str) -> Body:
        """What a restore to a target would bring, as `postgres-restore plan` tells it.

        :raises EngineError: there is no such backup, or the repository cannot be read.
        """
        pods = self.cluster.list(POD, self.namespace, labelSelector=_selector(READERS))["items"]
        pods = [
            pod for pod in pods if (pod.get("status") or {}).get("phase") == "Running" and _made_by(pod, "ReplicaSet")
        ]
        if not pods:
            raise EngineError(
                f"no pod of Deployment {self.namespace}/postgres-backup-exporter runs, which reads the repository: is "
                "platform_backups true, and has site.yml run?"
            )
        command = ["postgres-restore", "plan", target, timeline]
        answer = run_in_pod(self.cluster, self.namespace, pods[0]["metadata"]["name"], "exporter", command, ASKED)
        return json.loads(answer)

    def under_way(self) -> Body | None:
        """The state of a restore that has not ended: target, undo, members, deployments, since."""
        found = self.cluster.get(CONFIG_MAP, self.namespace, STATE)
        return json.loads(found["data"]["state"]) if found else None

    def run(self, target: str, timeline: str, undo: bool) -> Body:
        """Restore, or undo the last restore; returns what the first member's Job told.

        :raises EngineError: what is not done yet, and that the same call completes it.
        """
        database = self._database()
        state = self.under_way()
        if state is None:
            state = self._begin(target, timeline, undo, database)
        elif (state["target"], state["timeline"], state["undo"]) != (target, timeline, undo) and not undo:
            aim = "its undoing" if state["undo"] else f"the restore to {state['target'] or 'the newest'}"
            raise EngineError(
                f"{aim} of {state['since']} is under way. To do: complete it by the same call, or undo it by "
                "-e restore_undo=true; then begin this one."
            )
        else:
            state |= {"undo": undo}
            self._write(state)
        for name in state["deployments"]:
            self._scale_deployment(name, 0)
        self.say(f"applications stopped: {', '.join(state['deployments']) or 'none was running'}")
        self._scale_database(0)
        self._wait_for_no_pods(database)
        work = f"{'undo' if undo else 'restore'} {state['since']}"
        told = self._work(database, 0, ["undo", work] if undo else ["replace", work, target, timeline])
        for number in range(1, self._volumes()):
            self._work(database, number, ["set-aside", work])
        self._tell_patroni(told["system"])
        # The others copy the first one: it must be there before they are.
        self._scale_database(1)
        self._wait_for_leader()
        if state["members"] > 1:
            self._scale_database(state["members"])
            Waiter(self.cluster, self.timeout).wait([Target("StatefulSet", self.namespace, STORE)])
        self.say(f"PostgreSQL serves, {state['members']} member{'s' if state['members'] > 1 else ''}")
        for name, replicas in state["deployments"].items():
            self._scale_deployment(name, replicas)
        Waiter(self.cluster, self.ready_timeout).wait(
            [Target("Deployment", self.namespace, name) for name in state["deployments"]]
        )
        self._delete(CONFIG_MAP, STATE)
        return told

    def beside(self, target: str, timeline: str) -> str:
        """Serve a backup in a pod of its own, for who wants to look, or to copy rows back; returns its name.

        :raises EngineError: it is there already, or does not come.
        """
        name = f"{STORE}-beside"
        words = ["postgres-restore", "beside", target, timeline]
        spec = _spec(self._database(), {"emptyDir": {}}, words)
        query = "psql -X -qAt -U postgres -d postgres -c 'SELECT pg_is_in_recovery()' | grep -qx f"
        ready = {"exec": {"command": ["sh", "-c", query]}, "periodSeconds": 1, "timeoutSeconds": 5}
        spec["containers"][0]["readinessProbe"] = ready
        metadata = {"name": name, "namespace": self.namespace, "labels": POD_LABELS}
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

    def discard(self) -> list[str]:
        """Delete what restores have set aside on every member's volume; a line a member."""
        if self.under_way():
            raise EngineError("a restore is under way: complete it, or undo it; what is set aside may be needed.")
        told = []
        for number in range(self._volumes()):
            name = f"{STORE}-{number}"
            said = run_in_pod(self.cluster, self.namespace, name, STORE, ["postgres-restore", "discard"], self.timeout)
            told.append(f"{name}: {said.strip()}")
        return told

    def _database(self) -> Body:
        found = self.cluster.get(STATEFUL_SET, self.namespace, STORE)
        if found is None:
            raise EngineError(f"there is no StatefulSet {self.namespace}/{STORE}: run playbooks/site.yml first.")
        return found

    def _begin(self, target: str, timeline: str, undo: bool, database: Body) -> Body:
        """Note what runs now, before it is stopped."""
        deployments = {
            item.name: item.body["spec"]["replicas"]
            for item in find_workloads(self.cluster, ["applications"], self.namespace)
            if item.kind == "Deployment" and item.body and item.body["spec"]["replicas"]
        }
        state = {
            "target": target,
            "timeline": timeline,
            "undo": undo,
            "members": database["spec"]["replicas"] or 1,
            "deployments": deployments,
            "since": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
        }
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": STATE, "namespace": self.namespace, "labels": LABELS},
            "data": {"state": json.dumps(state)},
        }
        self.cluster.request("POST", CONFIG_MAP.path(self.namespace), body)
        return state

    def _write(self, state: Body) -> None:
        body = {"data": {"state": json.dumps(state)}}
        self.cluster.request("PATCH", CONFIG_MAP.path(self.namespace, STATE), body, content=MERGE)

    def _scale_deployment(self, name: str, replicas: int) -> None:
        """By a patch that owns nothing for long: its number is its autoscaler's, which rests at zero."""
        path = KINDS["Deployment"].path(self.namespace, name)
        query = {"fieldManager": "citadelbuy-restore"}
        self.cluster.request("PATCH", path, {"spec": {"replicas": replicas}}, query, MERGE)

    def _scale_database(self, members: int) -> None:
        """As the engine's own field manager, so that the next run finds its field its own."""
        live = self._database()
        if live["spec"]["replicas"] == members:
            return
        body = extract(live, applied_fields(live, MANAGER))
        body |= {"apiVersion": STATEFUL_SET.api_version, "kind": STATEFUL_SET.kind}
        body["metadata"] = (body.get("metadata") or {}) | {"name": STORE, "namespace": self.namespace}
        body["spec"] = (body.get("spec") or {}) | {"replicas": members}
        query = {"fieldManager": MANAGER, "force": "true"}
        path = STATEFUL_SET.path(self.namespace, STORE)
        self.cluster.request("PATCH", path, body, query, "application/apply-patch+yaml")

    def _wait_for_no_pods(self, database: Body) -> None:
        selector = _selector(database["spec"]["selector"]["matchLabels"])
        deadline = time.monotonic() + self.ready_timeout
        while pods := self.cluster.list(POD, self.namespace, labelSelector=selector)["items"]:
            if time.monotonic() > deadline:
                names = ", ".join(pod["metadata"]["name"] for pod in pods)
                raise EngineError(
                    f"pods {names} do not end in {self.ready_timeout:.0f} s. To do: see why, then run this again."
                )
            time.sleep(PAUSE)

    def _volumes(self) -> int:
        """How many members have a volume; also those that a smaller sizing has left."""
        names = {body["metadata"]["name"] for body in self.cluster.list(CLAIM, self.namespace)["items"]}
        number = 0
        while f"data-{STORE}-{number}" in names:
            number += 1
        return max(number, 1)

    def _work(self, database: Body, number: int, words: list[str]) -> Body:
        """Run `postgres-restore` on a member's volume; returns the JSON that it told last.

        A Job of a run that was killed is ended; what it has done by then is not done again.
        """
        name = f"{STORE}-restore-{number}"
        self._delete(JOB, name)
        body = _job(database, self.namespace, name, f"data-{STORE}-{number}", ["postgres-restore", *words])
        self.cluster.request("POST", JOB.path(self.namespace), body)
        try:
            Waiter(self.cluster, self.timeout).wait([Target("Job", self.namespace, name)])
        except Failed as error:
            said = last_line(self.cluster, self.namespace, name) or str(error)
            raise EngineError(
                f"{said} (Job {self.namespace}/{name}). The platform is stopped. To do: mend that and run the same "
                "again, or go back by -e restore_undo=true -e restore_confirm=true."
            ) from None
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
        deadline = time.monotonic() + self.ready_timeout
        while self.cluster.get(resource, self.namespace, name):
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{resource.kind} {self.namespace}/{name} is not gone after {self.ready_timeout:.0f} s."
                )
            time.sleep(PAUSE)

    def _tell_patroni(self, system: str) -> None:
        """The cluster is that of the restored data, and nobody has led it yet.

        Else a member with other data than Patroni remembers would be none of its cluster, or too far behind it.
        """
        for end, names in PATRONI.items():
            self._annotate(STORE + end, dict.fromkeys(names))
        self._annotate(f"{STORE}-config", {"initialize": system})

    def _annotate(self, name: str, annotations: dict[str, str | None]) -> None:
        path = ENDPOINTS.path(self.namespace, name)
        try:
            self.cluster.request("PATCH", path, {"metadata": {"annotations": annotations}}, content=MERGE)
        except ApiError as error:
            if error.status != 404:
                raise

    def _wait_for_leader(self) -> None:
        """Until the first member is ready and leads."""
        Waiter(self.cluster, self.timeout).wait([Target("StatefulSet", self.namespace, STORE)])
        deadline = time.monotonic() + self.ready_timeout
        while True:
            found = self.cluster.get(ENDPOINTS, self.namespace, STORE) or {"metadata": {}}
            if (found["metadata"].get("annotations") or {}).get("leader") == f"{STORE}-0":
                return
            if time.monotonic() > deadline:
                raise EngineError(
                    f"pod {self.namespace}/{STORE}-0 has the restored data and does not lead after "
                    f"{self.ready_timeout:.0f} s: see its log, then run this again."
                )
            time.sleep(PAUSE)


def _job(database: Body, namespace: str, name: str, claim: str, words: list[str]) -> Body:
    """A Job with a member's container on its volume, which takes part in nothing."""
    spec = _spec(database, {"persistentVolumeClaim": {"claimName": claim}}, words)
    return {
        "apiVersion": JOB.api_version,
        "kind": JOB.kind,
        "metadata": {"name": name, "namespace": namespace, "labels": LABELS},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": POD_LABELS}, "spec": spec}},
    }


def _spec(database: Body, data: Body, words: list[str]) -> Body:
    """A pod's spec: a member's container with other arguments, and the volume that its data is on."""
    spec = database["spec"]["template"]["spec"]
    [server] = [item for item in spec["containers"] if item["name"] == STORE]
    container = {
        key: server[key] for key in ("name", "image", "imagePullPolicy", "env", "resources", "securityContext")
    }
    container["args"] = words

    def needed(volume: str) -> bool:
        return volume in KEPT or volume.startswith("backup-")

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


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _made_by(pod: Body, kind: str) -> bool:
    return any(owner.get("kind") == kind for owner in pod["metadata"].get("ownerReferences") or [])
