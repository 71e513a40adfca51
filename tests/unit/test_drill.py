"""Drills: what a log says, what is refused, and faults that are undone. On a real API server and a real supervisor."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.citadelbuy.platform.plugins.action.drill import named
from ansible_collections.citadelbuy.platform.plugins.module_utils import drill_faults, drill_writer
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill import Drill, Round, table
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_faults import NODE, Drain, Nodes
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_stores import Postgres
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_writer import Write, longest_gap, parse
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import POD

MEMBERS = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: postgres, namespace: "{{ ns }}"}
spec:
  replicas: {{ replicas }}
  serviceName: postgres-members
  selector: {matchLabels: {app.kubernetes.io/name: postgres}}
  template:
    metadata: {labels: {app.kubernetes.io/name: postgres}}
    spec: {containers: [{name: postgres, image: "postgres:1"}]}
"""
BUDGET = """
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: postgres, namespace: "{{ ns }}"}
spec: {maxUnavailable: 0, selector: {matchLabels: {app: guarded}}}
---
apiVersion: v1
kind: Pod
metadata: {name: guarded, namespace: "{{ ns }}", labels: {app: guarded}}
spec: {nodeName: drained, containers: [{name: main, image: "main:1"}]}
"""


SLEEPER = "sh -c \"trap '' TERM; while :; do sleep 0.1; done\""


def drill(cluster, namespace, scenario="pod-deleted", nodes=None, timeout=1):
    """One of PostgreSQL, with nothing started."""
    return Drill(cluster, namespace, "postgres", scenario, nodes or Nodes("none", "/nonexistent"), "", timeout)


def test_a_log_has_what_was_acknowledged_and_no_line_that_is_cut_off():
    assert parse("3.5 2 4\n1.0 0 3\n2.0 1 3\n4.") == [Write(1.0, 0, "3"), Write(2.0, 1, "3"), Write(3.5, 2, "4")]


def test_the_gap_is_the_longest_that_ends_after_the_fault():
    writes = [Write(at, number, "") for number, at in enumerate((0.0, 9.0, 10.0, 12.5, 13.0))]
    assert longest_gap(writes, 9.5) == (2.5, writes[2], writes[3])
    with pytest.raises(EngineError, match="no write was acknowledged after"):
        longest_gap(writes, 13.0)


def test_a_write_that_the_store_does_not_have_is_lost(cluster, namespace, monkeypatch):
    one = drill(cluster, namespace)
    monkeypatch.setattr(one.store, "leader", lambda: "postgres-1")
    # One a hundredth of a second, and none for two seconds.
    writes = [Write(number / 100 + 2 * (number >= 200), number, str(3 + (number >= 200))) for number in range(400)]
    found = one.measure("postgres-0", 1.5, 8.0, writes, {*range(400)} - {199, 7} | {1000})
    assert (found.lost, found.acknowledged, found.notes) == ([7, 199], 400, ", timeline 3 -> 4")
    assert found.without_writes == pytest.approx(2.01)
    assert found.rate == pytest.approx(100, rel=0.02)
    assert "2 of 400 acknowledged writes lost" in found.line()
    assert "postgres-0 led, postgres-1 leads" in found.line()


def test_the_table_has_minimum_median_and_maximum():
    rounds = [
        Round("postgres", "drain", "a", "b", gap, 10 * gap, 1000, [5] if gap == 3 else [], 400, "") for gap in (3, 1, 7)
    ]
    assert table(rounds)[2] == "| postgres | drain | 3 | 1.0 / 3.0 / 7.0 | 10.0 / 30.0 / 70.0 | 3,000 | 1 |"


def test_one_member_is_refused(cluster, namespace, deploy):
    with pytest.raises(EngineError, match=f"there is no StatefulSet {namespace}/postgres"):
        drill(cluster, namespace).require_possible()
    deploy(MEMBERS, replicas=1)
    with pytest.raises(EngineError, match=r"PostgreSQL has 1 member: .*postgres_replicas"):
        drill(cluster, namespace).require_possible()


def test_a_store_that_is_not_whole_is_refused_with_what_is_missing(cluster, namespace, deploy):
    deploy(MEMBERS, replicas=3)
    with pytest.raises(EngineError, match=r"no full strength before the drill after 1 s: 0 of 3 pods are ready"):
        drill(cluster, namespace).require_possible()


def test_nodes_of_another_machine_are_neither_lost_nor_cut(cluster, namespace, deploy):
    deploy(MEMBERS, replicas=3)
    for scenario in ("node-lost", "network-cut"):
        with pytest.raises(EngineError, match=f"{scenario} needs the machine that the nodes run on"):
            drill(cluster, namespace, scenario).require_possible()


