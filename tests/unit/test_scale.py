"""Pods by hand: the limits, the wait, and the run after it. On a real API server, with the autoscalers' controller."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import scale
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from conftest import ApiServer, Deployer, Played, actions, die_with_parent
from test_wait import Kubelet, running

API = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: "{{ ns }}", labels: {app.kubernetes.io/component: api}}
spec:
{% if replicas is defined %}
  replicas: {{ replicas }}
{% endif %}
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec: {containers: [{name: main, image: "api:1", resources: {requests: {cpu: 500m, memory: 1Gi}}}]}
"""
AUTOSCALER = """
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: api-hpa, namespace: "{{ ns }}"}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: api}
  minReplicas: 2
  maxReplicas: 4
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 70}}}]
"""
DEPLOYMENT, HPA = "apis/apps/v1:deployments/api", "apis/autoscaling/v2:horizontalpodautoscalers/api-hpa"
Live = Callable[[str], dict[str, Any]]
Play = Callable[..., Played]


@pytest.fixture(scope="module")
def controller(api_server: ApiServer) -> Iterator[subprocess.Popen[bytes]]:
    """The autoscalers' controller, which the other tests do without; it looks each second."""
    command = [api_server.bin / "kube-controller-manager", "--kubeconfig", api_server.kubeconfig]
    command += ["--controllers=horizontal-pod-autoscaler-controller", "--horizontal-pod-autoscaler-sync-period=1s"]
    command += ["--leader-elect=false", "--secure-port=0", "--authentication-skip-lookup"]
    with (api_server.folder / "autoscaler.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def node(cluster: Cluster) -> Iterator[None]:
    """A node with room for 20 pods of the API; no kubelet."""
    cluster.request("POST", "/api/v1/nodes", {"metadata": {"name": "scale"}})
    status = {
        "allocatable": {"cpu": "10", "memory": "64Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    merge = "application/merge-patch+json"
    cluster.request("PATCH", "/api/v1/nodes/scale/status", {"status": status}, content=merge)
    yield
    cluster.request("DELETE", "/api/v1/nodes/scale")


@pytest.fixture
def deployed(
    deploy: Deployer, controller: subprocess.Popen[bytes], node: None, live: Live, eventually: Callable[..., None]
) -> Iterator[Callable[..., Any]]:
    """Deploy the API, and have its pods become ready."""
    kubelet = Kubelet(deploy.cluster, deploy.namespace, running)
    kubelet.start()

    def run(template: str = API + AUTOSCALER, ready: int = 2, **variables: Any) -> list[str]:
        done = actions(deploy(template, role="applications", **variables))
        eventually(lambda: live(DEPLOYMENT)["status"].get("readyReplicas") == ready)
        return done

    yield run
    kubelet.stopped.set()
    kubelet.join()


@pytest.fixture
def play(run_playbook: Play) -> Play:
    """Run playbooks/scale.yml."""
    return lambda *arguments, **variables: run_playbook("playbooks/scale.yml", *arguments, **variables)


def limits(live: Live) -> tuple[int, int]:
    spec = live(HPA)["spec"]
    return spec["minReplicas"], spec["maxReplicas"]


def owned(body: dict[str, Any]) -> list[tuple[str, str]]:
    """Manager and fields of everything but the status."""
    return sorted(
        (entry["manager"], str(entry["fieldsV1"]))
        for entry in body["metadata"]["managedFields"]
        if not entry.get("subresource")
    )


def test_there_and_back(deployed: Callable, play: Play, live: Live) -> None:
    deployed()
    first = owned(live(HPA))
    text, counts = play()
    assert counts["changed"] == "0", text
    assert "api: 2 replicas, 2 ready; 2 to 4 by api-hpa, cpu: <unknown>/70%" in text
    text, counts = play("--check", "--diff", scale_application="api", scale_replicas=3)
    assert counts["changed"] == "1", text
    assert "api: 3 pods would be asked for; the autoscaler would keep 3 to 4 by api-hpa (before: 2 to 4)" in text
    assert "- minReplicas: 2 + minReplicas: 3" in text
    assert limits(live) == (2, 4)
    text, counts = play(scale_application="api", scale_replicas=3)
    assert counts["changed"] == "1", text
    assert "api: 3 pods ready, 3 of them now" in text
    assert "to keep this, applications_api_min_replicas: 3 there" in text
    assert limits(live) == (3, 4)
    assert live(DEPLOYMENT)["status"]["readyReplicas"] == 3
    assert owned(live(HPA)) == first
    text, counts = play(scale_application="api", scale_replicas=3)
    assert counts["changed"] == counts["failed"] == "0", text
    assert deployed(ready=3) == ["unchanged", "changed"]
    assert limits(live) == (2, 4)
    assert owned(live(HPA)) == first


def test_more_than_its_maximum_and_fewer_than_now(deployed: Callable, play: Play, live: Live) -> None:
    deployed()
    text, counts = play(scale_application="api", scale_replicas=6)
    assert counts["changed"] == "1", text
    assert "keeps 6 to 6 by api-hpa (before: 2 to 4)" in text
    assert "applications_api_min_replicas: 6 and applications_api_max_replicas: 6 there" in text
    assert limits(live) == (6, 6)
    text, counts = play(scale_application="api", scale_replicas=1)
    assert counts["changed"] == "1", text
    assert "keeps 1 to 6 by api-hpa (before: 6 to 6), and takes pods away as their load allows" in text
    assert limits(live) == (1, 6)


def test_without_autoscaler_the_deployment_itself(deployed: Callable, play: Play, live: Live) -> None:
    deployed(API, replicas=2)
    first = owned(live(DEPLOYMENT))
    text, counts = play(scale_application="api")
    assert "2 replicas, 2 ready; no autoscaler" in text
    text, counts = play(scale_application="api", scale_replicas=4)
    assert counts["changed"] == "1", text
    assert "api: 4 pods ready, 4 of them now" in text
    assert live(DEPLOYMENT)["spec"]["replicas"] == 4
    assert deployed(API, replicas=2) == ["changed"]
    assert owned(live(DEPLOYMENT)) == first


def test_what_is_refused(deployed: Callable, play: Play, cluster: Cluster, namespace: str, live: Live) -> None:
    deployed()
    path = f"/api/v1/namespaces/{namespace}/pods"
    for pod in cluster.request("GET", path)[1]["items"]:  # as a scheduler would
        name = pod["metadata"]["name"]
        binding = {"metadata": {"name": name}, "target": {"kind": "Node", "name": "scale"}}
        cluster.request("POST", f"{path}/{name}/binding", binding)
    for variables, told in [
        ({"scale_application": "web", "scale_replicas": 3}, f"no Deployment web in {namespace}; there are: api."),
        ({"scale_application": "api", "scale_replicas": 0}, "scale_replicas is 0: write 1 or more"),
        ({"scale_replicas": 3}, "scale_replicas needs scale_application"),
        (
            {"scale_application": "api", "scale_replicas": 23},
            "the cluster is too small: 21 more pods request 10.50 cores and 21.0 GiB; 9.00 cores and 62.0 GiB are free"
            " on 1 node: add nodes, or ask for fewer pods.",
        ),
    ]:
        text, counts = play(**variables)
        assert counts["failed"] == "1", text
        assert told in text
        assert "Traceback" not in text
    assert limits(live) == (2, 4)
    text, counts = play("--check", scale_application="api", scale_replicas=23, preflight_capacity_required=False)
    assert counts["failed"] == "0", text
    assert "too small" in text


def test_switched_off_it_is_not_waited_for(deployed: Callable, play: Play, cluster: Cluster, namespace: str) -> None:
    deployed()
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/api/scale"
    cluster.request("PATCH", path, {"spec": {"replicas": 0}}, content="application/merge-patch+json")
    text, counts = play(scale_application="api", scale_replicas=3)
    assert counts["failed"] == "1", text
    assert "has 0 replicas, which switches its autoscaler off" in text


def test_an_autoscaler_that_does_nothing_is_told(
    deployed: Callable, controller: subprocess.Popen[bytes], cluster: Cluster, namespace: str, live: Live
) -> None:
    deployed()
    [api] = scale.applications(cluster, namespace, [live(DEPLOYMENT)])
    controller.send_signal(signal.SIGSTOP)
    try:
        scale.scale(cluster, api, 4)
        with pytest.raises(EngineError, match=r"api-hpa has not given Deployment .*/api its 4 replicas in 0 s"):
            scale.wait_for_autoscaler(cluster, api, 4, 0)
        scale.scale(cluster, api, 2)
        with pytest.raises(EngineError, match="another run has set its minimum to 2 meanwhile"):
            scale.wait_for_autoscaler(cluster, api, 4, 0)
    finally:
        controller.send_signal(signal.SIGCONT)
