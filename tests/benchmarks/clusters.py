"""Twenty clusters in one run: API servers without nodes, one etcd for all of them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from contenders import Rivals, playbook, unchanged
from pairing import CHECKOUT, ENOUGH, BenchmarkError, Pair, Report, descendants, memory, peak_memory, progress, seconds
from platform_objects import applied, live_objects

sys.path.insert(0, str(CHECKOUT / "tests/unit"))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ansible's collection loader is set up twice
    from conftest import ApiServer, Cluster

COUNT = 20
NEEDED_MIB = COUNT * 350
SET_SIZE = 50  # ConfigMaps beside the foundation
FOUNDATION, SET = "playbooks/foundation.yml", CHECKOUT / "tests/benchmarks/set.yml"


class Server(ApiServer):
    """An API server without controllers; all of them share the first one's etcd, each under a prefix of its own."""

    def __init__(self, folder: Path, first: Server | None) -> None:
        folder.mkdir()
        super().__init__(folder)
        self.shares_etcd = first is not None
        if first:
            self.etcd_port = first.etcd_port

    def run(self, name: str, *arguments: str) -> None:
        """Leave out what is not needed here."""
        if name == "kube-controller-manager" or (name == "etcd" and self.shares_etcd):
            return
        extra = (f"--etcd-prefix=/{self.folder.name}",) if name == "kube-apiserver" else ()
        super().run(name, *arguments, *extra)


@contextmanager
def servers(folder: Path) -> Iterator[list[Server]]:
    """That many API servers, killed in the end.

    :raises BenchmarkError: when the machine has not the memory for them.
    """
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) // 1024
    if available < NEEDED_MIB:
        raise BenchmarkError(
            f"{COUNT} API servers need {NEEDED_MIB} MiB of free memory, {available} MiB are available."
        )
    started: list[Server] = []
    try:
        for number in range(1, COUNT + 1):
            progress(f"starting API server {number} of {COUNT}")
            started.append(Server(folder / f"cluster-{number:02}", started[0] if started else None))
            started[-1].start()
        progress("")
        yield started
    finally:
        for server in reversed(started):
            server.stop()


def inventory(started: list[Server], file: Path) -> Path:
    """An inventory with a host for each, with the variables of inventories/local."""
    values: dict[str, Any] = {}
    for source in sorted((CHECKOUT / "inventories/local/group_vars/clusters").glob("*.yml")):
        values |= yaml.safe_load(source.read_text(encoding="utf-8")) or {}
    values |= {
        "cluster_context": "admin",
        "benchmark_size": SET_SIZE,
        "benchmark_namespace": values["platform_namespace"],
    }
    hosts = {server.folder.name: {"cluster_kubeconfig": str(server.kubeconfig)} for server in started}
    file.write_text(yaml.safe_dump({"clusters": {"hosts": hosts, "vars": values}}), encoding="utf-8")
    return file


def measure(report: Report, rounds: int, folder: Path) -> None:
    """Time a first run and unchanged runs against all clusters, and kubectl going from cluster to cluster."""
    with servers(folder) as started:
        hosts = inventory(started, folder / "hosts.yml")

        def deploy() -> str:
            return playbook(FOUNDATION, SET, "-i", hosts)

        report.note(f"first run, {COUNT} clusters", f"{seconds(deploy):.2f} s")
        rivals = []
        for server in started:
            live = live_objects(Cluster.from_kubeconfig(server.folder.name, str(server.kubeconfig)))
            manifests = [applied(body) for body in live]
            rivals.append(Rivals(manifests, server.folder / "rival", server.kubeconfig))
        count = len(rivals[0].bodies)

        def ours() -> None:
            unchanged(deploy())

        def kubectl() -> None:
            for rival in rivals:
                rival.kubectl_apply()

        ours()
        kubectl()
        title = f"No change, {COUNT} clusters, {count} objects in each"
        pair = Pair(title, "ansible-playbook, one run", "kubectl, one by one")
        report.add(pair.measure(ours, kubectl, max(min(rounds, ENOUGH), rounds // 2)))
        one = started[0].folder.name
        alone = Pair(f"No change, one of these clusters: {count} objects", "ansible-playbook", "kubectl")

        def ours_alone() -> None:
            unchanged(playbook(FOUNDATION, SET, "-i", hosts, "--limit", one))

        report.add(alone.measure(ours_alone, rivals[0].kubectl_apply, max(min(rounds, ENOUGH), rounds // 2)))
        report.note(f"memory of the {COUNT} API servers and their etcd", f"{memory(descendants()):.0f} MiB")
        report.note(f"peak memory of the run, {COUNT} clusters", f"{peak_memory(ours):.0f} MiB")
        report.note("peak memory of the run, one cluster", f"{peak_memory(ours_alone):.0f} MiB")
