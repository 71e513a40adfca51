"""Waits, against a real API server and its controllers; the tests write what a kubelet would."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, wait
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import ApiError, EngineError, Resource
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import (
    POD,
    Failed,
    Waiter,
    find_workloads,
    progress,
    targets_of,
)

POD_SPEC = """
  template:
    metadata:
      labels: {app: "{{ name }}"}
    spec:
      restartPolicy: "{{ restart | default('Always') }}"
      containers: [{name: main, image: "{{ image | default('app:1') }}"}]
"""
SELECTOR = '\n  replicas: {{ replicas | default(2) }}\n  selector: {matchLabels: {app: "{{ name }}"}}'
HEAD = '\nmetadata: {name: "{{ name }}", namespace: "{{ ns }}"}\nspec:'
DEPLOYMENT = "apiVersion: apps/v1\nkind: Deployment" + HEAD + SELECTOR + POD_SPEC
STATEFUL_SET = "apiVersion: apps/v1\nkind: StatefulSet" + HEAD + '\n  serviceName: "{{ name }}"' + SELECTOR + POD_SPEC
JOB = "apiVersion: batch/v1\nkind: Job" + HEAD + "\n  backoffLimit: 0" + POD_SPEC
WORKLOADS = {"Deployment": DEPLOYMENT, "StatefulSet": STATEFUL_SET, "Job": JOB}
CLAIM = (
    "apiVersion: v1\nkind: PersistentVolumeClaim"
    + HEAD
    + """
  accessModes: [ReadWriteOnce]
  storageClassName: "{{ ns }}"
  resources: {requests: {storage: 1Gi}}
"""
)


def running(_pod):
    """A pod status as of a healthy pod."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
        "containerStatuses": [container(ready=True, state={"running": {}})],
    }


def container(**values):
    return {"name": "main", "image": "app:1", "imageID": "", "ready": False, "restartCount": 0} | values


def waiting(reason, message="", restarts=0, last=None):
    """A pod status with its container waiting."""
    state = {"waiting": {"reason": reason, "message": message}}
    status = container(state=state, restartCount=restarts, lastState={"terminated": last} if last else {})
    return lambda _pod: {"phase": "Pending", "containerStatuses": [status]}


class Kubelet(threading.Thread):
    """Gives pods that have no status yet the one that `status(pod)` says (None: not yet)."""

    def __init__(self, cluster, namespace, status):
        super().__init__(daemon=True)
        self.cluster, self.namespace, self.status = cluster, namespace, status
        self.stopped = threading.Event()

    def run(self):
        while not self.stopped.wait(0.1):
            with contextlib.suppress(ApiError, EngineError):
                for pod in self.cluster.list(POD, self.namespace)["items"]:
                    status = self.status(pod)
                    if status and not pod["status"].get("containerStatuses") and not pod["status"].get("conditions"):
                        path = POD.path(self.namespace, pod["metadata"]["name"]) + "/status"
                        kind = "application/merge-patch+json"
                        self.cluster.request("PATCH", path, {"status": status}, content=kind)


@pytest.fixture
def kubelet(cluster, namespace):
    """Start one with kubelet(status)."""
    started = []

    def start(status=running):
        started.append(Kubelet(cluster, namespace, status))
        started[-1].start()
        return started[-1]

    yield start
    for item in started:
        item.stopped.set()
        item.join()


@pytest.fixture
def settle(cluster):
    """Wait for an outcome's objects; returns the seconds it took."""

    def until(outcome, timeout=20):
        assert outcome.errors == []
        began = time.monotonic()
        Waiter(cluster, timeout).wait(targets_of(item.after for item in outcome.applied))
        return time.monotonic() - began

    return until


def failure(settle, outcome, timeout=20, within=8.0):
    """The message of a wait that must fail before its time-out."""
    began = time.monotonic()
    with pytest.raises(Failed) as caught:
        settle(outcome, timeout)
    assert time.monotonic() - began < within
    return str(caught.value)


def test_all_kinds_at_once(deploy, kubelet, settle, cluster):
    def status(pod):
        if pod["metadata"]["name"].startswith("migrate"):
            ended = container(state={"terminated": {"exitCode": 0}})
            return {"phase": "Succeeded", "containerStatuses": [ended]}
        return running(pod)

    kubelet(status)
    texts = [
        DEPLOYMENT.replace("{{ name }}", "api"),
        STATEFUL_SET.replace("{{ name }}", "postgres"),
        JOB.replace("{{ name }}", "migrate").replace("{{ restart | default('Always') }}", "Never"),
    ]
    assert settle(deploy("---\n".join(texts))) < 15
    found = find_workloads(cluster, [applyset.applyset_id("test", deploy.namespace)], "default")
    assert sorted(target.kind for target in found) == ["Deployment", "Job", "StatefulSet"]
    began = time.monotonic()
    Waiter(cluster, 5).wait(found)
    assert time.monotonic() - began < 0.05, "what is ready needs no watch"
    assert all(target.seconds is not None for target in found)


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
def test_a_rollout_is_over_only_with_the_new_pods(kind, deploy, kubelet, settle):
    template = WORKLOADS[kind]
    first = kubelet()
    settle(deploy(template, name="api"))
    first.stopped.set()
    first.join()
    outcome = deploy(template, name="api", image="app:2")
    with pytest.raises(Failed, match="not ready after 2 s"):
        settle(outcome, 2)
    kubelet()
    settle(outcome)


