"""What a set applied before and no longer renders goes; nothing else does. On a real API server."""

from __future__ import annotations

import threading
import time

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, parent
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster
from conftest import Deployer, actions

CONFIG = """
---
apiVersion: v1
kind: ConfigMap
metadata: {name: "NAME", namespace: "{{ ns }}"}
data: {a: "{{ a | default('1') }}"}
"""
DEPLOYMENT = """
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: "NAME", namespace: "{{ ns }}"}
spec:
  replicas: 1
  selector: {matchLabels: {app: "NAME"}}
  template:
    metadata: {labels: {app: "NAME"}}
    spec: {containers: [{name: main, image: "app:1"}]}
"""
GUARDED = {
    "PersistentVolumeClaim": """
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: "{{ ns }}"}
spec: {accessModes: [ReadWriteOnce], storageClassName: none, resources: {requests: {storage: 1Gi}}}
""",
    "StatefulSet": """
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: data, namespace: "{{ ns }}"}
spec:
  serviceName: data
  selector: {matchLabels: {app: data}}
  template: {metadata: {labels: {app: data}}, spec: {containers: [{name: main, image: "store:1"}]}}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
""",
    "Secret": """
---
apiVersion: v1
kind: Secret
metadata: {name: data, namespace: "{{ ns }}", annotations: {citadelbuy.io/generate: password}}
""",
}
NAMESPACE = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: '{{ ns }}-more'}\n"


def config(*names):
    return "".join(CONFIG.replace("NAME", name) for name in names)


def deployment(name):
    return DEPLOYMENT.replace("NAME", name)


def told(outcome):
    """(action, kind/name) of everything that is not unchanged."""
    assert outcome.errors == []
    return [(item.action, f"{item.kind}/{item.name}") for item in outcome.applied if item.action != "unchanged"]


def names(live, path="configmaps"):
    return {item["metadata"]["name"] for item in live(path)["items"]} - {"kube-root-ca.crt", "applyset-test"}


def test_check_shows_it_and_the_run_does_it(deploy, live):
    deploy(config("one", "two") + deployment("api"), prune=True)
    expected = [("pruned", "ConfigMap/two"), ("pruned", "Deployment/api")]
    assert told(deploy(config("one"), prune=True, check=True)) == expected
    assert names(live) == {"one", "two"}
    assert told(deploy(config("one"), prune=True)) == expected
    assert names(live) == {"one"}
    assert names(live, "apis/apps/v1:deployments") == set()
    assert told(deploy(config("one"), prune=True)) == []


def test_a_new_name_is_one_created_and_one_pruned(deploy, live):
    deploy(deployment("api"), prune=True)
    outcome = deploy(deployment("backend"), prune=True)
    assert told(outcome) == [("created", "Deployment/backend"), ("pruned", "Deployment/api")]


def test_a_condition_that_turned_false_takes_the_last_object(deploy, live):
    template = "{% if wanted %}" + config("one") + "{% endif %}"
    deploy(template, wanted=True, prune=True)
    assert told(deploy(template, wanted=False, prune=True)) == [("pruned", "ConfigMap/one")]
    assert told(deploy(template, wanted=False, prune=True)) == []


def test_only_its_own_set(deploy, live, cluster, namespace):
    deploy(config("theirs"), role="other", prune=True)
    cluster.request("POST", f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "by-hand"}})
    deploy(config("ours"), prune=True)
    assert told(deploy("", prune=True)) == [("pruned", "ConfigMap/ours")]
    assert names(live) == {"theirs", "by-hand", "applyset-other"}


def test_an_object_that_another_set_took_over_stays(deploy, live):
    deploy(config("one"), prune=True)
    deploy(config("one"), role="other", prune=True)
    assert told(deploy("", prune=True)) == []
    assert "one" in names(live)


