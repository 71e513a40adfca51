"""Back to an earlier revision: the pods, the ownership of fields, and the run after it. On a real API server."""

from __future__ import annotations

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import rollback
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import targets_of
from conftest import actions

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: "{{ ns }}", labels: {tier: api}}
spec:
  {% if replicas is defined %}replicas: {{ replicas }}{% endif %}

  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec:
      containers:
        - name: main
          image: "{{ image }}"
          ports: [{containerPort: 80, name: http}]
          env: [{name: B, value: "2"}, {name: A, value: "1"}]
"""
AUTOSCALER = """
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: api, namespace: "{{ ns }}"}
spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: api}, minReplicas: 3, maxReplicas: 10}
"""
PATH = "apis/apps/v1:deployments/api"


@pytest.fixture
def deployed(deploy, live, eventually):
    """Deploy some images, one after the other, each seen by the controller."""

    def run(*images, template=DEPLOYMENT, **variables):
        for image in images:
            deploy(template, image=image, **variables)
            eventually(lambda: observed(live(PATH)))
        return live(PATH)

    return run


def observed(body):
    status = body.get("status") or {}
    return status.get("observedGeneration") == body["metadata"]["generation"]


def image(body):
    return body["spec"]["template"]["spec"]["containers"][0]["image"]


def owned(body):
    """Manager, operation and fields of everything but the status."""
    return sorted(
        (entry["manager"], entry["operation"], str(entry["fieldsV1"]))
        for entry in body["metadata"]["managedFields"]
        if not entry.get("subresource") and "kube-controller-manager" not in entry["manager"]
    )


def test_back_and_forth_without_conflict_or_leftover(deployed, deploy, cluster, live, eventually):
    first = owned(deployed("app:1"))
    body = deployed("app:2")
    known = rollback.revisions(cluster, body)
    assert [(item.number, item.images, item.current) for item in known] == [
        (1, ["app:1"], False),
        (2, ["app:2"], True),
    ]
    assert image(rollback.undo(cluster, body, known[0], dry=True)) == "app:1"
    assert image(live(PATH)) == "app:2", "a dry run"
    assert image(rollback.undo(cluster, body, known[0])) == "app:1"
    eventually(lambda: [item.number for item in rollback.revisions(cluster, live(PATH))] == [2, 3])
    assert "pod-template-hash" not in live(PATH)["spec"]["template"]["metadata"]["labels"]
    generation = live(PATH)["metadata"]["generation"]
    assert actions(deploy(DEPLOYMENT, image="app:1")) == ["unchanged"]
    assert owned(live(PATH)) == first
    assert live(PATH)["metadata"]["generation"] == generation
    assert actions(deploy(DEPLOYMENT, image="app:2")) == ["changed"]
    assert actions(deploy(DEPLOYMENT, image="app:2")) == ["unchanged"]


def test_an_autoscaler_keeps_the_replicas(deployed, cluster, namespace, live):
    body = deployed("app:1", "app:2", template=DEPLOYMENT + AUTOSCALER)
    scale = {"spec": {"replicas": 7}}
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/api/scale"
    cluster.request("PATCH", path, scale, content="application/merge-patch+json")
    rollback.undo(cluster, body, rollback.revisions(cluster, body)[0])
    assert live(PATH)["spec"]["replicas"] == 7


def test_the_revision_is_named_or_the_newest_earlier_one(deployed, cluster):
    body = deployed("app:1", "app:2", "app:3")
    known = rollback.revisions(cluster, body)
    assert rollback.choose(body, known, None).images == ["app:2"]
    assert rollback.choose(body, known, 1).images == ["app:1"]
    with pytest.raises(EngineError, match=r"has no revision 9\. It has: 1, 2, 3\."):
        rollback.choose(body, known, 9)


def test_ready_pods_count_more_than_a_higher_number(deployed, cluster, patch_status, live):
    body = deployed("app:1", "app:2", "app:3")
    for item in live("apis/apps/v1:replicasets")["items"]:
        if item["metadata"]["annotations"][rollback.REVISION] == "1":
            status = {"replicas": 1, "fullyLabeledReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}
            patch_status(f"apis/apps/v1:replicasets/{item['metadata']['name']}", status)
            known = rollback.revisions(cluster, body)
    assert rollback.choose(body, known, None).number == 1


def test_a_first_rollout_has_nothing_to_go_back_to(deployed, cluster):
    body = deployed("app:1")
    with pytest.raises(EngineError, match="no earlier revision"):
        rollback.choose(body, rollback.revisions(cluster, body), None)
    (line,) = rollback.undo_failed(cluster, targets_of([body]), 1)
    assert "not rolled back" in line
    assert "this is its first one" in line


def test_a_failed_rollout_is_undone_and_told(deployed, cluster, live):
    body = deployed("app:1", "app:2")
    first, second = rollback.undo_failed(cluster, targets_of([body]), 1)
    assert first.endswith("rolled back to revision 1 (app:1).")
    assert "not ready either" in second  # no kubelet here
    assert image(live(PATH)) == "app:1"
