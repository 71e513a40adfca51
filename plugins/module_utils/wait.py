"""Waits by watch, all objects at once: ends with the last one ready, or with the reason why one never will be."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, report
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    BROKEN,
    ApiError,
    Cluster,
    EngineError,
    Resource,
)

Body = dict[str, Any]
POD = Resource("v1", "Pod", "pods", True)
EVENT = Resource("v1", "Event", "events", True)
REPLICA_SET = Resource("apps/v1", "ReplicaSet", "replicasets", True)
KINDS = {
    "Deployment": Resource("apps/v1", "Deployment", "deployments", True),
    "StatefulSet": Resource("apps/v1", "StatefulSet", "statefulsets", True),
    "DaemonSet": Resource("apps/v1", "DaemonSet", "daemonsets", True),
    "Job": Resource("batch/v1", "Job", "jobs", True),
    "PersistentVolumeClaim": Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims", True),
    "CustomResourceDefinition": Resource(
        "apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", False
    ),
    "APIService": Resource("apiregistration.k8s.io/v1", "APIService", "apiservices", False),
}
STORAGE_CLASS = Resource("storage.k8s.io/v1", "StorageClass", "storageclasses", False)
GRACE = 10.0  # seconds a pod may be unschedulable, or a controller fail to create pods, before it counts
CRASHES = 2  # restarts after which a crash loop counts
IMAGE_ERRORS = {"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
# An unschedulable pod with one of these may still find its place.
PASSING = (
    "PersistentVolumeClaim",
    "persistentvolumeclaim",
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.cloudprovider.kubernetes.io/uninitialized",
    "no nodes available",
)
# A kubelet that has just started has not read these yet.
PASSING_CONFIG = ("have not yet been read", "failed to sync")


class Failed(EngineError):
    """An object will not become ready, or did not in time; the message is a report of several lines."""


@dataclass
class Target:
    """An object that is waited for."""

    kind: str
    namespace: str | None
    name: str
    body: Body | None = None
    seconds: float | None = None  # how long it took; None while not ready

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def targets_of(bodies: Iterable[Body]) -> list[Target]:
    """The objects among these that have something to wait for."""
    return [
        Target(body["kind"], body["metadata"].get("namespace"), body["metadata"]["name"], body)
        for body in bodies
        if body["kind"] in KINDS
    ]


def find_workloads(cluster: Cluster, set_ids: Iterable[str], namespace: str) -> list[Target]:
    """The workloads that sets have applied, by their ApplySet label.

    :param namespace: where to look when the user may not list all namespaces.
    """
    selector = f"{applyset.PART_OF} in ({','.join(sorted(set_ids))})"
    found: list[Target] = []
    for kind in applyset.WORKLOADS:
        try:
            found += targets_of(cluster.list(KINDS[kind], labelSelector=selector)["items"])
        except ApiError as error:
            if error.status != 403:
                raise
            found += targets_of(cluster.list(KINDS[kind], namespace, labelSelector=selector)["items"])
    return found


def progress(body: Body, binds_later: Callable[[Body], bool] = lambda _claim: False) -> tuple[bool, str]:
    """Whether a live object is ready, and its state in a few words.

    :param binds_later: tells whether a pending PersistentVolumeClaim waits for its first consumer.
    """
    kind, spec, status = body["kind"], body.get("spec") or {}, body.get("status") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    if kind in ("Deployment", "StatefulSet", "DaemonSet") and status.get("observedGeneration", 0) < body[
        "metadata"
    ].get("generation", 1):
        return False, "its controller has not seen the change yet"
    if kind == "Deployment":
        wanted, total = spec.get("replicas", 1), status.get("replicas", 0)
        updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
        text = f"{updated} of {wanted} updated, {available} available" + (
            f", {total - updated} old" if total > updated else ""
        )
        return updated >= wanted and total <= updated and available >= updated, text
    if kind == "StatefulSet":
        wanted, ready = spec.get("replicas", 1), status.get("readyReplicas", 0)
        strategy = spec.get("updateStrategy") or {}
        if strategy.get("type") == "OnDelete":
            return ready >= wanted and status.get("replicas", 0) == wanted, f"{ready} of {wanted} ready"
        new = (
            status.get("updatedReplicas", 0) if status.get("updateRevision") != status.get("currentRevision") else ready
        )
        new_wanted = wanted - ((strategy.get("rollingUpdate") or {}).get("partition") or 0)
        available = status.get("availableReplicas", ready) if spec.get("minReadySeconds") else ready
        done = ready >= wanted and new >= new_wanted and available >= wanted and status.get("replicas", 0) == wanted
        return done, f"{new} of {wanted} updated, {ready} ready"
    if kind == "DaemonSet":
        wanted, updated = status.get("desiredNumberScheduled", 0), status.get("updatedNumberScheduled", 0)
        available = status.get("numberAvailable", 0)
        on_delete = (spec.get("updateStrategy") or {}).get("type") == "OnDelete"
        return (
            on_delete or updated >= wanted
        ) and available >= wanted, f"{updated} of {wanted} updated, {available} available"
    if kind == "Job":
        done = conditions.get("Complete", {}).get("status") == "True" or bool(spec.get("suspend"))
        return (
            done,
            f"{status.get('succeeded', 0)} of {spec.get('completions', 1)} completed, {status.get('failed', 0)} failed",
        )
    if kind == "PersistentVolumeClaim":
        phase = status.get("phase") or "Pending"
        return phase == "Bound" or (phase == "Pending" and binds_later(body)), phase
    wanted_condition = "Established" if kind == "CustomResourceDefinition" else "Available"
    condition = conditions.get(wanted_condition, {})
    return condition.get("status") == "True", condition.get("message") or f"not {wanted_condition} yet"


@dataclass
class _Store:
    """The watched objects by (kind, namespace, name), and what is known only from their history."""

    objects: dict[tuple[str, str | None, str], Body] = field(default_factory=dict)
    since: dict[tuple[str, ...], float] = field(default_factory=dict)  # when a doubtful state was first seen

    def of(self, kind: str, namespace: str | None) -> list[Body]:
        return [body for (k, n, _), body in self.objects.items() if k == kind and n == namespace]

    def lasting(self, *key: str) -> float:
        """Seconds since this state was first asked about."""
        return time.monotonic() - self.since.setdefault(key, time.monotonic())


class Waiter:
    """Waits for targets in one cluster."""

    def __init__(self, cluster: Cluster, timeout: float) -> None:
        self.cluster = cluster
        self.timeout = timeout
        self._classes: dict[str, bool] = {}
        self._store = _Store()
        self._started = time.monotonic()
        self._server_started = time.time()

    def wait(self, targets: list[Target]) -> None:
        """Return when every target is ready; sets their `seconds`.

        :raises Failed: with a report, as soon as one target cannot become ready, or at the time-out.
        """
        self._started = time.monotonic()
        self._server_started = time.time() + self.cluster.clock_offset
        pending = [target for target in targets if not self._is_ready(target)]
        if not pending:
            return
        feed: queue.Queue[tuple[str, Any]] = queue.Queue()
        stop = threading.Event()
        for resource, namespace in self._feeds(pending):
            threading.Thread(target=self._follow, args=(resource, namespace, feed, stop), daemon=True).start()
        try:
            self._until_ready(pending, feed)
        finally:
            stop.set()

    def _feeds(self, pending: list[Target]) -> set[tuple[Resource, str | None]]:
        """What to watch: each kind and namespace that is waited for, and the pods and warnings that explain it."""
        feeds = {(KINDS[target.kind], target.namespace) for target in pending}
        for target in pending:
            if target.kind in applyset.WORKLOADS:
                feeds |= {(POD, target.namespace), (EVENT, target.namespace)}
            if target.kind == "Deployment":
                feeds.add((REPLICA_SET, target.namespace))
            if target.kind == "PersistentVolumeClaim":
                feeds.add((EVENT, target.namespace))
        return feeds

    def _follow(
        self, resource: Resource, namespace: str | None, feed: queue.Queue[tuple[str, Any]], stop: threading.Event
    ) -> None:
        """Feed a collection's state and changes into the queue; survives a lost watch and a restarted server."""
        while not stop.is_set():
            try:
                answer = self.cluster.list(resource, namespace)
                feed.put(("LIST", (resource.kind, namespace, answer["items"])))
                for event, body in self.cluster.watch(resource, namespace, answer["metadata"]["resourceVersion"], stop):
                    if event != "BOOKMARK":
                        feed.put((event, body))
            except ApiError as error:
                if error.status in (401, 403):
                    if resource.kind in KINDS:  # pods and events only explain a failure
                        feed.put(("DENIED", f"waiting needs to list and watch {resource.plural}: {error}"))
                    return
                stop.wait(1)
            except (EngineError, *BROKEN):
                stop.wait(0.5)
            except Exception as error:
                # A thread that ended in silence would be waited for until the time-out.
                feed.put(("BROKEN", error))
                return

    def _until_ready(self, pending: list[Target], feed: queue.Queue[tuple[str, Any]]) -> None:
        heard: set[tuple[str, str | None]] = set()
        while pending:
            left = self._started + self.timeout - time.monotonic()
            if left <= 0:
                raise Failed(
                    self._report(f"not ready after {self.timeout:.0f} s", [(target, "", None) for target in pending])
                )
            try:
                self._take(feed.get(timeout=min(left, 1.0)), heard)
                while True:
                    self._take(feed.get_nowait(), heard)
            except queue.Empty:
                pass
            for target in pending:
                if (target.kind, target.namespace) in heard:
                    target.body = self._store.objects.get((target.kind, target.namespace, target.name))
            pending = [target for target in pending if not self._is_ready(target)]
            failures = [(target, *failure) for target in pending for failure in [self._failure(target)] if failure]
            if failures:
                raise Failed(self._report("will not become ready", failures))

    def _take(self, item: tuple[str, Any], heard: set[tuple[str, str | None]]) -> None:
        """Put one queue item into the store."""
        event, value = item
        objects = self._store.objects
        if event == "BROKEN":
            raise value
        if event == "DENIED":
            raise Failed(f"cluster {self.cluster.name}: {value}")
        if event == "LIST":
            kind, namespace, bodies = value
            heard.add((kind, namespace))
            for key in [key for key in objects if key[:2] == (kind, namespace)]:
                del objects[key]
            for body in bodies:
                objects[_key(body)] = body
        elif event == "DELETED":
            objects.pop(_key(value), None)
        else:
            objects[_key(value)] = value

    def _is_ready(self, target: Target) -> bool:
        if target.body is None:
            return False
        ready = progress(target.body, self._binds_later)[0]
        if ready:
            target.seconds = time.monotonic() - self._started
        return ready

    def _binds_later(self, claim: Body) -> bool:
        """Whether a claim's storage class binds only when a pod uses it."""
        name = (claim.get("spec") or {}).get("storageClassName")
        if not name:
            return False
        if name not in self._classes:
            live: Body | None = None
            with contextlib.suppress(ApiError):  # a deployer may not be allowed to read it
                live = self.cluster.get(STORAGE_CLASS, None, name)
            self._classes[name] = (live or {}).get("volumeBindingMode") == "WaitForFirstConsumer"
        return self._classes[name]

    # Why a target will not become ready: (reason, pod that shows it), or None while there is hope.

    def _failure(self, target: Target) -> tuple[str, Body | None] | None:
        if target.body is None:
            if self._store.lasting("absent", str(target)) > GRACE:
                return "the object is gone: something deleted it", None
            return None
        status = target.body.get("status") or {}
        conditions = {item["type"]: item for item in status.get("conditions") or []}
        pods = self.pods_of(target)
        failed = conditions.get("Failed", {})
        if target.kind == "Job" and failed.get("status") == "True":
            return f"the Job failed: {failed.get('reason')}: {failed.get('message')}", pods[-1] if pods else None
        for pod in pods:
            reason = self._pod_failure(pod, target)
            if reason:
                return reason, pod
        if _observed(target.body):
            stalled = conditions.get("Progressing", {})
            if target.kind == "Deployment" and stalled.get("reason") == "ProgressDeadlineExceeded":
                return f"no progress within its deadline: {stalled.get('message')}", pods[0] if pods else None
        return self._creation_failure(target, conditions)

    def _creation_failure(self, target: Target, conditions: dict[str, Body]) -> tuple[str, Body | None] | None:
        """The pods (or the volume) cannot even be created."""
        messages = []
        refused = conditions.get("ReplicaFailure", {})
        if target.kind == "Deployment" and refused.get("status") == "True" and _observed(target.body):
            messages.append(refused.get("message", ""))
        uids = {target.body["metadata"].get("uid")} if target.body else set()
        for event in self._store.of("Event", target.namespace):
            about = (event.get("involvedObject") or {}).get("uid") in uids and self._is_recent(event)
            message = event.get("message", "")
            if about and (event.get("reason") == "FailedCreate" or "no storage class is set" in message):
                messages.append(message)
        for message in messages:
            sure = "violates PodSecurity" in message or "no storage class is set" in message
            if sure or self._store.lasting("FailedCreate", str(target)) > GRACE:
                return f"its pods are refused: {message}" if target.kind != "PersistentVolumeClaim" else message, None
        if not messages:
            self._store.since.pop(("FailedCreate", str(target)), None)
        return None

    def _is_recent(self, event: Body) -> bool:
        """Whether an event was last seen since this wait began, by the server's clock."""
        stamp = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or ""
        try:
            return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp() >= self._server_started - 2
        except ValueError:
            return False

    def _pod_failure(self, pod: Body, target: Target) -> str | None:
        status = pod.get("status") or {}
        name = pod["metadata"]["name"]
        if pod["metadata"].get("deletionTimestamp"):
            return None
        for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
            waiting = (container.get("state") or {}).get("waiting") or {}
            reason, message = waiting.get("reason", ""), waiting.get("message", "")
            where = f"container {container['name']} of pod {name}"
            if reason in IMAGE_ERRORS or (
                reason == "ErrImagePull" and ("not found" in message or "NotFound" in message)
            ):
                return f"{where}: {reason}: image {container.get('image')}: {message}"
            if reason == "ErrImagePull" and self._store.lasting(reason, name, container["name"]) > GRACE:
                return f"{where}: {reason}: image {container.get('image')}: {message}"
            if reason == "CreateContainerConfigError" and not any(word in message for word in PASSING_CONFIG):
                return f"{where}: {reason}: {message}"
            if (
                reason in ("CreateContainerError", "RunContainerError")
                and self._store.lasting(reason, name, container["name"]) > GRACE
            ):
                return f"{where}: {reason}: {message}"
            if reason == "CrashLoopBackOff" and container.get("restartCount", 0) >= CRASHES and target.kind != "Job":
                return f"{where}: {reason} after {container['restartCount']} restarts: {report.last_exit(container)}"
        return self._unschedulable(pod)

    def _unschedulable(self, pod: Body) -> str | None:
        """A pod that no node can take, where nothing is under way that may change that."""
        status, name, namespace = pod.get("status") or {}, pod["metadata"]["name"], pod["metadata"].get("namespace")
        placed = {item["type"]: item for item in status.get("conditions") or []}.get("PodScheduled", {})
        message = placed.get("message", "")
        hope = (
            placed.get("status") != "False"
            or placed.get("reason") != "Unschedulable"
            or status.get("nominatedNodeName")
            or any(word in message for word in PASSING)
            or any(other["metadata"].get("deletionTimestamp") for other in self._store.of("Pod", namespace))
            or any(
                event.get("reason") == "TriggeredScaleUp" and (event.get("involvedObject") or {}).get("name") == name
                for event in self._store.of("Event", namespace)
            )
        )
        if hope:
            self._store.since.pop(("Unschedulable", name), None)
            return None
        if self._store.lasting("Unschedulable", name) < GRACE:
            return None
        return f"pod {name} cannot be scheduled: {message}"

    def pods_of(self, target: Target) -> list[Body]:
        """The pods of a workload's newest revision, oldest first."""
        body = target.body
        if body is None or target.kind not in applyset.WORKLOADS or not _observed(body):
            return []
        uid, labels = body["metadata"].get("uid"), {}
        if target.kind == "Deployment":
            revision = _annotation(body, "deployment.kubernetes.io/revision")
            uid = next(
                (
                    item["metadata"]["uid"]
                    for item in self._store.of("ReplicaSet", target.namespace)
                    if _owner(item) == uid and _annotation(item, "deployment.kubernetes.io/revision") == revision
                ),
                None,
            )
        elif target.kind == "StatefulSet":
            labels = {"controller-revision-hash": (body.get("status") or {}).get("updateRevision")}
        elif target.kind == "DaemonSet":
            labels = {"pod-template-generation": _annotation(body, "deprecated.daemonset.template.generation")}
        pods = [
            pod
            for pod in self._store.of("Pod", target.namespace)
            if uid
            and _owner(pod) == uid
            and all(
                (pod["metadata"].get("labels") or {}).get(key, value) == value for key, value in labels.items() if value
            )
        ]
        return sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp") or "")

    def _report(self, headline: str, failures: list[tuple[Target, str, Body | None]]) -> str:
        """The message of a failed wait, target by target."""
        lines = []
        for target, reason, pod in failures:
            state = progress(target.body)[1] if target.body else "it does not exist"
            lines.append(f"{target}: {headline} ({state})" + (f": {reason}" if reason else ""))
            pods = [pod] if pod else [pod for pod in self.pods_of(target) if not report.is_ready(pod)]
            events = self._store.of("Event", target.namespace)
            lines += report.describe(self.cluster, target.body, pods[:2], events)
        return "\n".join(lines)


def _key(body: Body) -> tuple[str, str | None, str]:
    return body["kind"], body["metadata"].get("namespace"), body["metadata"]["name"]


def _observed(body: Body | None) -> bool:
    """Whether the status speaks of the newest spec."""
    status = (body or {}).get("status") or {}
    return status.get("observedGeneration", 10**9) >= (body or {}).get("metadata", {}).get("generation", 1)


def _owner(body: Body) -> str | None:
    """The uid of the controller that made an object."""
    return next(
        (owner["uid"] for owner in body["metadata"].get("ownerReferences") or [] if owner.get("controller")), None
    )


def _annotation(body: Body, name: str) -> str | None:
    return (body["metadata"].get("annotations") or {}).get(name)