CRASH = {"exitCode": 3, "reason": "Error"}
NEVER = {
    "crash loop": (
        waiting("CrashLoopBackOff", "back-off", 2, CRASH),
        ["CrashLoopBackOff after 2 restarts", "exit code 3"],
    ),
    "image name": (waiting("InvalidImageName", "bad format"), ["InvalidImageName", "image app:1", "bad format"]),
    "image absent": (waiting("ErrImagePull", "app:1: not found"), ["ErrImagePull", "app:1: not found"]),
    "image back-off": (waiting("ImagePullBackOff", "Back-off pulling"), ["ImagePullBackOff"]),
    "image never": (waiting("ErrImageNeverPull", "not present"), ["ErrImageNeverPull"]),
    "configuration": (waiting("CreateContainerConfigError", 'secret "s" not found'), ['secret "s" not found']),
}


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (kind, case) for kind in WORKLOADS for case in NEVER if (kind, case) != ("Job", "crash loop")
    ],  # has its own limit
)
def test_a_pod_that_will_not_come_fails_at_once(kind, case, deploy, kubelet, settle):
    template = WORKLOADS[kind]
    status, expected = NEVER[case]
    kubelet(status)
    message = failure(settle, deploy(template, name="api", restart="Never" if kind == "Job" else "Always"))
    assert f"{kind} {deploy.namespace}/api: will not become ready" in message
    assert "container main of pod api-" in message
    for part in expected:
        assert part in message


PASSES = [
    waiting("CrashLoopBackOff", "", 1),
    waiting("ErrImagePull", "i/o timeout"),
    waiting("CreateContainerConfigError", "services have not yet been read at least once, cannot construct envvars"),
    waiting("CreateContainerConfigError", "failed to sync secret cache: timed out waiting for the condition"),
]


@pytest.mark.parametrize("status", PASSES)
def test_a_first_crash_a_network_error_or_a_kubelet_that_just_started_is_no_failure(status, deploy, kubelet, settle):
    kubelet(status)
    with pytest.raises(Failed, match="not ready after 3 s") as caught:
        settle(deploy(DEPLOYMENT, name="api"), 3)
    assert "container main: waiting" in str(caught.value)


def unschedulable(message):
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return lambda _pod: {"phase": "Pending", "conditions": [condition]}


def test_a_pod_without_a_node_fails_when_that_lasts(deploy, kubelet, settle, monkeypatch):
    monkeypatch.setattr(wait, "GRACE", 1.0)
    kubelet(unschedulable("0/1 nodes are available: 1 Insufficient cpu."))
    message = failure(settle, deploy(DEPLOYMENT, name="api"))
    assert "cannot be scheduled: 0/1 nodes are available: 1 Insufficient cpu." in message


def test_a_pod_that_waits_for_its_volume_does_not_fail(deploy, kubelet, settle, monkeypatch):
    monkeypatch.setattr(wait, "GRACE", 0.5)
    kubelet(unschedulable("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."))
    with pytest.raises(Failed, match="not ready after 3 s"):
        settle(deploy(DEPLOYMENT, name="api"), 3)


@pytest.mark.parametrize("kind", WORKLOADS)
def test_pods_refused_by_pod_security_fail_at_once(kind, deploy, settle, cluster):
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    path = f"/api/v1/namespaces/{deploy.namespace}"
    cluster.request("PATCH", path, label, content="application/merge-patch+json")
    message = failure(settle, deploy(WORKLOADS[kind], name="api", restart="Never" if kind == "Job" else "Always"))
    assert "its pods are refused" in message
    assert 'violates PodSecurity "restricted' in message


def test_a_failed_job_is_reported(deploy, kubelet, settle):
    ended = {"exitCode": 2, "reason": "Error", "message": "no such table"}
    kubelet(lambda _: {"phase": "Failed", "containerStatuses": [container(state={"terminated": ended})]})
    message = failure(settle, deploy(JOB, name="migrate", restart="Never"), within=15)
    assert "the Job failed: BackoffLimitExceeded" in message
    assert "container main: terminated: Error: no such table, exit code 2" in message


