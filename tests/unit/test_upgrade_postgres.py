"""An upgrade of PostgreSQL on a real API server: what is refused, and that the image changes when the data has."""

from __future__ import annotations

import json

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import upgrade_postgres
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.cronjob_run import Ran
from ansible_collections.citadelbuy.platform.plugins.module_utils.restore_stores import (
    STATEFUL_SET,
    Members,
    Work,
    pods_of,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.upgrade_postgres import (
    REHEARSED,
    Upgrade,
    image_of,
    major,
)

OLD, NEW = "registry:5000/postgres:15-12", "registry:5000/postgres-17:17-1@sha256:0"
SET = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: postgres, namespace: "{{ ns }}", labels: {app.kubernetes.io/version: 15-12}}
spec:
  serviceName: postgres
  replicas: {{ replicas | default(3) }}
  podManagementPolicy: Parallel
  selector: {matchLabels: {app.kubernetes.io/name: postgres}}
  template:
    metadata: {labels: {app.kubernetes.io/name: postgres, app.kubernetes.io/version: 15-12}}
    spec:
      containers:
        - name: postgres
          image: "{{ image | default('registry:5000/postgres:15-12') }}"
          env: [{name: PGDATA, value: /data/pgdata}]
          resources: {limits: {memory: 1Gi}}
          securityContext: {readOnlyRootFilesystem: true}
          volumeMounts: [{name: data, mountPath: /data}, {name: tmp, mountPath: /tmp}]
        - {name: exporter, image: "exporter:15"}
      volumes: [{name: data, emptyDir: {}}, {name: tmp, emptyDir: {}}]
