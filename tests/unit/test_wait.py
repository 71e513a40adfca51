"""Waits, against a real API server and its controllers; the tests write what a kubelet would."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, urlsplit

import pytest
import yaml
from ansible_collections.citadelbuy.platform.plugins.module_utils import report, wait
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    Credentials,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import (
    EVENT,
    POD,
    Failed,
    Waiter,
    find_workloads,
    progress,
    targets_of,
)
from conftest import ADMIN

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


class Gate(ThreadingHTTPServer):
    """Stands between a client and the real API server, to lose connections, refuse or rewrite requests on the way."""

    daemon_threads = True

    def __init__(self, cluster):
        super().__init__(("127.0.0.1", 0), Passage)
        self.behind = cluster._credentials
        self.watches = []  # paths of the watches that were asked for
        self.answered = b""  # all that the server has said on watches
        self.open = set()
        self.turn = lambda path: path  # the path to ask for instead, or (status, text) as the answer
        url = f"http://127.0.0.1:{self.server_address[1]}"
        self.cluster = Cluster("test", Credentials(url, headers=self.behind.headers))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def kubeconfig(self, folder):
        """Write one by which a program comes this way; its path."""
        config = {
            "current-context": "gate",
            "clusters": [{"name": "gate", "cluster": {"server": f"http://127.0.0.1:{self.server_address[1]}"}}],
            "users": [{"name": "gate", "user": {"token": ADMIN}}],
            "contexts": [{"name": "gate", "context": {"cluster": "gate", "user": "gate"}}],
        }
        file = folder / "gate.yml"
        file.write_text(yaml.safe_dump(config))
        return file

    def cut(self):
        """Lose all connections."""
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Passage(BaseHTTPRequestHandler):
    """One request through a Gate."""

    def do_GET(self):
        gate, watching = self.server, "watch=1" in self.path
        path = gate.turn(self.path)
        gate.watches += [self.path] if watching else []
        if not isinstance(path, str):
            self.send_response(path[0])
            self.end_headers()
            self.wfile.write(path[1].encode())
            return
        url = urlsplit(gate.behind.server)
        behind = http.client.HTTPSConnection(url.hostname, url.port, context=gate.behind.tls)
        headers = {name: self.headers[name] for name in ("Accept", "Content-Type") if name in self.headers}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        behind.request(self.command, path, body, gate.behind.headers | headers)
        answer = behind.getresponse()
        self.send_response(answer.status)
        self.end_headers()
        if watching:
            gate.open.add(self.connection)
        with contextlib.suppress(OSError, http.client.HTTPException):
            while data := answer.read1(65536):
                gate.answered += data if watching else b""
                self.wfile.write(data)
                self.wfile.flush()
        gate.open.discard(self.connection)
        behind.close()

    do_DELETE = do_PATCH = do_POST = do_PUT = do_GET

    def log_message(self, *_):
        """Silent."""


@pytest.fixture
def gate(cluster):
    """A way to the API server that a test can disturb."""
    server = Gate(cluster)
    yield server
    server.cut()
    server.shutdown()
    server.server_close()


@pytest.fixture
def in_background(settle):
    """Start settling an outcome; returns a function that ends with the seconds it took, or raises what it raised."""

    def start(outcome, timeout=60, through=None):
        result = []

        def run():
            try:
                result.append(settle(outcome, timeout, through))
            except EngineError as error:
                result.append(error)

        thread = threading.Thread(target=run)
        thread.start()

        def end():
            thread.join(timeout + 30)
            if isinstance(result[0], Exception):
                raise result[0]
            return result[0]

        return end

    return start


@pytest.fixture
def warn(cluster, namespace):
    """Write the event of a warning about an object, again and again until the test ends."""
    stopped, threads = threading.Event(), []

    def write(name, body, number):
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        path = EVENT.path(namespace)
        if number == 1:
            head = {"metadata": {"name": name}, "count": 1, "type": "Warning", "firstTimestamp": now}
            cluster.request("POST", path, body | head | {"lastTimestamp": now})
        else:
            change = {"count": number, "lastTimestamp": now}
            cluster.request("PATCH", f"{path}/{name}", change, content="application/merge-patch+json")

    def start(kind, name, reason, message, times=1000):
        event = f"{name}.{time.time_ns():x}"
        about = {"kind": kind, "name": name, "namespace": namespace}
        body = {"involvedObject": about, "reason": reason, "message": message}
        write(event, body, 1)

        def repeat():
            for number in range(2, times + 1):
                if stopped.wait(0.3):
                    return
                write(event, body, number)

        threads.append(threading.Thread(target=repeat, daemon=True))
        threads[-1].start()

    yield start
    stopped.set()
    for thread in threads:
        thread.join()


@pytest.fixture
def settle(cluster):
    """Wait for an outcome's objects; returns the seconds it took."""

    def until(outcome, timeout=20, through=None):
        assert outcome.errors == []
        began = time.monotonic()
        Waiter(through or cluster, timeout).wait(targets_of(item.after for item in outcome.applied))
        return time.monotonic() - began

    return until


