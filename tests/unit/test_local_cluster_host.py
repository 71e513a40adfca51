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
