"""Back to an earlier revision: the pods, the ownership of fields, and the run after it. On a real API server."""

from __future__ import annotations

import contextlib
import signal

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import rollback
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import progress, targets_of
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
      {{ "terminationGracePeriodSeconds: 5" if extra is defined else "" }}
      containers:
        - name: main
          image: "{{ image }}"
          ports: [{containerPort: 80, name: http}]
          env:
            - {name: B, value: "2"}
            - {name: A, value: "1"}
            {{ '- {name: C, value: "3"}' if extra is defined else "" }}
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


@pytest.fixture
def kubelet(cluster, namespace, patch_status, eventually):
    """Say of the pods of an image that they are ready, or no more, and wait until the ReplicaSet has it."""

    def run(image_name, ready=True):
        def pods():
            found = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods")[1]["items"]
            return [pod for pod in found if pod["spec"]["containers"][0]["image"] == image_name]

        def counted():
            found = cluster.list(rollback.REPLICA_SET, namespace)["items"]
            return [item["status"].get("readyReplicas", 0) for item in found if image(item) == image_name]

        eventually(pods)
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for pod in pods():
            patch_status(f"pods/{pod['metadata']['name']}", {"phase": "Running", "conditions": [condition]})
        eventually(lambda: counted() == [int(ready)])

    return run


@pytest.fixture
def no_controllers(api_server):
    """The controller manager stands still inside `with no_controllers():`."""

    @contextlib.contextmanager
    def run():
        process = api_server.processes["kube-controller-manager"]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

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
    body = deployed("app:2", extra=True)
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
    assert actions(deploy(DEPLOYMENT, image="app:2", extra=True)) == ["changed"]
    assert owned(live(PATH)) == owned(body)
    assert actions(deploy(DEPLOYMENT, image="app:2", extra=True)) == ["unchanged"]


def test_straight_on_to_a_new_release_leaves_no_field_behind(deployed, deploy, cluster, live):
    first = owned(deployed("app:1"))
    body = deployed("app:2", extra=True)
    rollback.undo(cluster, body, rollback.revisions(cluster, body)[0])
    assert actions(deploy(DEPLOYMENT, image="app:3")) == ["changed"]
    assert owned(live(PATH)) == first


