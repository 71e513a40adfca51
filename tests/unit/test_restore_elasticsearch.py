"""What a restore of Elasticsearch asks of a cluster: a Job with the pod that makes backups, and other arguments."""

from __future__ import annotations

import json

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import restore_stores
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.restore_stores import Work
from test_wait import Kubelet

CRON_JOB = """
apiVersion: batch/v1
kind: CronJob
metadata: {name: elasticsearch-backup, namespace: "{{ ns }}"}
spec:
  schedule: "@yearly"
  jobTemplate:
    spec:
      template:
        metadata: {labels: {app.kubernetes.io/name: elasticsearch-backup}}
        spec:
          restartPolicy: Never
          containers:
            - {name: main, image: "backup:1", args: [take, elasticsearch], env: [{name: ELASTICSEARCH_URL, value: a}]}
"""


@pytest.fixture
def pods(cluster, namespace):
    """Those that ran, each of which ends: badly where its last argument is `bad`."""
    seen = []

    def status(pod):
        seen.append(pod)
        failed = pod["spec"]["containers"][0]["args"][-1] == "bad"
        state = {"terminated": {"exitCode": int(failed)}}
        containers = [{"name": "main", "image": "a", "imageID": "", "ready": False, "restartCount": 0, "state": state}]
        return {"phase": "Failed" if failed else "Succeeded", "containerStatuses": containers}

    running = Kubelet(cluster, namespace, status)
    running.start()
    yield seen
    running.stopped.set()
    running.join()


@pytest.fixture
def store(cluster, namespace):
    return restore_stores.STORES["elasticsearch"](cluster, namespace, 60, 60, lambda _line: None)


def test_a_restore_is_a_job_of_the_pod_that_makes_backups(store, pods, deploy, cluster, namespace, monkeypatch):
    deploy(CRON_JOB)
    told = {"label": "L", "said": "1 indices", "aside": "before-1", "seconds": 1.0, "back": "before-1"}
    monkeypatch.setattr(restore_stores, "last_line", lambda *_: json.dumps(told))
    assert store.exchange(Work("restore 1", "newest"), 0) == told
    assert store.exchange(Work("undo 1", undo=True, of="restore 1"), 0) == told
    monkeypatch.setattr(restore_stores, "last_line", lambda *_: '{"said": "deleted: before-1"}')
    assert store.discard() == ["elasticsearch: deleted: before-1"]
    by_name = {pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]: pod for pod in pods}
    assert sorted(by_name) == ["elasticsearch-discard", "elasticsearch-restore"]
    words = [pod["spec"]["containers"][0]["args"] for pod in {pod["metadata"]["uid"]: pod for pod in pods}.values()]
    assert words == [
        ["replace", "elasticsearch", "restore 1", "newest"],
        ["undo", "elasticsearch", "undo 1", "restore 1"],
        ["discard", "elasticsearch"],
    ]
    for pod in pods:
        # The network lets this label at Elasticsearch and at the place of backups.
        assert pod["metadata"]["labels"]["app.kubernetes.io/name"] == "elasticsearch-backup"
        assert pod["spec"]["containers"][0]["env"] == [{"name": "ELASTICSEARCH_URL", "value": "a"}]
    assert cluster.request("GET", f"/apis/batch/v1/namespaces/{namespace}/jobs")[1]["items"] == []


def test_a_restore_that_fails_says_what_the_pod_said(store, pods, deploy, monkeypatch):
    deploy(CRON_JOB)
    monkeypatch.setattr(restore_stores, "last_line", lambda *_: "store_backup: index a: it is closed")
    with pytest.raises(EngineError, match=r"index a: it is closed \(Job .*-restore\)\. The platform is stopped"):
        store.exchange(Work("restore 1", "bad"), 0)


def test_without_backups_there_is_no_restore(store):
    with pytest.raises(EngineError, match=r"there is no CronJob .*/elasticsearch-backup: is platform_backups true"):
        store.exchange(Work("restore 1"), 0)
    with pytest.raises(EngineError, match=r"there is no CronJob"):
        store.discard()
