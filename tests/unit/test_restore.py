"""The order of a restore, on a real API server: nothing is restored while an application could still write."""

from __future__ import annotations

import re

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.restore import Restore
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import POD

APPLICATION = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: "{{ ns }}"}
spec:
  replicas: 1
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec: {containers: [{name: main, image: "api:1"}]}
"""
CANARY = re.sub(r"\bapi\b", "canary", APPLICATION)
ENDING = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "api-that-ends", "labels": {"app": "api"}},
    "spec": {"nodeName": "nowhere", "containers": [{"name": "main", "image": "api:1"}]},
}


def test_a_pod_that_is_still_ending_is_waited_for(cluster, namespace, deploy, monkeypatch):
    deploy(APPLICATION, role="applications")
    cluster.request("POST", POD.path(namespace), ENDING)
    cluster.request("DELETE", POD.path(namespace, "api-that-ends"))  # no kubelet says that it has ended
    restore = Restore(cluster, namespace, ["elasticsearch"], 60, 1, lambda _line: None)
    done = []
    monkeypatch.setattr(restore.stores[0], "exchange", lambda *_: done.append("elasticsearch") or {})
    with pytest.raises(EngineError, match="pods api-that-ends of the applications have not ended after 1 s"):
        restore.run("", "", undo=False)
    assert not done
    cluster.request("DELETE", POD.path(namespace, "api-that-ends"), {"gracePeriodSeconds": 0})
    with pytest.raises(EngineError, match="Deployment"):  # its pods are never ready: nothing runs them here
        restore.run("", "", undo=False)
    assert done == ["elasticsearch"]


def test_a_canary_is_stopped_too_and_its_number_stays_the_roles(cluster, namespace, deploy, monkeypatch, live):
    deploy(APPLICATION, role="applications")
    deploy(CANARY.replace("replicas: 1", "replicas: 2"), role="applications-canary")
    restore = Restore(cluster, namespace, ["elasticsearch"], 60, 1, lambda _line: None)

    def replicas():
        return {
            item["metadata"]["name"]: item["spec"]["replicas"] for item in live("apis/apps/v1:deployments")["items"]
        }

    seen = []
    monkeypatch.setattr(restore.stores[0], "exchange", lambda *_: seen.append(replicas()) or {})
    with pytest.raises(EngineError, match="Deployment"):  # its pods are never ready: nothing runs them here
        restore.run("", "", undo=False)
    assert seen == [{"api": 0, "canary": 0}]
    assert replicas() == {"api": 1, "canary": 2}
    outcome = deploy(CANARY.replace("replicas: 1", "replicas: 3"), role="applications-canary")
    assert outcome.errors == []
    assert replicas()["canary"] == 3