def test_an_image_set_by_hand_is_undone_and_conflicts_no_more(deployed, deploy, cluster, namespace, live, eventually):
    deployed("app:1")
    by_hand = {"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "hand:1"}]}}}}
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/api"
    kind = "application/strategic-merge-patch+json"
    cluster.request("PATCH", path, by_hand, {"fieldManager": "kubectl-set"}, kind)
    eventually(lambda: observed(live(PATH)))
    body = live(PATH)
    rollback.undo(cluster, body, rollback.revisions(cluster, body)[0])
    assert actions(deploy(DEPLOYMENT, image="app:1")) == ["unchanged"]
    assert actions(deploy(DEPLOYMENT, image="app:2")) == ["changed"]


def test_what_was_changed_meanwhile_is_left_as_it_is(deployed, deploy, cluster, live):
    body = deployed("app:1", "app:2")
    known = rollback.revisions(cluster, body)
    deploy(DEPLOYMENT, image="app:3")
    with pytest.raises(EngineError, match="was changed meanwhile"):
        rollback.undo(cluster, body, known[0])
    assert image(live(PATH)) == "app:3"


def test_a_status_that_moves_on_is_no_hindrance(deployed, cluster, namespace, live):
    body = deployed("app:1", "app:2")
    known = rollback.revisions(cluster, body)
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/api"
    other = {"metadata": {"annotations": {"somebody": "else"}}}
    cluster.request("PATCH", path, other, content="application/merge-patch+json")
    rollback.undo(cluster, body, known[0])
    assert image(live(PATH)) == "app:1"
    assert live(PATH)["metadata"]["annotations"]["somebody"] == "else"


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


def test_the_current_revision_is_told_before_the_controller_has_seen_it(
    deployed, deploy, cluster, live, no_controllers
):
    deployed("app:1", "app:2")
    with no_controllers():
        deploy(DEPLOYMENT, image="app:3")
        body = live(PATH)
        known = rollback.revisions(cluster, body)
        assert [revision.current for revision in known] == [False, False]
        assert rollback.choose(body, known, None).number == 2
        deploy(DEPLOYMENT, image="app:1")
        body = live(PATH)
        known = rollback.revisions(cluster, body)
        assert [revision.current for revision in known] == [True, False]
        assert not rollback.rolled_out(body, known)


def test_ready_pods_count_more_than_a_higher_number(deployed, cluster, kubelet):
    deployed("app:1")
    kubelet("app:1")
    body = deployed("app:2", "app:3")
    assert rollback.choose(body, rollback.revisions(cluster, body), None).number == 1


def test_a_first_rollout_has_nothing_to_go_back_to(deployed, cluster):
    body = deployed("app:1")
    (line,) = rollback.undo_failed(cluster, targets_of([body]), 1)
    assert "not rolled back" in line
    assert "this is its first one" in line


def test_a_failed_rollout_is_undone_told_and_waited_for(deployed, cluster, live, kubelet):
    deployed("app:1")
    kubelet("app:1")
    body = deployed("app:2", "app:3")
    (line,) = rollback.undo_failed(cluster, targets_of([body]), 30)
    assert line.endswith("rolled back to revision 1 (app:1).")
    assert image(live(PATH)) == "app:1"
    assert progress(live(PATH))[0]


def test_a_revision_that_never_came_is_not_gone_back_to(deployed, cluster, live):
    body = deployed("app:1", "app:2")
    (line,) = rollback.undo_failed(cluster, targets_of([body]), 1)
    assert line.endswith("not rolled back: no earlier revision has ready pods. It has: 1, 2.")
    assert image(live(PATH)) == "app:2"


@pytest.fixture
def outage(deployed, kubelet, eventually, live):
    """A second release that had been ready, and is so no more."""
    deployed("app:1", role="applications")
    kubelet("app:1")
    deployed("app:2", role="applications")
    kubelet("app:2")
    eventually(lambda: progress(live(PATH))[0])
    kubelet("app:2", ready=False)
    eventually(lambda: not progress(live(PATH))[0])
    return live(PATH)


def test_an_outage_is_no_reason_to_undo_a_release_that_came(outage, cluster, live):
    (line,) = rollback.undo_failed(cluster, targets_of([outage]), 1)
    assert line.endswith(
        "not rolled back: its pods have been ready in this revision, so what is wrong is something else."
    )
    assert image(live(PATH)) == "app:2"


@pytest.fixture
def playbook(run_playbook):
    """Run playbooks/rollback.yml or another with extra variables."""

    def run(*arguments, file="playbooks/rollback.yml", **variables):
        return run_playbook(file, *arguments, **variables)

    return run


def test_the_playbook(deployed, playbook, live, kubelet):
    deployed("app:1", role="applications")
    kubelet("app:1")
    deployed("app:2", role="applications")
    text, counts = playbook(rollback_show=True)
    assert counts["changed"] == counts["failed"] == "0", text
    assert "1 ready app:1" in text
    assert "0 ready app:2 (current)" in text
    text, counts = playbook("--check", "--diff")
    assert counts["changed"] == "1", text
    assert "would go back to what revision 1 was (app:1)" in text
    assert "- image: app:2 + image: app:1" in text
    assert image(live(PATH)) == "app:2"
    text, counts = playbook()
    assert counts["changed"] == "1", text
    assert image(live(PATH)) == "app:1"
    text, counts = playbook()
    assert counts["changed"] == counts["failed"] == "0", text
    assert "there is none to undo" in text


def test_what_the_playbook_refuses(deployed, playbook):
    deployed("app:1", role="applications")
    for variables, told in [
        ({"rollback_application": "web"}, "no Deployment web in"),
        ({"rollback_application": "api"}, "no earlier revision to go back to"),
        ({"rollback_application": "api", "rollback_revision": 7}, "has no revision 7. It has: 1."),
        ({"rollback_revision": 1}, "a revision needs the name of its Deployment"),
    ]:
        text, counts = playbook(**variables)
        assert counts["failed"] == "1", text
        assert told in text
        assert "Traceback" not in text


def test_the_playbook_leaves_an_outage_alone(outage, playbook, live):
    text, counts = playbook()
    assert counts["changed"] == counts["failed"] == "0", text
    assert image(live(PATH)) == "app:2"


READY = "citadelbuy.platform.ready: {roles: [applications], timeout: 1, rollback_on_failure: %s}"
MANIFESTS = (
    "citadelbuy.platform.manifests: "
    "{name: applications, templates: [api.yaml.j2], wait_timeout: 1, rollback_on_failure: %s}"
)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("task", [READY, MANIFESTS], ids=["ready", "manifests"])
def test_a_task_undoes_a_failed_rollout_where_it_may_and_fails(
    task, asked, deployed, kubelet, playbook, tmp_path, live, namespace
):
    deployed("app:1", role="applications")
    kubelet("app:1")
    if task == READY:
        deployed("app:2", role="applications")
    (tmp_path / "api.yaml.j2").write_text(DEPLOYMENT)
    file = tmp_path / "site.yml"
    file.write_text(f"- hosts: clusters\n  gather_facts: false\n  tasks:\n    - {task % asked}\n")
    text, counts = playbook(file=file, ns=namespace, image="app:2")
    assert counts["failed"] == "1", text
    assert f"Deployment {namespace}/api: not ready after 1 s" in text
    assert ("rolled back to revision 1 (app:1)." in text) == asked
    assert image(live(PATH)) == ("app:1" if asked else "app:2")
