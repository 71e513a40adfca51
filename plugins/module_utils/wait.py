"""Waits by watch, all objects at once: ends with the last one ready, or with the reason why one never will be.

Ready means, beside what `kubectl rollout status` means by it for workloads:

- Ingress: a controller has published an address. A class that the cluster does not have fails at once; one whose
  controller does nothing at all with the Ingress for UNSERVED seconds fails then, rather than at the time-out.
- HorizontalPodAutoscaler: its target exists, and its controller does not say that it cannot scale. The controller first
  looks at a new autoscaler after its sync period (15 s), so its consent is not waited for; nor are metrics, which
  young pods do not have yet.

An object with the annotation `citadelbuy.io/wait: "false"` is not waited for, such as an Ingress whose controller
serves it without publishing an address.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, diff, report
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    BROKEN,
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import MANAGER, Parent
from ansible_collections.citadelbuy.platform.plugins.module_utils.pod_failure import (
    PASSING,
    container_failures,
    unschedulable,
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
    "Ingress": Resource("networking.k8s.io/v1", "Ingress", "ingresses", True),
    "HorizontalPodAutoscaler": Resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", True),
}
STORAGE_CLASS = Resource("storage.k8s.io/v1", "StorageClass", "storageclasses", False)
INGRESS_CLASS = Resource("networking.k8s.io/v1", "IngressClass", "ingressclasses", False)
WAIT = "citadelbuy.io/wait"  # annotation
GRACE = 10.0  # seconds a pod may be unschedulable, or a controller fail to create pods, before it counts
UNSERVED = 30.0  # seconds after which an Ingress that no controller has touched has none
RECONSIDERED = 35.0  # seconds, two sync periods of the autoscaler's controller, after which its refusal is no old one
# Events that, repeated, tell why a volume does not come.
UNPROVISIONED = re.compile("^ProvisioningFailed:")
UNMOUNTABLE = re.compile('^FailedMount: .*((secret|configmap) ".*" not found|references non-existent)', re.DOTALL)
# What an autoscaler's controller says of a mistake in the autoscaler; anything else may be metrics that come later.
MISTAKES = ("InvalidSelector", "AmbiguousSelector", "InvalidMetricSourceType")


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
        and _group(body["apiVersion"]) == _group(KINDS[body["kind"]].api_version)
        and _annotation(body, WAIT) != "false"
    ]


APPLICATIONS = ("applications", "applications-canary")
"""The sets of API and web: the role's own, and that of their canary."""


def find_workloads(cluster: Cluster, sets: Iterable[str], namespace: str) -> list[Target]:
    """The workloads that sets have applied, by their ApplySet label, in the namespaces that their parents name.

    :param namespace: where the parents are.
    """
    parents = [Parent(cluster, name, namespace) for name in sets]
    for parent in parents:
        parent.read_again()
    collections = {
        (kind, place)
        for parent in parents
        for _group, kind in parent.group_kinds()
        if kind in applyset.WORKLOADS
        for place in parent.namespaces()
    }
    selector = f"{applyset.PART_OF} in ({','.join(sorted(parent.id for parent in parents))})"
    return [
        target
        for kind, place in sorted(collections)
        for target in targets_of(cluster.list(KINDS[kind], place, labelSelector=selector)["items"])
    ]


