"""Random changes with kill -9 in the middle end, after one clean run, as a fresh deployment would.

On a real API server. A failure prints its seed; `SEEDS` may then hold that one alone.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import traceback

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils.applyset import applyset_id
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, Resource
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import MANAGER
from conftest import Deployer

SEEDS = range(16)
SECRET = Resource("v1", "Secret", "secrets", True)
STEPS = 10
REQUESTS = 30  # a kill comes before one of the first so many requests of a run, if it has so many

HEAD = """
---
apiVersion: {api}
kind: {kind}
metadata: {{name: {name}, namespace: "{{{{ ns }}}}", annotations: {{version: "{version}"}}}}
"""
CONTAINER = "{{name: main, image: 'app:{version}', {more}}}"
POD = "{{metadata: {{labels: {{app: {name}}}}}, spec: {{containers: [" + CONTAINER + "]}}}}"
SETTINGS = "envFrom: [{configMapRef: {name: settings, optional: true}}]"
KINDS = {
    "ConfigMap": ("v1", "data: {{a: '{version}', b{version}: b}}\n"),
    "Secret": ("v1", "data: {{own: djE{letter}}}\n"),
    "Service": ("v1", "spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 8{version}}}]}}\n"),
    "ServiceAccount": ("v1", "automountServiceAccountToken: {flag}\n"),
    "Role": (
        "rbac.authorization.k8s.io/v1",
        "rules: [{{apiGroups: [''], resources: [pods, 'r{version}'], verbs: [get]}}]\n",
    ),
    "Deployment": (
        "apps/v1",
        "spec: {{replicas: {version}, selector: {{matchLabels: {{app: {name}}}}}, template: " + POD + "}}\n",
    ),
    "StatefulSet": (
        "apps/v1",
        "spec: {{serviceName: {name}, replicas: {version}, selector: {{matchLabels: {{app: {name}}}}}, template: "
        + POD
        + "}}\n",
    ),
    "PodDisruptionBudget": (
        "policy/v1",
        "spec: {{minAvailable: {version}, selector: {{matchLabels: {{app: {name}}}}}}}\n",
    ),
}
AUTOSCALER = """
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: {name}, namespace: "{{{{ ns }}}}"}}
spec: {{scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: {name}}}, minReplicas: 2, maxReplicas: 5}}
"""
PATHS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "Service": "/api/v1/namespaces/{}/services",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "StatefulSet": "/apis/apps/v1/namespaces/{}/statefulsets",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "HorizontalPodAutoscaler": "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers",
}
State = dict[tuple[str, str], int]  # (kind, name): version


def template(state: State) -> str:
    """What the role renders: one ConfigMap cannot change in place, version 3 of a Deployment is autoscaled."""
    text = ""
    for (kind, name), version in sorted(state.items()):
        api, spec = KINDS[kind]
        values = {
            "api": api,
            "kind": kind,
            "name": name,
            "version": version,
            "letter": "x" if version % 2 else "y",
            "flag": str(version % 2 == 0).lower(),
            "more": SETTINGS,
        }
        part = (HEAD + spec).format(**values)
        if kind == "Secret":
            part = part.replace("annotations: {", "annotations: {citadelbuy.io/generate: password, ")
        if kind == "ConfigMap" and name == "fixed":
            part += "immutable: true\n"
        if kind == "Deployment" and version % 3 == 0:
            part += AUTOSCALER.format(name=name)
        text += part
    return text


def change(state: State, dice: random.Random) -> State:
    """Some objects added, changed, removed or renamed."""
    state = dict(state)
    for _ in range(dice.randint(1, 4)):
        what = dice.choice(["add", "add", "change", "remove", "rename"])
        if what == "add" or not state:
            state[dice.choice(list(KINDS)), dice.choice(["settings", "fixed", "api", "web"])] = dice.randint(1, 4)
            continue
        kind, name = dice.choice(sorted(state))
        if what == "change":
            state[kind, name] = dice.randint(1, 4)
        else:
            version = state.pop((kind, name))
            if what == "rename":
                state[kind, f"{name}-new"] = version
    return state


class Doomed(Cluster):
    """Kills its process before a request that is counted down to."""

    lock = threading.Lock()
    left = 0

    def request(self, *arguments, **options):
        with self.lock:
            Doomed.left -= 1
            if Doomed.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().request(*arguments, **options)


def run(deploy: Deployer, state: State) -> None:
    """One clean run; what has to be replaced or holds data is named."""
    allowed = {
        "prune_data": [f"Secret {deploy.namespace}/{name}" for name in NAMES],
        "replace": [f"ConfigMap {deploy.namespace}/{name}" for name in NAMES],
    }
    outcome = deploy(template(state), prune=True, **allowed)
    assert outcome.errors == []


NAMES = [f"{name}{suffix}" for name in ("settings", "fixed", "api", "web") for suffix in ("", "-new", "-new-new")]


def run_and_kill(deploy: Deployer, kubeconfig: str, state: State, after: int) -> bool:
    """One run in a process of its own, killed before its request number `after`; tells whether it came to that."""
    child = os.fork()
    if child == 0:
        try:
            Doomed.left = after
            deploy.folder = deploy.folder / f"run-{os.getpid()}"
            deploy.folder.mkdir()
            deploy.cluster = Doomed.from_kubeconfig("test", kubeconfig)
            run(deploy, state)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "a run that was not killed has failed"
    return os.WIFSIGNALED(status)


def comparable(cluster: Cluster, namespace: str, parent_id: str) -> dict[str, dict]:
    """All members of a set, without what differs from one namespace or moment to another."""
    found = {}
    for kind, path in PATHS.items():
        selector = {"labelSelector": f"applyset.kubernetes.io/part-of={parent_id}"}
        for body in cluster.request("GET", path.format(namespace), query=selector)[1]["items"]:
            metadata = body["metadata"]
            fields = [
                entry["fieldsV1"]
                for entry in metadata.pop("managedFields")
                if entry["manager"] == MANAGER and not entry.get("subresource")
            ]
            for name in ("uid", "resourceVersion", "creationTimestamp", "generation"):
                metadata.pop(name, None)
            metadata.get("annotations", {}).pop("deployment.kubernetes.io/revision", None)
            body.pop("status", None)
            for name in ("clusterIP", "clusterIPs"):
                body.get("spec", {}).pop(name, None)
            if kind == "Secret":
                body["data"]["password"] = len(body["data"]["password"])
            text = json.dumps([body, fields], sort_keys=True).replace(namespace, "NAMESPACE").replace(parent_id, "SET")
            found[f"{kind}/{metadata['name']}"] = json.loads(text)
    return found


def passwords(cluster: Cluster, namespace: str, state: State) -> dict[str, str]:
    """The generated value of each Secret that the role has by now."""
    found = {}
    for kind, name in state:
        if kind == "Secret":
            body = cluster.get(SECRET, namespace, name) or {}
            found[name] = (body.get("data") or {}).get("password", "")
    return {name: value for name, value in found.items() if value}


def versions(cluster: Cluster, namespace: str) -> dict[str, str]:
    """The resourceVersions of the objects of the other role."""
    items = cluster.request("GET", f"/api/v1/namespaces/{namespace}/configmaps")[1]["items"]
    return {
        item["metadata"]["name"]: item["metadata"]["resourceVersion"]
        for item in items
        if item["metadata"]["name"] in ("theirs", "applyset-other")
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_any_sequence_ends_as_a_fresh_deployment(seed, deploy, cluster, namespace, tmp_path, api_server):
    dice = random.Random(seed)
    theirs = HEAD.format(api="v1", kind="ConfigMap", name="theirs", version=1)
    deploy(theirs, role="other", prune=True)
    before = versions(cluster, namespace)
    assert len(before) == 2
    state: State = {}
    known: dict[str, str] = {}
    killed = 0
    for _step in range(STEPS):
        last, state = state, change(state, dice)
        if dice.random() < 0.7:
            killed += run_and_kill(deploy, str(api_server.kubeconfig), state, dice.randint(1, REQUESTS))
        else:
            run(deploy, state)
        now = passwords(cluster, namespace, {key: 0 for key in state if key in last})
        assert {name: now.get(name) for name in known if ("Secret", name) in state} == {
            name: value for name, value in known.items() if ("Secret", name) in state
        }, f"seed {seed}: a generated value was lost or changed"
        known = passwords(cluster, namespace, state)
    assert killed, f"seed {seed}: no run was killed"
    run(deploy, state)

    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": f"{namespace}-fresh"}})
    fresh = Deployer(cluster, tmp_path / "fresh", f"{namespace}-fresh")
    (tmp_path / "fresh").mkdir()
    run(fresh, state)
    ids = [applyset_id("test", place) for place in (namespace, fresh.namespace)]
    expected = comparable(cluster, fresh.namespace, ids[1])
    assert set(expected) >= {f"{kind}/{name}" for kind, name in state}
    assert comparable(cluster, namespace, ids[0]) == expected, f"seed {seed}"
    assert versions(cluster, namespace) == before, f"seed {seed}: another role's objects were touched"
