"""What runs in a pod before a StatefulSet's pods are replaced or go: a real API server, a word for its exec."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import before_roll
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_alarm import Prometheus
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_faults import Nodes, RollingUpdate
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_stores import Postgres
from conftest import Deployer, actions
from test_wait import Kubelet, running

STORE = """
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: store
  namespace: "{{ ns }}"
{% if command | default(true) %}
  annotations: {citadelbuy.io/before-roll: {{ command | default("hand-over --to '0 1'") | to_json }}}
{% endif %}
spec:
  serviceName: {{ service | default("store") }}
  replicas: {{ replicas | default(2) }}
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: store}}
  template:
    metadata:
      labels: {app: store}
      annotations: {kubectl.kubernetes.io/default-container: server}
    spec:
      containers:
        - {name: beside, image: "beside:1"}
        - {name: server, image: "{{ image | default('server:1') }}"}
"""
HAND_OVER = "`hand-over --to '0 1'`"
Calls = list[tuple[Any, ...]]


class Exec:
    """Stands for the exec of a kubelet."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.calls: Calls = []
        self.images: list[str] = []  # of the StatefulSet, when it was called
        self.answer = "store-0 leads\nafter store-1\n"
        self.error = ""

    def __call__(self, _cluster: Cluster, namespace: str, *rest: Any) -> str:
        self.calls.append((namespace, *rest[:3]))
        store = self.cluster.request("GET", f"/apis/apps/v1/namespaces/{namespace}/statefulsets/store")[1]
        self.images.append(store["spec"]["template"]["spec"]["containers"][1]["image"])
        if self.error:
            raise EngineError(self.error)
        return self.answer