def progress(body: Body, ask: Callable[[Body], bool] = lambda _body: False) -> tuple[bool, str]:
    """Whether a live object is ready, and its state in a few words.

    :param ask: tells what only the cluster knows: whether a pending PersistentVolumeClaim waits for its first
        consumer; whether an autoscaler's target exists.
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
        return phase == "Bound" or (phase == "Pending" and ask(body)), phase
    if kind == "Ingress":
        addresses = (status.get("loadBalancer") or {}).get("ingress") or []
        shown = ", ".join(str(item.get("hostname") or item.get("ip")) for item in addresses)
        return bool(addresses), shown or "no address yet"
    if kind == "HorizontalPodAutoscaler":
        return _scales(body, conditions, ask)
    wanted_condition = "Established" if kind == "CustomResourceDefinition" else "Available"
    condition = conditions.get(wanted_condition, {})
    return condition.get("status") == "True", condition.get("message") or f"not {wanted_condition} yet"


def _scales(body: Body, conditions: dict[str, Body], ask: Callable[[Body], bool]) -> tuple[bool, str]:
    """Whether an autoscaler can scale its target, as far as is known; no generation tells an old verdict."""
    able, active = conditions.get("AbleToScale", {}), conditions.get("ScalingActive", {})
    if able.get("status") == "False" and able.get("reason") != "FailedGetScale":
        return False, f"{able.get('reason')}: {able.get('message')}"
    if active.get("status") == "False" and active.get("reason") in MISTAKES:
        return False, f"{active.get('reason')}: {active.get('message')}"
    if able.get("status") == "True" or ask(body):
        return True, "able to scale"
    target = body["spec"]["scaleTargetRef"]
    return False, f"its target {target['kind']} {target['name']} does not exist"


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
    """Waits for targets in one cluster.

    :param timeout: seconds for all of them together.
    :param progress: called about once a second with one line on what is waited for, and once with "" at the end.
    """

    def __init__(self, cluster: Cluster, timeout: float, progress: Callable[[str], None] | None = None) -> None:
        self.cluster = cluster
        self.timeout = timeout
        self._tell = progress or (lambda _line: None)
        self._classes: dict[str, bool] = {}
        self._ingress_classes: dict[str, str | None] | None = None
        self._classes_read = False
        self._known: set[tuple[str, str | None, str]] = set()
        self._store = _Store()
        self._started = time.monotonic()
        self._server_started = time.time()

    def wait(self, targets: list[Target]) -> None:
        """Return when every target is ready; sets their `seconds`.

        :raises Failed: with a report, as soon as one target cannot become ready, or at the time-out.
        """
        self._started = time.monotonic()
        self._server_started = time.time() + self.cluster.clock_offset
        self._known = {(target.kind, target.namespace, target.name) for target in targets if target.body}
        try:
            pending = [target for target in targets if not self._is_ready(target)]
            if pending:
                self._watch(pending)
        finally:
            self._tell("")

    def _watch(self, pending: list[Target]) -> None:
        """Open the watches and wait with them."""
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
            if target.namespace:
                feeds.add((EVENT, target.namespace))
            if target.kind in applyset.WORKLOADS:
                feeds.add((POD, target.namespace))
            if target.kind == "Deployment":
                feeds.add((REPLICA_SET, target.namespace))
        return feeds

    def _follow(
        self, resource: Resource, namespace: str | None, feed: queue.Queue[tuple[str, Any]], stop: threading.Event
    ) -> None:
        """Feed a collection's state and changes into the queue; survives a lost watch and a restarted server."""
        while not stop.is_set():
            try:
                answer = self.cluster.list(resource, namespace)
                feed.put(("LIST", (resource.kind, namespace, answer["items"])))
                began = time.monotonic()
                for event, body in self.cluster.watch(resource, namespace, answer["metadata"]["resourceVersion"], stop):
                    if event != "BOOKMARK":
                        feed.put((event, body))
                if time.monotonic() - began < 1:  # refused: not allowed, overloaded, an expired resourceVersion
                    stop.wait(0.5)
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
        told = self._started
        while pending:
            if time.monotonic() - told >= 1:
                told = time.monotonic()
                self._tell(self._line(pending))
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

    def _line(self, pending: list[Target]) -> str:
        """What is waited for, in one line."""
        first, more = pending[0], len(pending) - 1
        state = progress(first.body)[1] if first.body else "it does not exist"
        line = f"waiting {time.monotonic() - self._started:.0f} s: {first} ({state})"
        return line + (f", {more} more" if more else "")

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
        ready = progress(target.body, self._ask)[0]
        if ready:
            target.seconds = time.monotonic() - self._started
        return ready

    def _ask(self, body: Body) -> bool:
        return self._binds_later(body) if body["kind"] == "PersistentVolumeClaim" else self._target_exists(body)

    def _target_exists(self, autoscaler: Body) -> bool:
        """Whether there is something to scale; its controller would say so only after its next sync."""
        namespace, target = autoscaler["metadata"]["namespace"], autoscaler["spec"]["scaleTargetRef"]
        if (target["kind"], namespace, target["name"]) in self._known:
            return True
        try:
            resource = self.cluster.resource(target.get("apiVersion") or "v1", target["kind"])
            return resource is not None and self.cluster.get(resource, namespace, target["name"]) is not None
        except ApiError as error:
            return error.status == 403  # a deployer may not be allowed to read it
        except EngineError:
            return False

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
        blocked = self._blocked(target) if target.kind == "StatefulSet" else None
        if blocked:
            return blocked
        if _observed(target.body):
            stalled = conditions.get("Progressing", {})
            if target.kind == "Deployment" and stalled.get("reason") == "ProgressDeadlineExceeded":
                return f"no progress within its deadline: {stalled.get('message')}", pods[0] if pods else None
        if target.kind in ("Ingress", "HorizontalPodAutoscaler"):
            reason = self._ingress_failure(target) if target.kind == "Ingress" else self._autoscaler_failure(target)
            return (reason, None) if reason else None
        return self._creation_failure(target, conditions)

    def _blocked(self, target: Target) -> tuple[str, Body] | None:
        """A broken pod of an earlier revision, that the controller waits for before it rolls any.

        Kubernetes asks for its deletion by hand: https://github.com/kubernetes/kubernetes/issues/67250.
        """
        spec, status = target.body["spec"], target.body.get("status") or {}
        strategy = spec.get("updateStrategy") or {}
        if spec.get("podManagementPolicy") == "Parallel" or strategy.get("type") == "OnDelete":
            return None
        kept = (strategy.get("rollingUpdate") or {}).get("partition") or 0
        old = [pod for pod in self.pods_of(target, newest=False) if _revision(pod) != status.get("updateRevision")]
        old = [pod for pod in old if _ordinal(pod) >= kept]
        for pod in old:
            reason = self._pod_failure(pod, target)
            if not reason or self._store.lasting("blocked", pod["metadata"]["uid"]) < GRACE:
                continue
            # Pods that stand before the last one of the current revision would come back as they were.
            current = [other for other in old if _revision(other) == status.get("currentRevision")]
            doomed = [other for other in current if _ordinal(other) >= _ordinal(pod)] if pod in current else [pod]
            names = " ".join(other["metadata"]["name"] for other in doomed)
            return (
                f"the rollout stands still: the StatefulSet waits for a broken pod of an earlier revision. Delete it: "
                f"kubectl -n {target.namespace} delete pod {names}. {reason}"
            ), pod
        return None

    def _ingress_failure(self, target: Target) -> str | None:
        """No controller serves the Ingress."""
        name = (target.body.get("spec") or {}).get("ingressClassName")
        classes = self._read_ingress_classes()
        known = "unknown" if classes is None else ", ".join(sorted(classes)) or "none"
        if name and classes is not None and name not in classes:
            return f"there is no IngressClass {name} (there is: {known}): correct it, or install its controller first"
        touched = any(entry.get("manager") != MANAGER for entry in target.body["metadata"].get("managedFields") or [])
        touched = touched or bool(self._events_about(target.namespace, target.kind, target.name))
        if touched or self._store.lasting("unserved", str(target)) < UNSERVED:
            return None
        name = name or _annotation(target.body, "kubernetes.io/ingress.class")
        controller = (classes or {}).get(name or "") or "unknown"
        of_class = f"class {name}, controller {controller}" if name else f"it names no class, there is: {known}"
        return (
            f"no controller has touched it in {UNSERVED:.0f} s ({of_class}): see whether that runs. "
            f'An Ingress that never gets an address is not waited for with the annotation {WAIT}: "false"'
        )

    def _read_ingress_classes(self) -> dict[str, str | None] | None:
        """The controllers of the cluster's IngressClasses, by class; None where a deployer may not read them."""
        if not self._classes_read:
            self._classes_read = True
            with contextlib.suppress(EngineError):
                items = self.cluster.list(INGRESS_CLASS)["items"]
                self._ingress_classes = {item["metadata"]["name"]: item["spec"].get("controller") for item in items}
        return self._ingress_classes

    def _autoscaler_failure(self, target: Target) -> str | None:
        """The autoscaler has nothing to scale, or its controller keeps saying that it cannot."""
        _ready, state = progress(target.body)
        if state.startswith("its target"):
            long = self._store.lasting("no target", str(target)) > GRACE
            return f"{state}: create it, or correct scaleTargetRef" if long else None
        return state if self._store.lasting("refused", str(target), state) > RECONSIDERED else None

    def _creation_failure(self, target: Target, conditions: dict[str, Body]) -> tuple[str, Body | None] | None:
        """The pods (or the volume) cannot even be created."""
        messages = []
        refused = conditions.get("ReplicaFailure", {})
        if target.kind == "Deployment" and refused.get("status") == "True" and _observed(target.body):
            messages.append(refused.get("message", ""))
        uid = target.body["metadata"]["uid"]
        for event in self._events_about(target.namespace, target.kind, target.name):
            message = event.get("message", "")
            if event["involvedObject"].get("uid") != uid:
                continue
            if event.get("reason") == "FailedCreate" or "no storage class is set" in message:
                messages.append(message)
        for message in messages:
            sure = "violates PodSecurity" in message or "no storage class is set" in message
            if sure or self._store.lasting("FailedCreate", str(target)) > GRACE:
                return f"its pods are refused: {message}" if target.kind != "PersistentVolumeClaim" else message, None
        if not messages:
            self._store.since.pop(("FailedCreate", str(target)), None)
        if target.kind == "PersistentVolumeClaim":
            message = self._repeated(target.namespace, target.kind, target.name, UNPROVISIONED)
            return (f"it is not provisioned: {message}", None) if message else None
        return None

    def _events_about(self, namespace: str | None, kind: str, name: str) -> list[Body]:
        """The events about an object that were last seen since this wait began, by the server's clock."""
        return [
            event
            for event in self._store.of("Event", namespace)
            if (event.get("involvedObject") or {}).get("kind") == kind
            and event["involvedObject"].get("name") == name
            and _last_seen(event) >= self._server_started - 2
        ]

    def _repeated(self, namespace: str | None, kind: str, name: str, sign: re.Pattern[str]) -> str | None:
        """The message of a warning about an object that came again when the wait was GRACE old."""
        events = [
            event
            for event in self._events_about(namespace, kind, name)
            if sign.search(f"{event.get('reason')}: {event.get('message')}")
        ]
        count = sum(event.get("count") or (event.get("series") or {}).get("count") or 1 for event in events)
        last = max(events, key=_last_seen, default=None)
        if last is None or count < 2 or _last_seen(last) < self._server_started + GRACE:
            return None
        return str(last.get("message", "")).strip()

    def _volume_failure(self, pod: Body) -> str | None:
        """A volume of a pod that has not started is not provisioned, or cannot be mounted."""
        name, namespace = pod["metadata"]["name"], pod["metadata"].get("namespace")
        if (pod.get("status") or {}).get("phase") != "Pending":
            return None
        for volume in (pod.get("spec") or {}).get("volumes") or []:
            claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            message = self._repeated(namespace, "PersistentVolumeClaim", claim, UNPROVISIONED) if claim else None
            if message:
                return f"the volume claim {claim} of pod {name} is not provisioned: {message}"
        message = self._repeated(namespace, "Pod", name, UNMOUNTABLE)
        return f"a volume of pod {name} cannot be mounted: {message}" if message else None

    def _pod_failure(self, pod: Body, target: Target) -> str | None:
        name = pod["metadata"]["name"]
        if pod["metadata"].get("deletionTimestamp"):
            return None
        for failure in container_failures(pod):
            if failure.reason == "CrashLoopBackOff" and target.kind == "Job":
                continue
            if failure.sure or self._store.lasting(failure.reason, name, failure.container) > GRACE:
                return f"container {failure.container} of pod {name}: {failure.text}"
        return self._volume_failure(pod) or self._unschedulable(pod)

    def _unschedulable(self, pod: Body) -> str | None:
        """A pod that no node can take, where nothing is under way that may change that."""
        name, namespace = pod["metadata"]["name"], pod["metadata"].get("namespace")
        message = unschedulable(pod)
        hope = (
            message is None
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

    def pods_of(self, target: Target, newest: bool = True) -> list[Body]:
        """The pods of a workload's newest revision (or of all revisions, but for a Deployment), oldest first."""
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
        elif not newest:
            pass
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
        """The message of a failed wait, target by target, without the values of the Secrets that its pods use."""
        shown = [self._pods_to_show(target, pod) for target, _reason, pod in failures]
        secrets = report.secret_values(self.cluster, [pod for pods in shown for pod in pods])
        lines = []
        for (target, reason, _pod), pods in zip(failures, shown, strict=True):
            state = progress(target.body)[1] if target.body else "it does not exist"
            state = f" ({state})" if state not in reason else ""
            lines.append(f"{target}: {headline}{state}" + (f": {reason}" if reason else ""))
            events = self._store.of("Event", target.namespace)
            lines += report.describe(self.cluster, target.body, pods, events, secrets)
        return diff.mask("\n".join(lines), secrets)

    def _pods_to_show(self, target: Target, pod: Body | None) -> list[Body]:
        """The pods that explain a failure; older ones where there is none of the newest revision."""
        candidates = self.pods_of(target) or self.pods_of(target, newest=False)
        return [pod] if pod else [item for item in candidates if not report.is_ready(item)][:2]


def _key(body: Body) -> tuple[str, str | None, str]:
    return body["kind"], body["metadata"].get("namespace"), body["metadata"]["name"]


def _observed(body: Body | None) -> bool:
    """Whether the status speaks of the newest spec."""
    status = (body or {}).get("status") or {}
    return status.get("observedGeneration", 10**9) >= (body or {}).get("metadata", {}).get("generation", 1)


def _revision(pod: Body) -> str | None:
    """The revision of a StatefulSet's pod."""
    return (pod["metadata"].get("labels") or {}).get("controller-revision-hash")


def _ordinal(pod: Body) -> int:
    """The number of a StatefulSet's pod."""
    return int(pod["metadata"]["name"].rpartition("-")[2])


def _last_seen(event: Body) -> float:
    """When an event last came, in seconds of the server's clock since the epoch; 0 where it does not say."""
    series = (event.get("series") or {}).get("lastObservedTime")
    stamp = event.get("lastTimestamp") or series or event.get("eventTime") or event["metadata"].get("creationTimestamp")
    try:
        return datetime.fromisoformat((stamp or "").replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0


def _group(api_version: str) -> str:
    """The API group of an apiVersion; empty for the core's."""
    return api_version.rpartition("/")[0]


def _owner(body: Body) -> str | None:
    """The uid of the controller that made an object."""
    return next(
        (owner["uid"] for owner in body["metadata"].get("ownerReferences") or [] if owner.get("controller")), None
    )


def _annotation(body: Body, name: str) -> str | None:
    return (body["metadata"].get("annotations") or {}).get(name)
