"""The embedded cluster's host part, where it can be looked at without a cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.citadelbuy.platform.plugins.modules import local_cluster_host


def test_pods_may_end_while_processes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cgroup that is gone between being listed and being looked into holds no process."""
    stays, goes = (tmp_path / "memory/citadelbuy/one/node1/kubepods" / name for name in ("stays", "goes"))
    for cgroup in (tmp_path / "memory", stays, goes):
        cgroup.mkdir(parents=True, exist_ok=True)
        (cgroup / "cgroup.procs").write_text("")
    (stays / "cgroup.procs").write_text("4711\n4712\n")
    scandir = os.scandir

    def while_one_goes(folder: str | Path) -> object:
        if Path(folder) == goes and goes.exists():
            (goes / "cgroup.procs").unlink()
            goes.rmdir()
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", while_one_goes)
    monkeypatch.setattr(local_cluster_host, "CGROUP", tmp_path)
    host = object.__new__(local_cluster_host.Host)
    host.name = "one"
    assert host.processes() == {4711, 4712}
    assert not goes.exists()


@pytest.mark.parametrize(("version", "setting", "default"), [("v1", "cpu.shares", 1024), ("v2", "cpu.weight", 100)])
def test_clusters_together_have_the_weight_of_the_heaviest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, setting: str, default: int
) -> None:
    """Also where the lighter one was weighed last; a hierarchy without the controller `cpu` is left as it is."""
    cpu = tmp_path if version == "v2" else tmp_path / "cpu"
    weights = {name: cpu / name / setting for name in ("citadelbuy", "citadelbuy/heavy", "citadelbuy/light")}
    for file in weights.values():
        file.parent.mkdir(parents=True)
        file.write_text(str(default))
    (cpu / ("cgroup.controllers" if version == "v2" else "cgroup.procs")).touch()
    memory = tmp_path / "memory"
    if version == "v1":
        (memory / "citadelbuy/heavy").mkdir(parents=True)
        (memory / "citadelbuy/light").mkdir()
        (memory / "cgroup.procs").touch()
    monkeypatch.setattr(local_cluster_host, "CGROUP", tmp_path)
    host = object.__new__(local_cluster_host.Host)
    for host.name, host.cpu_weight in (("heavy", 10), ("light", 1)):
        host.weigh_cluster()
    found = {name: int(file.read_text()) / default for name, file in weights.items()}
    assert found == {"citadelbuy": 10, "citadelbuy/heavy": 10, "citadelbuy/light": 1}
    assert not list(memory.rglob("cpu.*"))