def failure(settle, outcome, timeout=20, within=8.0, through=None):
    """The message of a wait that must fail before its time-out."""
    began = time.monotonic()
    with pytest.raises(Failed) as caught:
        settle(outcome, timeout, through)
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
    found = find_workloads(cluster, ["test"], deploy.namespace)
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


def test_a_restarted_api_server_does_not_end_the_wait(deploy, kubelet, in_background, api_server, gate, eventually):
    end = in_background(deploy(DEPLOYMENT, name="api"), 90, gate.cluster)
    eventually(lambda: len(gate.open) == COLLECTIONS)
    api_server.stop_api()
    api_server.start_api()
    kubelet()
    end()


COLLECTIONS = 4  # that are watched for a Deployment: deployments, replica sets, pods, events


def test_a_lost_watch_does_not_end_the_wait(deploy, kubelet, in_background, gate, eventually):
    end = in_background(deploy(DEPLOYMENT, name="api"), through=gate.cluster)
    eventually(lambda: len(gate.open) == COLLECTIONS)
    gate.cut()
    eventually(lambda: len(gate.watches) >= 2 * COLLECTIONS)
    kubelet()
    end()


def once(gate, answer):
    """Let the first watch of each collection have an answer of its own: answer(path)."""
    seen = set()

    def turn(path):
        collection, _, query = path.partition("?")
        if "watch=1" not in query or collection in seen:
            return path
        seen.add(collection)
        return answer(path)

    gate.turn = turn


def expired_in_stream(path):
    """The same watch from the first version on, which the server has forgotten."""
    return re.sub("resourceVersion=[0-9]+", "resourceVersion=1", path)


def expired_as_status(_path):
    """What older servers say of an expired version."""
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
    return 410, json.dumps(status)


def forget_history(api_server, cluster):
    """Let etcd and the API server forget what was before."""
    version = cluster.list(POD)["metadata"]["resourceVersion"]
    etcd = http.client.HTTPConnection("127.0.0.1", api_server.etcd_port)
    etcd.request("POST", "/v3/kv/compaction", json.dumps({"revision": version, "physical": True}))
    assert etcd.getresponse().status == 200
    etcd.close()
    api_server.stop_api()
    api_server.start_api()


@pytest.mark.parametrize("answer", [expired_in_stream, expired_as_status])
def test_an_expired_resource_version_does_not_end_the_wait(
    answer, deploy, kubelet, in_background, gate, eventually, api_server, cluster
):
    outcome = deploy(DEPLOYMENT, name="api")
    if answer is expired_in_stream:
        forget_history(api_server, cluster)
    once(gate, answer)
    end = in_background(outcome, through=gate.cluster)
    eventually(lambda: len(gate.watches) >= 2 * COLLECTIONS)
    eventually(lambda: answer is expired_as_status or gate.answered.count(b'"code":410') >= COLLECTIONS)
    kubelet()
    end()


def test_a_watch_that_is_refused_is_not_asked_for_in_a_loop(deploy, settle, gate):
    gate.turn = lambda path: (403, "{}") if "watch=1" in path else path
    with pytest.raises(Failed, match="not ready after 2 s"):
        settle(deploy(DEPLOYMENT, name="api"), 2, gate.cluster)
    assert len(gate.watches) < 4 * 2 / 0.5 + 8


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