def test_crashing_pods_of_the_old_revision_do_not_count(deploy, kubelet, settle):
    def status(pod):
        old = pod["spec"]["containers"][0]["image"] == "app:1"
        return waiting("CrashLoopBackOff", "", 5)(pod) if old else running(pod)

    kubelet(status)
    failure(settle, deploy(DEPLOYMENT, name="api"))
    settle(deploy(DEPLOYMENT, name="api", image="app:2"))


def test_a_restarted_api_server_does_not_end_the_wait(deploy, kubelet, settle, api_server, cluster):
    outcome = deploy(DEPLOYMENT, name="api")
    result = []

    def run():
        try:
            result.append(settle(outcome, 60))
        except EngineError as error:
            result.append(error)

    waiter = threading.Thread(target=run)
    waiter.start()
    time.sleep(1)
    api_server.stop_api()
    time.sleep(1)
    api_server.start_api()
    assert not result
    kubelet()
    waiter.join(60)
    assert isinstance(result[0], float), result


def test_an_object_deleted_under_the_wait_is_told(deploy, settle, cluster, monkeypatch):
    monkeypatch.setattr(wait, "GRACE", 0.5)
    outcome = deploy(DEPLOYMENT, name="api")
    path = f"/apis/apps/v1/namespaces/{deploy.namespace}/deployments/api"
    threading.Timer(1, cluster.request, ("DELETE", path)).start()
    assert "something deleted it" in failure(settle, outcome)


def test_a_claim_that_binds_with_its_first_pod_is_ready(deploy, settle, cluster):
    body = {"metadata": {"name": deploy.namespace}, "provisioner": "none", "volumeBindingMode": "WaitForFirstConsumer"}
    cluster.request("POST", Resource("storage.k8s.io/v1", "StorageClass", "storageclasses", False).path(), body)
    assert settle(deploy(CLAIM, name="data")) < 1


def test_a_claim_that_should_bind_is_waited_for(deploy, settle, cluster):
    body = {"metadata": {"name": deploy.namespace}, "provisioner": "none"}
    cluster.request("POST", Resource("storage.k8s.io/v1", "StorageClass", "storageclasses", False).path(), body)
    with pytest.raises(Failed, match=r"PersistentVolumeClaim .*/data: not ready after 1 s \(Pending\)"):
        settle(deploy(CLAIM, name="data"), 1)


def test_a_user_who_may_not_watch_is_told(deploy, api_server):
    cluster = type(deploy.cluster).from_kubeconfig("test", str(api_server.kubeconfig), "nobody")
    outcome = deploy(DEPLOYMENT, name="api")
    with pytest.raises(Failed, match=r'waiting needs to list and watch .*User "nobody" cannot list'):
        Waiter(cluster, 5).wait(targets_of(item.after for item in outcome.applied))


DONE = {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "readyReplicas": 2}


@pytest.mark.parametrize(
    ("kind", "spec", "status", "ready"),
    [
        ("Deployment", {"replicas": 2}, DONE, True),
        ("Deployment", {"replicas": 2}, DONE | {"observedGeneration": 1}, False),
        ("Deployment", {"replicas": 2}, DONE | {"updatedReplicas": 1}, False),
        ("Deployment", {"replicas": 2}, DONE | {"replicas": 3}, False),
        ("Deployment", {"replicas": 2}, DONE | {"availableReplicas": 1}, False),
        ("Deployment", {"replicas": 0}, {"observedGeneration": 2}, True),
        ("StatefulSet", {"replicas": 2}, DONE | {"updateRevision": "b", "currentRevision": "b"}, True),
        (
            "StatefulSet",
            {"replicas": 2},
            DONE | {"updatedReplicas": 1, "updateRevision": "b", "currentRevision": "a"},
            False,
        ),
        ("StatefulSet", {"replicas": 2}, DONE | {"readyReplicas": 1}, False),
        (
            "StatefulSet",
            {"replicas": 2, "updateStrategy": {"type": "OnDelete"}},
            DONE | {"updatedReplicas": 0, "updateRevision": "b", "currentRevision": "a"},
            True,
        ),
        (
            "DaemonSet",
            {},
            {"observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 1, "numberAvailable": 2},
            False,
        ),
        (
            "DaemonSet",
            {},
            {"observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 2},
            True,
        ),
        ("Job", {}, {"conditions": [{"type": "Complete", "status": "True"}]}, True),
        ("Job", {}, {"active": 1}, False),
        ("APIService", {}, {"conditions": [{"type": "Available", "status": "False", "message": "no"}]}, False),
        ("CustomResourceDefinition", {}, {"conditions": [{"type": "Established", "status": "True"}]}, True),
    ],
)
def test_progress(kind, spec, status, ready):
    assert progress({"kind": kind, "metadata": {"generation": 2}, "spec": spec, "status": status})[0] is ready
