"""Changes that cannot be made in place: the plan, and what is done once it is allowed. On a real API server."""

from __future__ import annotations

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import ApiError
from ansible_collections.citadelbuy.platform.plugins.module_utils.replace import has_failed
from conftest import actions

STATEFUL_SET = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store, namespace: "{{ ns }}"}
spec:
  replicas: 2
  podManagementPolicy: {{ policy | default("Parallel") }}
  serviceName: store
  selector: {matchLabels: {app: store}}
  template:
    metadata: {labels: {app: store}}
    spec: {containers: [{name: main, image: "store:1"}]}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec:
        accessModes: [ReadWriteOnce]
        storageClassName: "{{ storage_class | default('fixed-' ~ ns) }}"
        resources: {requests: {storage: "{{ size | default('1Gi') }}"}}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: store, namespace: "{{ ns }}"}
spec: {clusterIP: "{{ address | default('') }}", selector: {app: store}, ports: [{port: 80}]}
"""
JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: migrate, namespace: "{{ ns }}"}
spec:
  backoffLimit: 0
  template:
    spec: {restartPolicy: Never, containers: [{name: main, image: "{{ image | default('app:1') }}"}]}
"""
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: "{{ ns }}"}
spec:
  selector: {matchLabels: {app: "{{ app | default('web') }}"}}
  template:
    metadata: {labels: {app: "{{ app | default('web') }}"}}
    spec: {containers: [{name: main, image: "web:1"}]}
"""
ROLE_BINDING = """
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: "{{ ns }}"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: "{{ role_name | default('one') }}"}
subjects: [{kind: ServiceAccount, name: default}]
"""
CONFIG_MAP = """
apiVersion: v1
kind: ConfigMap
metadata: {name: fixed, namespace: "{{ ns }}"}
immutable: true
data: {a: "{{ a | default('1') }}"}
"""
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: files, namespace: "{{ ns }}"}
spec: {accessModes: [ReadWriteOnce], storageClassName: "{{ storage_class | default('one') }}", resources: {requests: {storage: 1Gi}}}
"""  # noqa: E501


def address(host):
    return {"address": f"10.200.0.{host}"}


# What changes, and the words of the plan about what that costs.
REPLACED = {
    "Service address": ("Service", "store", SERVICE, address(77), address(78), "a new address"),
    "Job template": ("Job", "migrate", JOB, {}, {"image": "app:2"}, "it runs again"),
    "Deployment selector": ("Deployment", "web", DEPLOYMENT, {}, {"app": "other"}, "nothing serves until"),
    "RoleBinding roleRef": ("RoleBinding", "reader", ROLE_BINDING, {}, {"role_name": "two"}, "lose their rights"),
    "immutable ConfigMap": ("ConfigMap", "fixed", CONFIG_MAP, {}, {"a": "2"}, "does not exist for an instant"),
    "StatefulSet policy": ("StatefulSet", "store", STATEFUL_SET, {}, {"policy": "OrderedReady"}, "rolled one by one"),
    "StatefulSet class": ("StatefulSet", "store", STATEFUL_SET, {}, {"storage_class": "other"}, "keep what they are"),
    "StatefulSet volume shrinks": ("StatefulSet", "store", STATEFUL_SET, {}, {"size": "512Mi"}, "keep what they are"),
}  # fmt: skip


@pytest.mark.parametrize("case", REPLACED)
def test_a_plan_first_then_the_replacement(case, deploy, namespace):
    kind, name, template, first, second, cost = REPLACED[case]
    named = [f"{kind} {namespace}/{name}"]
    (before,) = deploy(template, **first).applied
    for check in (True, False):
        (error,) = deploy(template, check=check, **second).errors
        assert f"{kind} {namespace}/{name} (template " in error
        assert "Plan: it would be deleted" in error
        assert cost in error
        assert f"""-e '{{"platform_replace": ["{named[0]}"]}}'""" in error
    assert actions(deploy(template, check=True, replace=named, **second)) == ["replaced"]
    assert actions(deploy(template, **first)) == ["unchanged"], "plan or check changed something"
    (after,) = deploy(template, replace=named, **second).applied
    assert after.action == "replaced"
    assert after.after["metadata"]["uid"] != before.after["metadata"]["uid"]
    assert actions(deploy(template, **second)) == ["unchanged"]


def test_other_changes_of_the_set_wait_for_the_plan(deploy, live):
    first = deploy(SERVICE + "---" + CONFIG_MAP.replace("immutable: true", ""), address="10.200.0.81")
    assert first.errors == []
    outcome = deploy(SERVICE + "---" + CONFIG_MAP.replace("immutable: true", ""), address="10.200.0.82", a="2")
    assert len(outcome.errors) == 1
    assert live("configmaps/fixed")["data"] == {"a": "1"}