SLOW = {
    "a volume is attached": (
        waiting("ContainerCreating"),
        ("FailedAttachVolume", "Multi-Attach error for volume: it is already attached to another node"),
    ),
    "a volume is slow": (waiting("ContainerCreating"), ("FailedMount", "Unable to attach or mount volumes: timed out")),
    "an image is pulled": (waiting("ContainerCreating"), ("Pulling", 'Pulling image "app:1"')),
    "init containers run": (waiting("PodInitializing"), ("Started", "Started container")),
    "a startup probe fails": (
        lambda _pod: {
            "phase": "Running",
            "containerStatuses": [container(state={"running": {}}, started=False)],
        },
        ("Unhealthy", "Startup probe failed: connection refused"),
    ),
}


@pytest.mark.parametrize("case", SLOW)
def test_slow_but_progressing_is_no_failure(
    case, deploy, kubelet, in_background, gate, eventually, warn, cluster, patch_status, monkeypatch
):
    monkeypatch.setattr(wait, "GRACE", 0.5)
    status, event = SLOW[case]
    started = kubelet(status)
    end = in_background(deploy(STATEFUL_SET, name="db", replicas=1), through=gate.cluster)
    eventually(lambda: pods(cluster, deploy.namespace).get("db-0", {}).get("status", {}).get("containerStatuses"))
    warn("Pod", "db-0", *event)
    lines = len(gate.answered)
    eventually(lambda: gate.answered[lines:].count(event[0].encode()) > 6)  # two seconds of warnings
    started.stopped.set()
    started.join()
    patch_status("pods/db-0", running(None))
    end()


def pods(cluster, namespace):
    """The pods of a namespace by name."""
    return {pod["metadata"]["name"]: pod for pod in cluster.list(POD, namespace)["items"]}


@pytest.mark.parametrize("first", ["crash loop", "image back-off", "configuration"])
def test_a_stateful_set_that_waits_for_a_broken_old_pod_is_told(
    first, deploy, kubelet, settle, cluster, eventually, monkeypatch
):
    monkeypatch.setattr(wait, "GRACE", 1.0)
    kubelet(lambda pod: (NEVER[first][0] if pod["spec"]["containers"][0]["image"] == "app:1" else running)(pod))
    failure(settle, deploy(STATEFUL_SET, name="db"))
    outcome = deploy(STATEFUL_SET, name="db", image="app:2")
    message = failure(settle, outcome)
    assert "the StatefulSet waits for a broken pod of an earlier revision" in message
    assert NEVER[first][1][0] in message
    follow(message, cluster)
    settle(outcome)
    assert set(images(cluster, deploy.namespace)) == {"app:2"}


def follow(message, cluster):
    """Do what a message says: delete some pods."""
    namespace, names = re.search(r"kubectl -n (\S+) delete pod ([\w -]+)\.", message).groups()
    for name in names.split():
        cluster.request("DELETE", POD.path(namespace, name), {"gracePeriodSeconds": 0})


@pytest.mark.parametrize(("broken", "told"), [(0, "db-0 db-1 db-2."), (2, "db-2.")])
def test_the_pods_to_delete_are_those_that_come_back_new(
    broken, told, deploy, kubelet, settle, cluster, patch_status, monkeypatch
):
    monkeypatch.setattr(wait, "GRACE", 1.0)
    kubelet()
    settle(deploy(STATEFUL_SET, name="db", replicas=3))
    crashed = waiting("CrashLoopBackOff", "", 5, CRASH)(None)
    patch_status(f"pods/db-{broken}", {"conditions": [{"type": "Ready", "status": "False"}]} | crashed)
    outcome = deploy(STATEFUL_SET, name="db", replicas=3, image="app:2")
    message = failure(settle, outcome)
    assert f"delete pod {told}" in message
    follow(message, cluster)
    settle(outcome)


def test_a_parallel_stateful_set_rolls_over_a_broken_pod_in_its_turn(
    deploy, kubelet, settle, in_background, gate, eventually, cluster, patch_status, monkeypatch
):
    monkeypatch.setattr(wait, "GRACE", 0.0)
    template = STATEFUL_SET.replace("serviceName:", "podManagementPolicy: Parallel\n  serviceName:")
    first = kubelet()
    settle(deploy(template, name="db"))
    first.stopped.set()
    crashed = waiting("CrashLoopBackOff", "", 5, CRASH)(None)
    patch_status("pods/db-0", {"conditions": [{"type": "Ready", "status": "False"}]} | crashed)
    end = in_background(deploy(template, name="db", image="app:2"), through=gate.cluster)
    eventually(lambda: "app:2" in images(cluster, deploy.namespace))
    eventually(lambda: len(gate.open) == 3)  # stateful sets, pods and events; one still being opened would not be cut
    gate.cut()  # the wait looks again
    eventually(lambda: len(gate.watches) >= 6)
    kubelet()
    end()