def test_a_drain_that_a_budget_refuses_names_the_pod_and_is_undone(
    cluster, namespace, deploy, patch_status, monkeypatch
):
    monkeypatch.setattr(drill_faults, "END", 1)
    for name in ("drained", "cordoned-by-hand"):
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"unschedulable": True}}
        cluster.request("POST", NODE.path(), body if name != "drained" else body | {"spec": {}})
    try:
        deploy(MEMBERS + BUDGET, replicas=3)
        patch_status("api/v1:pods/guarded", {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
        allowed = {"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1}
        patch_status("apis/policy/v1:poddisruptionbudgets/postgres", allowed | {"expectedPods": 1})
        fault = Drain(cluster, Postgres(cluster, namespace), Nodes("none", "/nonexistent"))
        fault.leader, fault.node = "postgres-0", "drained"
        with pytest.raises(EngineError, match=f"the drain of drained does not end: {namespace}/guarded stay"):
            fault.begin()
        assert cluster.get(NODE, None, "drained")["spec"]["unschedulable"]
        assert "deletionTimestamp" not in cluster.get(POD, namespace, "guarded")["metadata"]
        fault.end()
        assert "unschedulable" not in cluster.get(NODE, None, "drained")["spec"]
        assert cluster.get(NODE, None, "cordoned-by-hand")["spec"]["unschedulable"]
    finally:
        for name in ("drained", "cordoned-by-hand"):
            cluster.request("DELETE", NODE.path(None, name))


def test_a_writer_that_does_not_begin_is_not_left_behind(cluster, namespace, deploy, monkeypatch):
    one = drill(cluster, namespace)
    found = {}
    one.fault.node = "node2"
    monkeypatch.setattr(drill_writer, "START", 1)
    monkeypatch.setattr(one, "_choose", lambda: "postgres-0")
    monkeypatch.setattr(one.store, "writer", lambda: {"image": "postgres:1", "env": [], "secrets": []})
    writes = one.writer._writes
    monkeypatch.setattr(
        one.writer, "_writes", lambda: found.update(cluster.get(POD, namespace, "drill-writer")) or writes()
    )
    with pytest.raises(EngineError, match="drill-writer has not written after 1 s, and has told nothing"):
        one.round()
    assert cluster.get(POD, namespace, "drill-writer") is None
    # Whom it trusts, as the store's clients.
    [container] = found["spec"]["containers"]
    assert {"name": "DRILL_CA_FILE", "value": "/etc/citadelbuy/authority/postgres/ca.crt"} in container["env"]
    [authority] = [volume["secret"] for volume in found["spec"]["volumes"] if volume["name"] == "authority"]
    assert authority["secretName"] == "postgres-tls"
    assert [item["key"] for item in authority["items"]] == ["ca.crt"]


@pytest.fixture
def nodes(tmp_path: Path):
    """A supervisor as the embedded cluster has it, with one node that does nothing."""
    configuration = tmp_path / "supervisord.conf"
    socket = f"unix://{tmp_path}/supervisor.sock"
    configuration.write_text(
        f"[unix_http_server]\nfile={tmp_path}/supervisor.sock\n[supervisord]\nlogfile={tmp_path}/log\n"
        f"pidfile={tmp_path}/pid\n[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
        f"[supervisorctl]\nserverurl={socket}\n[program:node2]\ncommand={SLEEPER}\n"
    )
    program = Path(sys.executable).with_name("supervisord")
    process = subprocess.Popen([program, "--nodaemon", "-c", configuration], stdout=subprocess.DEVNULL)
    found = Nodes("cluster", str(tmp_path))
    deadline = time.monotonic() + 20
    while not (tmp_path / "supervisor.sock").exists() or "RUNNING" not in status(configuration):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield found
    process.terminate()
    process.wait()


def status(configuration: Path) -> str:
    """What the supervisor says."""
    command = [Path(sys.executable).with_name("supervisorctl"), "-c", configuration, "status"]
    return subprocess.run(command, text=True, capture_output=True, check=False).stdout


def test_a_lost_node_stays_away_until_it_is_started(nodes):
    assert nodes.here
    assert nodes.names() == ["node2"]
    begun = time.monotonic()
    nodes.kill("node2")
    assert "STOPPED" in status(nodes.configuration)
    assert time.monotonic() - begun < 9  # SIGKILL, not the 10 seconds that a supervisor waits after SIGTERM
    nodes.start("node2")
    assert "RUNNING" in status(nodes.configuration)
    nodes.start("node2")  # nothing to do


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["redis", "mysql"], "drill_stores has mysql: there are postgres, redis, and all"),
        ([" ,"], "drill_stores is empty: name one of postgres, redis, or all"),
    ],
)
def test_a_name_that_there_is_not_is_refused(given, said):
    with pytest.raises(EngineError, match=said):
        named(given, ["postgres", "redis"], "store")


def test_names_come_with_commas_and_in_order():
    assert named(["redis, postgres"], ["postgres", "redis"], "store") == ["postgres", "redis"]
    assert named(["all"], ["postgres", "redis"], "store") == ["postgres", "redis"]