@pytest.fixture
def exec_in_pod(cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Exec:
    """What would run in a pod."""
    found = Exec(cluster, namespace)
    monkeypatch.setattr(before_roll, "run_in_pod", found)
    return found


@pytest.fixture
def ready(cluster: Cluster, namespace: str, eventually: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Have pods become ready, and wait until so many of an image are."""
    held: set[str] = set()
    kubelet = Kubelet(cluster, namespace, lambda pod: None if pod["metadata"]["name"] in held else running(pod))

    def wait(number: int = 2, image: str = "server:1", never: str = "") -> None:
        held.update({never} - {""})
        if not kubelet.is_alive():
            kubelet.start()
        path = f"/api/v1/namespaces/{namespace}/pods"

        def are_there() -> bool:
            pods = cluster.request("GET", path)[1]["items"]
            store = cluster.request("GET", f"/apis/apps/v1/namespaces/{namespace}/statefulsets/store")[1]
            seen = (store.get("status") or {}).get("readyReplicas") == number
            return seen and number == sum(
                pod["spec"]["containers"][1]["image"] == image and before_roll.is_ready(pod) for pod in pods
            )

        eventually(are_there)

    yield wait
    kubelet.stopped.set()
    if kubelet.is_alive():
        kubelet.join()


def store_of(outcome: Any) -> Any:
    return next(item for item in outcome.applied if item.kind == "StatefulSet")


def test_it_runs_before_the_change_and_says_what(deploy: Deployer, exec_in_pod: Exec, ready: Callable) -> None:
    assert actions(deploy(STORE)) == ["created"]
    ready()
    outcome = deploy(STORE, image="server:2")
    assert actions(outcome) == ["changed"]
    assert exec_in_pod.calls == [(deploy.namespace, "store-0", "server", ["hand-over", "--to", "0 1"])]
    assert exec_in_pod.images == ["server:1"]
    assert store_of(outcome).reason == "store-0 leads after store-1"
    assert store_of(outcome).summary()["reason"] == "store-0 leads after store-1"
    ready(image="server:2")
    assert actions(deploy(STORE, image="server:2")) == ["unchanged"]
    assert len(exec_in_pod.calls) == 1


@pytest.mark.parametrize("changed", [{"replicas": 3}, {"command": "another"}, {}])
def test_not_where_no_pod_is_replaced(deploy: Deployer, exec_in_pod: Exec, ready: Callable, changed: Any) -> None:
    deploy(STORE)
    ready()
    deploy(STORE, **changed)
    assert exec_in_pod.calls == []


def test_before_members_go(deploy: Deployer, exec_in_pod: Exec, ready: Callable) -> None:
    deploy(STORE, replicas=3)
    ready(3)
    assert store_of(deploy(STORE, check=True, replicas=1)).reason == f"{HAND_OVER} would run in one of its pods first"
    assert store_of(deploy(STORE, replicas=1)).reason == "store-0 leads after store-1"
    assert len(exec_in_pod.calls) == 1


def test_not_with_one_replica(deploy: Deployer, exec_in_pod: Exec, ready: Callable) -> None:
    deploy(STORE, replicas=1)
    ready(1)
    outcome = deploy(STORE, replicas=1, image="server:2")
    assert (exec_in_pod.calls, store_of(outcome).reason) == ([], "")


def test_a_check_says_that_it_would(deploy: Deployer, exec_in_pod: Exec, ready: Callable) -> None:
    deploy(STORE)
    ready()
    outcome = deploy(STORE, check=True, image="server:2")
    assert exec_in_pod.calls == []
    assert store_of(outcome).reason == f"{HAND_OVER} would run in one of its pods first"
    assert store_of(deploy(STORE, check=True)).reason == ""


def test_where_it_fails_nothing_is_replaced(
    deploy: Deployer, exec_in_pod: Exec, ready: Callable, live: Callable
) -> None:
    deploy(STORE)
    ready()
    exec_in_pod.error = "exec in pod shop/store-0, container server: nobody takes over."
    outcome = deploy(STORE, image="server:2")
    (error,) = outcome.errors
    assert error.startswith(
        f"StatefulSet {deploy.namespace}/store: its pods are left as they are, for {HAND_OVER} has to"
    )
    assert "container server: nobody takes over. To do: " in error
    assert f"kubectl -n {deploy.namespace} annotate statefulset store citadelbuy.io/before-roll-" in error
    containers = live("apis/apps/v1:statefulsets/store")["spec"]["template"]["spec"]["containers"]
    assert containers[1]["image"] == "server:1"


def test_the_way_that_the_error_shows_leads_out(
    deploy: Deployer, exec_in_pod: Exec, ready: Callable, cluster: Cluster
) -> None:
    deploy(STORE)
    ready()
    exec_in_pod.error = "no"
    path = f"/apis/apps/v1/namespaces/{deploy.namespace}/statefulsets/store"
    body = {"metadata": {"annotations": {before_roll.BEFORE_ROLL: None}}}
    cluster.request("PATCH", path, body, content="application/merge-patch+json")
    outcome = deploy(STORE, image="server:2")
    assert actions(outcome) == ["changed"]
    assert store_of(outcome).after["metadata"]["annotations"][before_roll.BEFORE_ROLL]


def test_pods_of_a_version_without_it_are_not_asked(deploy: Deployer, exec_in_pod: Exec, ready: Callable) -> None:
    deploy(STORE, command="")
    ready()
    assert actions(deploy(STORE, image="server:2")) == ["changed"]
    assert exec_in_pod.calls == []


def test_a_roll_that_repairs_is_not_held_up(
    deploy: Deployer, exec_in_pod: Exec, ready: Callable, live: Callable, eventually: Callable
) -> None:
    deploy(STORE)
    ready(never="store-1", number=1)
    # store-1 never becomes ready, and store-0 is of the template before.
    assert actions(deploy(STORE, image="server:2")) == ["changed"]
    assert len(exec_in_pod.calls) == 1

    def seen() -> bool:
        store = live("apis/apps/v1:statefulsets/store")
        return store["status"]["observedGeneration"] == store["metadata"]["generation"]

    eventually(seen)
    outcome = deploy(STORE, image="server:3")
    assert actions(outcome) == ["changed"]
    assert len(exec_in_pod.calls) == 1
    assert store_of(outcome).reason == f"no ready pod could run {HAND_OVER} first"


def test_a_drill_does_it_too(deploy: Deployer, exec_in_pod: Exec, ready: Callable) -> None:
    deploy(STORE)
    ready()

    store = Postgres(deploy.cluster, deploy.namespace)
    store.name = "store"
    prometheus = Prometheus(deploy.cluster, "monitoring", 0)
    RollingUpdate(deploy.cluster, store, Nodes("none", "/nonexistent"), prometheus).begin()
    assert exec_in_pod.calls == [(deploy.namespace, "store-0", "server", ["hand-over", "--to", "0 1"])]
    ready(image="server:1")


def test_also_before_it_is_replaced(deploy: Deployer, exec_in_pod: Exec, ready: Callable) -> None:
    deploy(STORE)
    ready()
    named = [f"StatefulSet {deploy.namespace}/store"]
    outcome = deploy(STORE, image="server:2", service="another", replace=named)
    assert actions(outcome) == ["replaced"]
    assert exec_in_pod.images == ["server:1"]
    assert store_of(outcome).reason.startswith("store-0 leads after store-1; its pods go on")