def images(cluster, namespace):
    """The images of a namespace's pods."""
    return [pod["spec"]["containers"][0]["image"] for pod in pods(cluster, namespace).values()]


WITH_VOLUME = (
    STATEFUL_SET
    + """
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
"""
)


@pytest.mark.parametrize(
    ("template", "about", "reason", "message"),
    [
        (CLAIM.replace("{{ name }}", "data"), "PersistentVolumeClaim/data", "ProvisioningFailed", "quota exceeded"),
        (WITH_VOLUME, "PersistentVolumeClaim/data", "ProvisioningFailed", "quota exceeded"),
        (STATEFUL_SET, "Pod/db-0", "FailedMount", 'MountVolume.SetUp failed for volume "tls" : secret "tls" not found'),
    ],
)
def test_a_volume_that_will_not_come_fails_when_that_lasts(
    template, about, reason, message, deploy, settle, warn, monkeypatch
):
    monkeypatch.setattr(wait, "GRACE", 1.0)
    outcome = deploy(template, name="db", replicas=1)
    warn(*about.split("/"), reason, message)
    told = failure(settle, outcome)
    assert "will not become ready" in told
    assert message in told.splitlines()[0]


def test_provisioning_that_failed_at_first_is_no_failure(deploy, settle, warn, monkeypatch):
    monkeypatch.setattr(wait, "GRACE", 1.5)
    outcome = deploy(CLAIM, name="data")
    warn("PersistentVolumeClaim", "data", "ProvisioningFailed", "quota exceeded", times=3)
    with pytest.raises(Failed, match="not ready after 4 s"):
        settle(outcome, 4)


INGRESS = (
    "apiVersion: networking.k8s.io/v1\nkind: Ingress"
    + HEAD
    + """
  ingressClassName: "{{ ns }}"
  defaultBackend: {service: {name: web, port: {number: 80}}}
"""
)


@pytest.fixture
def ingress_class(cluster, namespace):
    """An IngressClass with the namespace's name."""
    path = wait.INGRESS_CLASS.path()
    cluster.request("POST", path, {"metadata": {"name": namespace}, "spec": {"controller": "example.com/test"}})
    yield namespace
    cluster.request("DELETE", f"{path}/{namespace}")


def test_an_ingress_of_no_class_fails_at_once_and_tells_those_there_are(deploy, settle, ingress_class):
    message = failure(settle, deploy(INGRESS.replace('"{{ ns }}"\n  def', "absent\n  def"), name="web"))
    assert "there is no IngressClass absent (there is: " in message
    assert ingress_class in message


def test_an_ingress_is_ready_with_its_address(deploy, in_background, ingress_class, patch_status, gate, eventually):
    end = in_background(deploy(INGRESS, name="web"), through=gate.cluster)
    eventually(lambda: len(gate.open) == 2)  # ingresses and events are watched
    patch_status("apis/networking.k8s.io/v1:ingresses/web", {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}})
    end()


def test_an_ingress_that_no_controller_takes_fails_before_the_time_out(deploy, settle, ingress_class, monkeypatch):
    monkeypatch.setattr(wait, "UNSERVED", 1.0)
    message = failure(settle, deploy(INGRESS, name="web"))
    assert "no controller has touched it in 1 s" in message
    assert f"class {ingress_class}, controller example.com/test" in message


def test_an_ingress_that_a_controller_works_on_is_waited_for(deploy, settle, ingress_class, warn, monkeypatch):
    monkeypatch.setattr(wait, "UNSERVED", 1.0)
    outcome = deploy(INGRESS, name="web")
    warn("Ingress", "web", "Sync", "Scheduled for sync", times=1)
    with pytest.raises(Failed, match=r"not ready after 3 s \(no address yet\)"):
        settle(outcome, 3)


def test_an_object_that_says_so_is_not_waited_for(deploy, settle):
    text = INGRESS.replace("namespace:", "annotations: {citadelbuy.io/wait: 'false'}, namespace:")
    assert settle(deploy(text, name="web")) < 1