def test_a_successor_that_would_be_refused_deletes_nothing(deploy, live, namespace):
    deploy(JOB)
    uid = live("apis/batch/v1:jobs/migrate")["metadata"]["uid"]
    broken = JOB.replace("restartPolicy: Never", "restartPolicy: Sometimes")
    (error,) = deploy(broken, replace=[f"Job {namespace}/migrate"]).errors
    assert "Sometimes" in error
    assert live("apis/batch/v1:jobs/migrate")["metadata"]["uid"] == uid


def test_a_claim_is_never_replaced(deploy, namespace):
    deploy(CLAIM)
    named = [f"PersistentVolumeClaim {namespace}/files"]
    (error,) = deploy(CLAIM, storage_class="two", replace=named).errors
    assert "never replaced" in error
    assert "add a claim under another name" in error


def test_a_failed_job_runs_again_without_being_named(deploy, live, patch_status, eventually):
    deploy(JOB)
    uid = live("apis/batch/v1:jobs/migrate")["metadata"]["uid"]
    assert actions(deploy(JOB)) == ["unchanged"]
    eventually(lambda: live("pods")["items"])
    patch_status(f"pods/{live('pods')['items'][0]['metadata']['name']}", {"phase": "Failed"})
    eventually(lambda: has_failed(live("apis/batch/v1:jobs/migrate")))
    assert actions(deploy(JOB, check=True)) == ["replaced"]
    assert actions(deploy(JOB)) == ["replaced"]
    assert live("apis/batch/v1:jobs/migrate")["metadata"]["uid"] != uid


def storage_class(cluster, namespace, expansion):
    body = {
        "metadata": {"name": f"fixed-{namespace}"},
        "provisioner": "example.com/none",
        "allowVolumeExpansion": expansion,
    }
    cluster.request("POST", "/apis/storage.k8s.io/v1/storageclasses", body)


def bind(live, patch_status):
    """What a volume controller would do."""
    for name in ("data-store-0", "data-store-1"):
        patch_status(f"persistentvolumeclaims/{name}", {"phase": "Bound", "capacity": {"storage": "1Gi"}})
        assert live(f"persistentvolumeclaims/{name}")["status"]["phase"] == "Bound"


def claims_exist(live, eventually):
    eventually(lambda: live("persistentvolumeclaims/data-store-0") and live("persistentvolumeclaims/data-store-1"))


def test_volumes_grow_in_place_and_the_pods_stay(deploy, live, cluster, namespace, patch_status, eventually):
    storage_class(cluster, namespace, True)
    deploy(STATEFUL_SET)
    claims_exist(live, eventually)
    bind(live, patch_status)
    pods = {pod["metadata"]["uid"] for pod in live("pods")["items"]}
    assert len(pods) == 2
    (change,) = deploy(STATEFUL_SET, check=True, size="2Gi").applied
    assert (change.action, change.reason) == ("expanded", "2 volumes grow in place")
    assert live("persistentvolumeclaims/data-store-0")["spec"]["resources"]["requests"]["storage"] == "1Gi"
    assert actions(deploy(STATEFUL_SET, size="2Gi")) == ["expanded"]
    for number in (0, 1):
        claim = live(f"persistentvolumeclaims/data-store-{number}")
        assert claim["spec"]["resources"]["requests"]["storage"] == "2Gi"
    body = live("apis/apps/v1:statefulsets/store")
    assert body["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "2Gi"
    eventually(lambda: live("apis/apps/v1:statefulsets/store")["status"].get("replicas") == 2)
    assert {pod["metadata"]["uid"] for pod in live("pods")["items"]} == pods
    assert actions(deploy(STATEFUL_SET, size="2Gi")) == ["unchanged"]


def test_volumes_of_a_class_that_cannot_grow(deploy, live, cluster, namespace, eventually):
    storage_class(cluster, namespace, False)
    deploy(STATEFUL_SET)
    claims_exist(live, eventually)
    (error,) = deploy(STATEFUL_SET, size="2Gi").errors
    assert f"PersistentVolumeClaim {namespace}/data-store-" in error
    assert f"StorageClass fixed-{namespace} does not allow expansion" in error
    assert actions(deploy(STATEFUL_SET, size="2Gi", replace=[f"StatefulSet {namespace}/store"])) == ["replaced"]
    assert live("persistentvolumeclaims/data-store-0")["spec"]["resources"]["requests"]["storage"] == "1Gi"


def test_an_object_on_its_way_out_is_created_anew(deploy, live, cluster, namespace):
    deploy(CONFIG_MAP)
    path = f"/api/v1/namespaces/{namespace}/configmaps/fixed"
    held = {"metadata": {"finalizers": ["example.com/held"]}}
    cluster.request("PATCH", path, held, content="application/merge-patch+json")
    uid = cluster.request("DELETE", path)[1]["metadata"]["uid"]
    assert actions(deploy(CONFIG_MAP, check=True)) == ["created"]
    released = {"metadata": {"finalizers": None}}
    cluster.request("PATCH", path, released, content="application/merge-patch+json")
    with pytest.raises(ApiError):
        live("configmaps/fixed")
    assert actions(deploy(CONFIG_MAP)) == ["created"]
    assert live("configmaps/fixed")["metadata"]["uid"] != uid
