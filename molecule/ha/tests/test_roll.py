"""A play changes PostgreSQL's pods: whoever leads, the leader changes twice at most, and writes go on."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.plugins.loader import init_plugin_loader

CHECKOUT = Path(__file__).resolve().parents[3]
init_plugin_loader([str(CHECKOUT / "collections")])

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster  # noqa: E402
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_stores import (  # noqa: E402
    ENDPOINTS,
    Postgres,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_writer import Writer, longest_gap  # noqa: E402

HA = yaml.safe_load((CHECKOUT / "molecule/shared/host_vars/ha.yml").read_text())
NAME = os.environ.get("CITADELBUY_CLUSTER") or HA["local_cluster_name"]
KUBECONFIG = f"/var/lib/citadelbuy/{NAME}/admin.conf"
NAMESPACE = "citadelbuy"
KUBECTL = ("kubectl", f"--kubeconfig={KUBECONFIG}", f"--namespace={NAMESPACE}")
FIRST = "postgres-0"


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    """The cluster as the engine sees it."""
    return Cluster.from_kubeconfig("ha", KUBECONFIG)


@pytest.fixture(scope="module")
def postgres(cluster: Cluster) -> Postgres:
    """The store."""
    return Postgres(cluster, NAMESPACE)


def until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} in {seconds} s"
        time.sleep(0.3)


def play(*words: str) -> subprocess.CompletedProcess[str]:
    """The datastores' play."""
    done = subprocess.run(
        ["ansible-playbook", "playbooks/datastores.yml", "-i", os.environ["MOLECULE_INVENTORY_FILE"], *words],
        cwd=CHECKOUT,
        env=os.environ | {"ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    return done


def transitions(cluster: Cluster) -> int:
    """How often the leader has changed, by Patroni's own count."""
    return int(cluster.get(ENDPOINTS, NAMESPACE, "postgres")["metadata"]["annotations"]["transitions"])


def when(text: str) -> datetime:
    """The time that begins a line of a log, or is in an object; whole seconds, as objects have no others."""
    return datetime.fromisoformat(f"{text[:19]}+00:00")


def ready_since(pod: dict[str, Any]) -> datetime:
    (found,) = (item for item in pod["status"]["conditions"] if item["type"] == "Ready")
    return when(found["lastTransitionTime"])


def test_the_primary_is_replaced_last(cluster: Cluster, postgres: Postgres, tmp_path: Path) -> None:
    until(lambda: not postgres.missing(), "full strength")
    if postgres.leader() == FIRST:
        postgres.hand_over(FIRST)
        until(lambda: postgres.leader() not in ("", FIRST) and not postgres.missing(), "other leader")
    before, leader = transitions(cluster), postgres.leader()
    pods = {pod["metadata"]["uid"] for pod in postgres.pods()}
    writer = Writer(cluster, NAMESPACE, (CHECKOUT / "roles/drill/files/postgres_writer.py").read_text())
    try:
        writer.start(postgres.writer(), [*postgres.ports], postgres.name, "")
        since = writer.now()
        log = tmp_path / "log"  # of the pod that is to end, which takes it with it
        words = ["logs", FIRST, "-c", "postgres", "--follow", "--timestamps", "--since=1s"]
        with log.open("w") as file:
            follower = subprocess.Popen([*KUBECTL, *words], stdout=file)
        words = ["--tags", "postgres", "-e", f"postgres_slow_statement_milliseconds={time.time_ns() % 10**6 + 1000}"]
        done = play(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        until(lambda: not postgres.missing(), "full strength")
        until(writer.flows, "writes")
        writes, numbers = writer.stop()
    finally:
        writer.remove()
    gap, _last, _next = longest_gap(writes, since)
    print(f"{transitions(cluster) - before} changes of the leader, {gap:.1f} s without writes, {len(writes)} writes")
    assert f"{FIRST} leads after {leader}" in done.stdout
    assert pods.isdisjoint(pod["metadata"]["uid"] for pod in postgres.pods())
    assert transitions(cluster) - before == 2
    assert postgres.leader() != FIRST
    assert sorted({write.number for write in writes} - numbers) == []
    # It has made a checkpoint before it ended, which is not the one of its promotion.
    assert follower.wait(30) == 0
    lines = log.read_text().splitlines()
    (end,) = (number for number, line in enumerate(lines) if "received fast shutdown request" in line)
    asked = [when(line) for line in lines[:end] if "checkpoint starting: immediate force wait" in line]
    (second,) = (pod for pod in postgres.pods() if pod["metadata"]["name"] == "postgres-1")
    assert asked, lines[:end]
    assert asked[-1] >= ready_since(second), lines[:end]