AUTOSCALER = (
    "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler"
    + HEAD
    + """
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: "{{ name }}"}
  maxReplicas: 3
"""
)
SCALERS = "apis/autoscaling/v2:horizontalpodautoscalers"


def verdict(*conditions):
    """The status of an autoscaler: (type, status, reason) each."""
    names = ("type", "status", "reason")
    return {
        "currentReplicas": 0,
        "desiredReplicas": 0,
        "conditions": [dict(zip(names, item, strict=True), message="told why") for item in conditions],
    }


@pytest.fixture
def rescale(deploy, settle, patch_status):
    """Settle an autoscaler of a Deployment that is there, after its controller gave a verdict."""

    def run(*conditions, settled=settle):
        deploy(DEPLOYMENT, name="api", role="other")
        outcome = deploy(AUTOSCALER, name="api")
        patch_status(f"{SCALERS}/api", verdict(*conditions))
        outcome = deploy(AUTOSCALER, name="api")
        return settled(outcome)

    return run


@pytest.mark.parametrize(
    "conditions",
    [
        [],
        [("AbleToScale", "True", "SucceededGetScale"), ("ScalingActive", "False", "FailedGetResourceMetric")],
        [("AbleToScale", "True", "SucceededGetScale"), ("ScalingActive", "False", "ScalingDisabled")],
        [("AbleToScale", "False", "FailedGetScale")],  # said before its target was there
    ],
)
def test_an_autoscaler_whose_target_is_there_is_ready(conditions, rescale):
    assert rescale(*conditions) < 1


def test_an_autoscaler_without_a_target_fails_when_that_lasts(deploy, settle, monkeypatch):
    monkeypatch.setattr(wait, "GRACE", 1.0)
    message = failure(settle, deploy(AUTOSCALER, name="api"))
    assert "its target Deployment api does not exist: create it, or correct scaleTargetRef" in message


@pytest.mark.parametrize(
    "condition",
    [("AbleToScale", "False", "FailedUpdateScale"), ("ScalingActive", "False", "AmbiguousSelector")],
)
def test_an_autoscaler_that_keeps_saying_it_cannot_fails(condition, rescale, settle, monkeypatch):
    monkeypatch.setattr(wait, "RECONSIDERED", 1.0)
    message = rescale(condition, settled=lambda outcome: failure(settle, outcome))
    assert f"{condition[2]}: told why" in message


def test_an_autoscaler_that_takes_back_what_it_said_is_ready(rescale, in_background, patch_status, gate, eventually):
    refused, able = ("AbleToScale", "False", "FailedUpdateScale"), ("AbleToScale", "True", "SucceededRescale")
    end = rescale(refused, settled=lambda outcome: in_background(outcome, through=gate.cluster))
    eventually(lambda: len(gate.open) == 2)  # autoscalers, events
    patch_status(f"{SCALERS}/api", verdict(able))
    end()


def test_what_is_ready_costs_no_request(deploy, kubelet, settle, cluster, patch_status, ingress_class, monkeypatch):
    kubelet()
    text = "---\n".join([DEPLOYMENT, AUTOSCALER, STATEFUL_SET, INGRESS])
    outcome = deploy(text, name="api")
    patch_status("apis/networking.k8s.io/v1:ingresses/api", {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}})
    settle(outcome)
    targets = targets_of(item.after for item in deploy(text, name="api").applied)
    assert len(targets) == 4

    def refuse(*_args, **_more):
        raise AssertionError("a request")

    monkeypatch.setattr(cluster, "request", refuse)
    monkeypatch.setattr(cluster, "_connect", refuse)
    Waiter(cluster, 5).wait(targets)


def test_kinds_of_other_groups_are_not_waited_for():
    other = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": {"name": "a"}}
    assert targets_of([other]) == []
    assert len(targets_of([other | {"apiVersion": "batch/v1"}])) == 1


def test_progress_is_told_while_waiting(deploy, cluster):
    outcome = deploy(STATEFUL_SET.replace("{{ name }}", "postgres") + "---\n" + DEPLOYMENT, name="api")
    targets = sorted(targets_of(item.after for item in outcome.applied), key=lambda target: target.name, reverse=True)
    lines = []
    with pytest.raises(Failed):
        Waiter(cluster, 4, lines.append).wait(targets)
    assert len(lines) > 1
    assert lines.count("") == 1
    assert lines[-1] == ""
    expected = rf"waiting \d s: StatefulSet {deploy.namespace}/postgres \(0 of 2 updated, 0 ready\), 1 more"
    assert all(re.fullmatch(expected, line) for line in lines[:-1]), lines