"""


@pytest.fixture
def upgrade(cluster, namespace):
    """For an image; what it says is kept."""

    def of(image: str) -> Upgrade:
        return Upgrade(cluster, namespace, namespace, image, 5, 5, lambda _line: None)

    return of


@pytest.mark.parametrize(
    ("image", "found"),
    [(OLD, 15), (NEW, 17), ("postgres:17", 17), ("host:5000/postgres", None), ("postgres:latest", None)],
)
def test_the_major_is_what_the_tag_begins_with(image, found):
    assert major(image) == found


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("postgres:15-13", "name the image of the new major"),
        ("postgres:14-1", "name the image of the new major"),
        ("postgres:latest", "does not begin with PostgreSQL's major version"),
        (NEW, "no rehearsal with image .* has passed"),
    ],
)
def test_what_is_no_upgrade_or_was_not_rehearsed_is_refused(upgrade, deploy, image, said):
    deploy(SET, role="postgres")
    with pytest.raises(EngineError, match=said):
        upgrade(image).upgrade()
    assert upgrade(image).under_way() is None


def test_a_rehearsal_counts_for_its_image_alone_and_room_is_asked_for_before_anything_stops(
    upgrade, deploy, cluster, namespace, monkeypatch
):
    deploy(SET, role="postgres")
    path = STATEFUL_SET.path(namespace, "postgres")
    told = json.dumps({"image": NEW, "size": 10**6})
    cluster.request(
        "PATCH", path, {"metadata": {"annotations": {REHEARSED: told}}}, content="application/merge-patch+json"
    )
    with pytest.raises(EngineError, match="no rehearsal with image"):
        upgrade("postgres:17-2").upgrade()
    monkeypatch.setattr(upgrade_postgres, "run_in_pod", lambda *_: "Avail\n1000000\n")
    with pytest.raises(
        EngineError, match=r"has 1 MB left, and the upgraded copy needs 1 MB: raise postgres_storage_size"
    ):
        upgrade(NEW).upgrade()
    assert upgrade(NEW).under_way() is None


def test_the_way_back_needs_the_former_image(upgrade, deploy):
    deploy(SET, role="postgres", image=NEW)
    for image in (NEW, "postgres:18-1"):
        with pytest.raises(EngineError, match="name the former image there"):
            upgrade(image).back()


@pytest.mark.parametrize("undo", [False, True])
def test_members_end_before_the_one_that_leads_and_the_image_changes_after_the_data(
    upgrade, deploy, cluster, namespace, monkeypatch, undo, eventually
):
    before, after = (NEW, OLD) if undo else (OLD, NEW)
    deploy(SET, role="postgres", image=before)
    store = upgrade(after).store
    store.programs = NEW
    seen = []

    def live():
        return cluster.get(STATEFUL_SET, namespace, "postgres")

    def run(name, spec, _otherwise=""):
        seen.append((name, spec["containers"][0]["image"], spec["containers"][0]["args"], image_of(live())))
        assert pods_of(cluster, live()) == []
        return {"system": "7"}

    eventually(lambda: len(pods_of(cluster, live())) == 3)
    scaled = []
    scale = store._scale
    monkeypatch.setattr(store, "_scale", lambda members: scaled.append(members) or scale(members))
    monkeypatch.setattr(store, "_run", run)
    monkeypatch.setattr(store, "_volumes", lambda: 2)
    monkeypatch.setattr(store, "_first_leads", lambda: True)
    monkeypatch.setattr(Members, "_start", lambda _self, members, _told: scaled.append((members, image_of(live()))))
    monkeypatch.setattr(upgrade_postgres, "back_up", lambda *_: "full backup")
    store.exchange(Work("this", undo=undo, of=""), 3)
    words = ["back", "this", ""] if undo else ["upgrade", "this"]
    assert seen == [
        ("postgres-restore-0", NEW, ["postgres-restore", *words], before),
        ("postgres-restore-1", NEW, ["postgres-restore", "set-aside", "this"], before),
    ]
    assert scaled == [1, 0, (1, after), (3, after)]
    labels = live()["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/version"] == ("15-12" if undo else "17-1")
    assert [item["image"] for item in live()["spec"]["template"]["spec"]["containers"]] == [after, "exporter:15"]


VERIFY = """
apiVersion: batch/v1
kind: CronJob
metadata: {name: postgres-verify, namespace: "{{ ns }}"}
spec:
  schedule: 0 0 * * *
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: verify, image: "registry:5000/postgres:15-12", args: [postgres-backup, verify]}]
          volumes: [{name: data, emptyDir: {sizeLimit: 10Gi}}, {name: run, emptyDir: {}}]
"""


def test_a_rehearsal_is_the_verification_with_the_new_image_and_twice_the_room(
    upgrade, deploy, cluster, namespace, monkeypatch
):
    deploy(SET, role="postgres")
    with pytest.raises(EngineError, match="is platform_backups true"):
        upgrade(NEW).rehearse()
    deploy(VERIFY, role="backups")
    told = {"former": "15", "now": "17", "size": 5}
    asked = []

    def run_once(_cluster, cronjob, _timeout):
        asked.append(cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"])
        return Ran("job", json.dumps(told), 12.34, joined=False)

    monkeypatch.setattr(upgrade_postgres, "run_once", run_once)
    assert upgrade(NEW).rehearse() == told | {"image": NEW, "all": 12.3}
    [pod] = asked
    assert (pod["containers"][0]["image"], pod["containers"][0]["args"]) == (NEW, ["postgres-backup", "rehearse"])
    assert pod["volumes"] == [
        {"name": "data", "emptyDir": {"sizeLimit": str(20 << 30)}},
        {"name": "run", "emptyDir": {}},
    ]
    live = cluster.get(STATEFUL_SET, namespace, "postgres")
    assert json.loads(live["metadata"]["annotations"][REHEARSED]) == told | {"image": NEW, "all": 12.3}
    assert image_of(live) == OLD
    assert upgrade(NEW)._rehearsed()["size"] == 5
    # The roles' next run leaves it.
    deploy(SET, role="postgres")
    assert REHEARSED in cluster.get(STATEFUL_SET, namespace, "postgres")["metadata"]["annotations"]
