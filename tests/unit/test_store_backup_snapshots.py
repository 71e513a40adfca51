"""Snapshots of volumes, on a real API server with the real CRDs; a thread says what controller and driver would.

The program has the rights and the environment that the role's own manifests give it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import ApiError, Cluster
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import find_templates, render
from ansible_collections.citadelbuy.platform.plugins.module_utils.role_variables import Role
from conftest import CHECKOUT, ApiServer, serve_snapshots, withdraw_snapshots

sys.path.insert(0, str(CHECKOUT / "images/backup"))

from store_backup import kubernetes_store, snapshots
from store_backup.repository import Problem

Body = dict[str, Any]
CLASS = "fast"
OURS = ["data-postgres-0", "data-redis-0", "data-redis-1", "data-elasticsearch-0"]
OTHERS = ["data-prometheus-0", "data-postgres-extra-0", "old-data-redis-0"]


class Controller(threading.Thread):
    """Gives each snapshot without a status the one that `status(volume)` says (None: not yet)."""

    def __init__(self, cluster: Cluster, path: str) -> None:
        super().__init__(daemon=True)
        self.cluster, self.path = cluster, path
        self.stopped = threading.Event()
        self.status: Callable[[str], Body | None] = lambda _volume: {"readyToUse": True}

    def run(self) -> None:
        while not self.stopped.wait(0.05):
            with contextlib.suppress(ApiError):
                for snapshot in self.cluster.request("GET", self.path)[1]["items"]:
                    status = self.status(snapshot["spec"]["source"]["persistentVolumeClaimName"])
                    if status and not snapshot.get("status"):
                        path = f"{self.path}/{snapshot['metadata']['name']}/status"
                        merge = "application/merge-patch+json"
                        self.cluster.request("PATCH", path, {"status": status}, content=merge)


@pytest.fixture(scope="module")
def served(api_server: ApiServer) -> Iterator[None]:
    """The cluster knows VolumeSnapshots."""
    cluster = Cluster.from_kubeconfig("test", str(api_server.kubeconfig))
    serve_snapshots(cluster)
    yield
    withdraw_snapshots(cluster)


def manifests(namespace: str) -> dict[str, Body]:
    """What the role backups applies of volumes-backup, by kind."""
    folder = CHECKOUT / "roles/backups"
    given = {"platform_backups": True, "platform_snapshot_class": CLASS, "platform_namespace": namespace}
    variables = Role.load(folder, DataLoader()).scope(
        given | {"inventory_hostname": "test", "backups_snapshot_keep": 2}
    )
    templar = Templar(loader=DataLoader(), variables=variables)
    templates = find_templates(["templates"], [folder])
    found = render(templar, templates, variables, [str(folder), str(folder / "templates")])
    return {item.kind: item.body for item in found if item.name == "volumes-backup"}


@pytest.fixture
def path(
    served: None,
    cluster: Cluster,
    namespace: str,
    api_server: ApiServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Where the snapshots are; the program runs as its CronJob's pod does, in a namespace with volumes."""
    found = manifests(namespace)
    core, rbac = f"/api/v1/namespaces/{namespace}", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    cluster.request("POST", f"{core}/serviceaccounts", found["ServiceAccount"])
    cluster.request("POST", f"{rbac}/roles", found["Role"])
    cluster.request("POST", f"{rbac}/rolebindings", found["RoleBinding"])
    token = cluster.request("POST", f"{core}/serviceaccounts/volumes-backup/token", {"spec": {}})[1]
    (tmp_path / "token").write_text(token["status"]["token"])
    (tmp_path / "ca.crt").write_bytes((api_server.folder / "certs/apiserver.crt").read_bytes())
    monkeypatch.setattr(kubernetes_store, "ACCOUNT", tmp_path)
    [container] = found["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    here = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api_server.port)}
    for name, value in (here | {item["name"]: item["value"] for item in container["env"]}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(snapshots, "PAUSE", 0.05)
    for name in OTHERS + OURS:
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        cluster.request("POST", f"{core}/persistentvolumeclaims", {"metadata": {"name": name}, "spec": spec})
    return f"/apis/{snapshots.GROUP}/namespaces/{namespace}/volumesnapshots"


@pytest.fixture
def controller(cluster: Cluster, path: str) -> Iterator[Controller]:
    """Each snapshot is ready at once, unless a test says otherwise."""
    running = Controller(cluster, path)
    running.start()
    yield running
    running.stopped.set()
    running.join()


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[int], str]:
    """Run the program at a minute of a night; what it says."""

    def run(minute: int) -> str:
        monkeypatch.setattr(snapshots, "new_label", lambda: f"20260101T02{minute:02d}00Z")
        snapshots.take()
        return capsys.readouterr().out.strip()

    return run


def of(cluster: Cluster, path: str, volume: str = "data-redis-0") -> list[str]:
    """The times of all snapshots of a volume."""
    items = cluster.request("GET", path)[1]["items"]
    mine = [item for item in items if item["spec"]["source"]["persistentVolumeClaimName"] == volume]
    return sorted(item["metadata"]["name"].removeprefix(f"{volume}-") for item in mine)


@pytest.mark.usefixtures("controller")
def test_each_volume_of_the_datastores_has_one(take: Callable[[int], str], cluster: Cluster, path: str) -> None:
    assert take(1).startswith("snapshots 20260101T020100Z: 4 volumes by fast, ")
    items = cluster.request("GET", path)[1]["items"]
    assert {item["spec"]["source"]["persistentVolumeClaimName"] for item in items} == {*OURS}
    assert {item["spec"]["volumeSnapshotClassName"] for item in items} == {CLASS}
    assert {item["metadata"]["labels"][snapshots.VOLUME] for item in items} == {*OURS}


@pytest.mark.usefixtures("controller")
def test_the_oldest_of_its_own_go(take: Callable[[int], str], cluster: Cluster, path: str) -> None:
    for labels in ({}, {snapshots.VOLUME: "data-redis-0"}):
        source = {"source": {"persistentVolumeClaimName": "data-redis-0"}}
        by_hand = {"apiVersion": snapshots.GROUP, "kind": "VolumeSnapshot", "spec": source}
        by_hand["metadata"] = {"name": f"data-redis-0-by-hand-{len(labels)}", "labels": labels}
        cluster.request("POST", path, by_hand)
    assert take(1).endswith(", 0 expired")
    assert take(2).endswith(", 0 expired")
    assert take(3).endswith(", 4 expired")
    assert of(cluster, path) == ["20260101t020200z", "20260101t020300z", "by-hand-0", "by-hand-1"]
    assert of(cluster, path, "data-postgres-0") == ["20260101t020200z", "20260101t020300z"]


def test_why_one_is_not_ready_is_told_and_no_good_one_goes_for_it(
    take: Callable[[int], str], cluster: Cluster, path: str, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUP_SNAPSHOT_KEEP", "1")
    take(1)
    monkeypatch.setenv("BACKUP_SNAPSHOT_TIMEOUT", "1")
    refused = {"readyToUse": False, "error": {"message": "the pool is full"}}
    controller.status = lambda volume: refused if volume == "data-redis-0" else {"readyToUse": True}
    told = (
        "1 of 4 VolumeSnapshots are not ready in 1 s: data-redis-0-20260101t020200z of data-redis-0: the pool is full"
    )
    with pytest.raises(Problem, match=told):
        take(2)
    assert of(cluster, path) == ["20260101t020100z", "20260101t020200z"]
    assert of(cluster, path, "data-redis-1") == ["20260101t020200z"]
    controller.status = lambda _volume: {"readyToUse": True}
    assert take(3).endswith(", 5 expired")
    assert of(cluster, path) == ["20260101t020300z"]


def test_one_that_another_run_waits_for_is_left(
    take: Callable[[int], str], cluster: Cluster, path: str, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUP_SNAPSHOT_TIMEOUT", "1")
    controller.status = lambda _volume: {"readyToUse": False}
    with pytest.raises(Problem, match="its driver still works on it"):
        take(9)
    controller.status = lambda _volume: {"readyToUse": True}
    assert take(1).endswith(", 0 expired")
    assert of(cluster, path) == ["20260101t020100z", "20260101t020900z"]


def test_one_that_is_ready_later_is_waited_for(take: Callable[[int], str], path: str, controller: Controller) -> None:
    looks = iter(range(40))
    controller.status = lambda _volume: {"readyToUse": True} if next(looks, 40) == 40 else None
    assert "4 volumes" in take(1)


def test_an_api_server_that_does_not_answer_once_costs_nothing(
    take: Callable[[int], str], path: str, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = snapshots.snapshots, []

    def once_away() -> list[Body]:
        if not failed:
            failed.append(True)
            raise Problem("the API server does not answer")
        return real()

    monkeypatch.setattr(snapshots, "snapshots", once_away)
    assert "4 volumes" in take(1)
    assert failed


def test_a_cluster_without_controller_is_told(
    take: Callable[[int], str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUP_SNAPSHOT_TIMEOUT", "1")
    with pytest.raises(Problem, match="no snapshot controller has taken it up: does one run in this cluster"):
        take(1)


@pytest.mark.usefixtures("controller")
def test_no_volumes_are_told(take: Callable[[int], str], path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUP_STATEFUL_SETS", "mongo")
    with pytest.raises(Problem, match="there is no PersistentVolumeClaim data-mongo-N in "):
        take(1)


def test_what_the_api_server_refuses_is_told_in_its_words(
    take: Callable[[int], str], cluster: Cluster, path: str, namespace: str
) -> None:
    role = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/volumes-backup"
    rules = [{"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["list"]}]
    cluster.request("PATCH", role, {"rules": rules}, content="application/merge-patch+json")
    with pytest.raises(Problem, match=r"refuses POST /apis/.*/volumesnapshots: 403 .*cannot create resource"):
        take(1)