@pytest.mark.parametrize("status", [running, NEVER["image name"][0]])
def test_progress_ends_with_an_empty_line_however_the_wait_ends(status, deploy, kubelet, cluster):
    kubelet(status)
    outcome = deploy(DEPLOYMENT, name="api")
    for _again in range(2):
        lines = []
        with contextlib.suppress(Failed):
            Waiter(cluster, 20, lines.append).wait(targets_of(item.after for item in outcome.applied))
        assert lines[-1:] == [""]
        assert lines.count("") == 1


SECRETS = {
    "plain": "correct-horse-battery",
    "url": "p@ss/word:1+1",
    "lines": "-----BEGIN KEY-----\nabcdefghijklmnop\n-----END KEY-----",
    "short": "no",
}
USES = {
    "env": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "plain"}}}]},
    "envFrom": {"envFrom": [{"secretRef": {"name": "s"}}]},
    "volume": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]},
    "projected": {"volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}]}}]},
}


@pytest.fixture
def secret(cluster, namespace):
    """A Secret `s`; one of its values is the namespace's name, which is no secret."""
    path = report.SECRET.path(namespace)
    cluster.request("POST", path, {"metadata": {"name": "s"}, "stringData": SECRETS | {"name": namespace}})


def pod_with(namespace, **parts):
    """A pod whose spec, or whose container, has these."""
    volumes = {key: parts.pop(key) for key in list(parts) if key == "volumes"}
    containers = [{"name": "main", "image": "app:1"} | parts]
    return {"metadata": {"name": "p", "namespace": namespace}, "spec": {"containers": containers} | volumes}


@pytest.mark.parametrize("use", USES)
def test_the_secrets_of_a_pod_are_known_however_it_uses_them(use, cluster, namespace, secret):
    found = report.secret_values(cluster, [pod_with(namespace, **USES[use])])
    assert {SECRETS["plain"], SECRETS["url"], quote(SECRETS["url"], safe=""), "abcdefghijklmnop"} <= found
    assert base64.b64encode(SECRETS["plain"].encode()).decode() in found
    assert not {"no", namespace} & found


def test_secrets_that_may_not_be_read_or_are_absent_do_not_hide_a_failure(cluster, namespace, secret, api_server):
    nobody = Cluster.from_kubeconfig("test", str(api_server.kubeconfig), "nobody")
    assert report.secret_values(nobody, [pod_with(namespace, **USES["env"])]) == set()
    absent = {"envFrom": [{"secretRef": {"name": "absent"}}]}
    assert report.secret_values(cluster, [pod_with(namespace, **absent)]) == set()


def test_a_failure_shows_logs_without_secrets(deploy, kubelet, settle, secret, gate):
    url = quote(SECRETS["url"], safe="")
    log = f"connecting\nlogin as {SECRETS['plain']}\n{'x' * 290}{SECRETS['plain']}\npostgres://u:{url}@db/shop\n"
    log += SECRETS["lines"] + "\nready no more"
    gate.turn = lambda path: (200, log) if "/log?" in path else path
    told = f"dial {SECRETS['plain']}: refused"
    kubelet(waiting("CrashLoopBackOff", told, 3, CRASH | {"message": told}))
    text = DEPLOYMENT.replace("\"{{ image | default('app:1') }}\"", '"app:1", envFrom: [{secretRef: {name: s}}]')
    message = failure(settle, deploy(text, name="api"), through=gate.cluster)
    assert "log of main:" in message
    assert "connecting" in message
    assert "postgres://u:*****@db/shop" in message
    assert "ready no more" in message
    assert deploy.namespace in message
    for part in ("correct-horse", "correct", "p@ss", url, "abcdefghijkl", SECRETS["plain"][:9]):
        assert part not in message


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
        ("Ingress", {}, {"loadBalancer": {}}, False),
        ("Ingress", {}, {"loadBalancer": {"ingress": [{"hostname": "lb.example.com"}]}}, True),
    ],
)
def test_progress(kind, spec, status, ready):
    assert progress({"kind": kind, "metadata": {"generation": 2}, "spec": spec, "status": status})[0] is ready