def test_what_a_controller_has_made_with_its_owner_s_labels_stays(deploy, live, cluster, namespace):
    """As the EndpointSlices of a Service."""
    deploy(config("owner", "made"), prune=True)
    owner = live("configmaps/owner")["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner, "controller": True}
    path = f"/api/v1/namespaces/{namespace}/configmaps/made"
    body = {"metadata": {"ownerReferences": [reference]}}
    cluster.request("PATCH", path, body, content="application/merge-patch+json")
    assert told(deploy(config("owner"), prune=True)) == []
    assert names(live) == {"owner", "made"}


def test_kinds_that_no_template_renders_any_more_are_remembered(deploy, live):
    deploy(config("one") + deployment("api"), prune=True)
    deploy(config("one") + deployment("api"), prune=False)
    assert told(deploy(config("one"), prune=False)) == [], "prune: false deletes nothing"
    assert told(deploy(config("one"), prune=True)) == [("pruned", "Deployment/api")]


def test_what_is_applied_outlives_its_owner(deploy, live, cluster, namespace):
    """Such as a Secret that the inventory's values take over from a SealedSecret."""
    deploy(config("owned", "owner"), prune=True)
    owner = live("configmaps/owner")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    body = {"metadata": {"ownerReferences": [reference]}}
    path = f"/api/v1/namespaces/{namespace}/configmaps/owned"
    cluster.request("PATCH", path, body, content="application/merge-patch+json")
    owned = live("configmaps/owned")["metadata"]["uid"]
    assert told(deploy(config("owned"), prune=True)) == [("pruned", "ConfigMap/owner")]
    deadline = time.monotonic() + 60
    while live("configmaps/owned")["metadata"].get("ownerReferences") or "owner" in names(live):
        assert time.monotonic() < deadline, "the garbage collector has not let go of it"
        time.sleep(0.1)
    assert live("configmaps/owned")["metadata"]["uid"] == owned


@pytest.mark.parametrize("kind", GUARDED)
def test_data_is_kept_until_it_is_named(kind, deploy, namespace):
    deploy(GUARDED[kind], prune=True)
    for check in (True, False, False):
        (item,) = deploy("", prune=True, check=check).applied
        assert item.action == "kept"
        assert f'platform_prune_data: ["{kind} {namespace}/data"]' in item.reason
    word = [f"{kind} {namespace}/data"]
    assert told(deploy("", prune=True, check=True, prune_data=word)) == [("pruned", f"{kind}/data")]
    assert told(deploy("", prune=True, prune_data=word)) == [("pruned", f"{kind}/data")]


def test_a_namespace_is_kept_until_it_is_named(deploy, namespace, cluster):
    deploy(NAMESPACE, prune=True)
    assert told(deploy("", prune=True)) == [("kept", f"Namespace/{namespace}-more")]
    assert told(deploy("", prune=True, prune_data=[f"Namespace {namespace}-more"])) == [
        ("pruned", f"Namespace/{namespace}-more")
    ]


class Interrupted(Cluster):
    """A cluster where something happens just before the first request of a method."""

    def arm(self, method, happens):
        self.method, self.happens, self.armed = method, happens, True

    def request(self, method, path, *arguments, **options):
        if getattr(self, "armed", False) and method == self.method:
            self.armed = False
            self.happens()
        return super().request(method, path, *arguments, **options)


@pytest.fixture
def interrupted(api_server):
    return Interrupted.from_kubeconfig("test", str(api_server.kubeconfig))


def test_what_another_run_has_applied_meanwhile_stays(deploy, live, interrupted):
    deploy(config("one", "two"), prune=True)
    interrupted.arm("DELETE", lambda: deploy(config("one", "two"), a="2"))
    (_one, two) = deploy(config("one"), prune=True, cluster=interrupted).applied
    assert (two.action, two.reason) == ("kept", "another run or user has changed it since this run began")
    assert names(live) == {"one", "two"}
    assert told(deploy(config("one"), prune=True, a="2")) == [("pruned", "ConfigMap/two")]


def test_what_only_its_controller_has_touched_goes(deploy, live, interrupted, patch_status):
    deploy(deployment("api"), prune=True)
    interrupted.arm("DELETE", lambda: patch_status("apis/apps/v1:deployments/api", {"observedGeneration": 7}))
    assert told(deploy("", prune=True, cluster=interrupted)) == [("pruned", "Deployment/api")]


def test_what_another_run_has_deleted_meanwhile_is_no_failure(deploy, live, cluster, namespace, interrupted):
    deploy(config("one"), prune=True)
    path = f"/api/v1/namespaces/{namespace}/configmaps/one"
    interrupted.arm("DELETE", lambda: cluster.request("DELETE", path))
    assert told(deploy("", prune=True, cluster=interrupted)) == [("pruned", "ConfigMap/one")]


def die(*_):
    raise RuntimeError("killed")


def test_a_run_that_died_before_it_pruned_is_completed_by_the_next(deploy, live, interrupted):
    deploy(config("one") + deployment("api"), prune=True)
    interrupted.arm("DELETE", die)
    with pytest.raises(RuntimeError):
        deploy(config("new"), prune=True, cluster=interrupted)
    outcome = deploy(config("new"), prune=True)
    assert told(outcome) == [("pruned", "ConfigMap/one"), ("pruned", "Deployment/api")]
    assert names(live) == {"new"}


def test_a_run_that_died_while_it_applied_leaves_no_stranger(deploy, live, monkeypatch):
    """Its new kind is in the parent before the first object of it exists."""
    deploy(config("one"), prune=True)
    monkeypatch.setattr(parent.Parent, "finish", die)
    with pytest.raises(RuntimeError):
        deploy(config("one") + deployment("api"), prune=True)
    monkeypatch.undo()
    assert names(live, "apis/apps/v1:deployments") == {"api"}
    assert told(deploy(config("one"), prune=True)) == [("pruned", "Deployment/api")]


def test_runs_at_the_same_time_end_in_the_right_state(deploy, live):
    deploy(config("old", "one"), prune=True)
    outcomes = []
    wanted = config("one", "two") + deployment("api")
    threads = [threading.Thread(target=lambda: outcomes.append(deploy(wanted, prune=True))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.errors for outcome in outcomes] == [[]] * 4
    assert names(live) == {"one", "two"}
    assert names(live, "apis/apps/v1:deployments") == {"api"}
    assert told(deploy(wanted, prune=True)) == []


def test_an_error_prunes_nothing(deploy, live):
    deploy(config("one", "two"), prune=True)
    assert deploy(config("one") + config("Bad_"), prune=True).errors
    assert names(live) == {"one", "two"}


def test_the_parent_is_that_of_the_kep(deploy, live, namespace, cluster):
    elsewhere = config("one").replace("{{ ns }}", "{{ ns }}-more")
    deploy(NAMESPACE + elsewhere + deployment("api"), prune=True)
    metadata = live("configmaps/applyset-test")["metadata"]
    assert metadata["labels"][parent.ID] == applyset.applyset_id("test", namespace)
    assert metadata["annotations"] == {
        "applyset.kubernetes.io/tooling": "citadelbuy-platform/v1",
        "applyset.kubernetes.io/contains-group-kinds": "ConfigMap,Deployment.apps,Namespace",
        "applyset.kubernetes.io/additional-namespaces": f"{namespace}-more",
    }
    deploy(config("one"), prune=True, prune_data=[f"Namespace {namespace}-more"])
    metadata = live("configmaps/applyset-test")["metadata"]
    assert metadata["annotations"]["applyset.kubernetes.io/contains-group-kinds"] == "ConfigMap"
    assert metadata["annotations"]["applyset.kubernetes.io/additional-namespaces"] == ""


def test_the_set_of_another_tool_is_left_alone(deploy, cluster, namespace, live):
    body = {
        "metadata": {"name": "applyset-test", "annotations": {parent.TOOLING: "kubectl/v1.35"}},
        "data": {"theirs": "1"},
    }
    cluster.request("POST", f"/api/v1/namespaces/{namespace}/configmaps", body)
    with pytest.raises(Exception, match=r"belongs to kubectl/v1\.35"):
        deploy(config("one"), prune=True)
    assert live("configmaps/applyset-test")["data"] == {"theirs": "1"}


def test_a_lost_or_spoilt_record_costs_time_alone(deploy, cluster, namespace, live):
    deploy(config("one") + deployment("api"), prune=True)
    path = f"/api/v1/namespaces/{namespace}/configmaps/applyset-test"
    for record in ("not json", "[]", "{}"):
        patch = {"data": {parent.RECORD: record}}
        cluster.request("PATCH", path, patch, content="application/merge-patch+json")
        assert actions(deploy(config("one") + deployment("api"), prune=True)) == ["unchanged"] * 2
    cluster.request("DELETE", path)
    assert actions(deploy(config("one") + deployment("api"), prune=True)) == ["unchanged"] * 2


def counting(api_server):
    requests = []

    class Counting(Cluster):
        def request(self, method, path, *arguments, **options):
            requests.append(f"{method} {path}")
            return super().request(method, path, *arguments, **options)

    return Counting.from_kubeconfig("test", str(api_server.kubeconfig)), requests


def test_no_change_costs_a_list_a_kind_and_writes_nothing(deploy, api_server):
    everything = config(*(f"c{number}" for number in range(30))) + deployment("api") + GUARDED["Secret"]
    deploy(everything, prune=True)
    cluster, requests = counting(api_server)
    assert told(deploy(everything, prune=True, cluster=cluster)) == []
    assert [line for line in requests if not line.startswith("GET ")] == []
    assert len([line for line in requests if "/namespaces/" in line]) == 4, requests  # the parent and three kinds


@pytest.mark.parametrize(
    ("path", "patch"),
    [
        ("configmaps/one", {"data": {"a": "theirs"}}),
        ("configmaps/one", {"metadata": {"labels": {"app.kubernetes.io/part-of": "theirs"}}}),
        ("secrets/data", {"data": {"other": "dGhlaXJz"}}),
    ],
)
def test_a_record_never_hides_what_others_have_changed(path, patch, deploy, cluster, namespace, live):
    secret = GUARDED["Secret"] + "data: {other: b3Vycw==}\n"
    deploy(config("one") + secret, prune=True)
    before = live(path)
    cluster.request("PATCH", f"/api/v1/namespaces/{namespace}/{path}", patch, None, "application/merge-patch+json")
    deploy(config("one") + secret, force=True, prune=True)
    after = live(path)
    assert after.get("data") == before["data"]
    assert after["metadata"]["labels"] == before["metadata"]["labels"]


def test_a_member_without_delete_right_is_told(deploy, api_server, cluster, namespace):
    deploy(config("one"), prune=True)
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "create", "patch"]}]
    cluster.request("POST", f"{rbac}/roles", {"metadata": {"name": "deployer"}, "rules": rules})
    binding = {
        "metadata": {"name": "deployer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "deployer"},
        "subjects": [{"kind": "User", "name": "nobody", "apiGroup": "rbac.authorization.k8s.io"}],
    }
    cluster.request("POST", f"{rbac}/rolebindings", binding)
    nobody = Cluster.from_kubeconfig("test", str(api_server.kubeconfig), "nobody")
    (error,) = deploy("", prune=True, cluster=nobody).errors
    assert 'User "nobody" cannot delete resource "configmaps"' in error
    assert "To do: grant this" in error


def test_the_parent_comes_back_with_its_namespace(cluster, tmp_path, namespace):
    """Its namespace is a member of the set, and on its way out when the run begins."""
    deploy = Deployer(cluster, tmp_path, f"{namespace}-own")
    template = NAMESPACE.replace("-more", "")
    deploy(template, prune=True)
    cluster.request("DELETE", f"/api/v1/namespaces/{deploy.namespace}")
    assert actions(deploy(template, prune=True)) == ["created"]
    body = cluster.request("GET", f"/api/v1/namespaces/{deploy.namespace}/configmaps/applyset-test")[1]
    assert "Namespace" in body["metadata"]["annotations"][parent.GROUP_KINDS]


JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: "{{ name }}", namespace: "{{ ns }}"}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: "migrate:1"}]}}}
"""


def test_a_job_at_work_is_not_cut_off(deploy, live, cluster, namespace, patch_status, eventually):
    deploy(JOB, name="old", prune=True)
    pods = f"/api/v1/namespaces/{namespace}/pods"
    eventually(lambda: cluster.request("GET", pods)[1]["items"])
    (pod,) = cluster.request("GET", pods)[1]["items"]
    now = "2026-01-01T00:00:00Z"
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": now}
    patch_status(f"pods/{pod['metadata']['name']}", {"phase": "Running", "conditions": [ready]})
    eventually(lambda: live("apis/batch/v1:jobs/old")["status"].get("ready"))
    outcome = deploy(JOB, name="new", prune=True)
    assert told(outcome) == [("created", "Job/new"), ("kept", "Job/old")]
    assert "its pod is at work" in outcome.applied[1].reason
    ended = ready | {"status": "False", "reason": "PodCompleted"}
    patch_status(f"pods/{pod['metadata']['name']}", {"phase": "Succeeded", "conditions": [ended]})
    eventually(lambda: live("apis/batch/v1:jobs/old")["status"].get("completionTime"))
    assert told(deploy(JOB, name="new", prune=True)) == [("pruned", "Job/old")]
