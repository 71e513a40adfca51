"""Drills: what a log says, what is refused, and faults that are undone. On a real API server and a real supervisor."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.citadelbuy.platform.plugins.action.drill import ALONE, named
from ansible_collections.citadelbuy.platform.plugins.module_utils import drill_faults, drill_stores, drill_writer
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill import Drill, Round, table
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_alarm import Prometheus
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_faults import FAULTS, NODE, Nodes
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_stores import FLOOD_STAGE
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_writer import Write, longest_gap, parse
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import Reply
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import POD
from conftest import load_program

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
VOLUME = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: "{{ store }}", namespace: "{{ ns }}"}
spec:
  replicas: 0
  serviceName: members
  selector: {matchLabels: {app: "{{ store }}"}}
  template:
    metadata: {labels: {app: "{{ store }}"}}
    spec: {containers: [{name: "{{ store }}", image: "store:1", volumeMounts: [{name: data, mountPath: /data}]}]}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: "data-{{ store }}-0", namespace: "{{ ns }}"}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"""
MIB = 1 << 20

SLEEPER = "sh -c \"trap '' TERM; while :; do sleep 0.1; done\""


def drill(cluster, namespace, scenario="pod-deleted", nodes=None, timeout=1, store="postgres", ratio=0.0):
    """One, of PostgreSQL where no other store is named, with nothing started."""
    prometheus = Prometheus(cluster, "monitoring", ratio)
    return Drill(cluster, namespace, store, scenario, nodes or Nodes("none", "/nonexistent"), prometheus, "", timeout)


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


def test_a_round_waits_for_pods_that_an_earlier_one_has_moved(cluster, namespace, patch_status, monkeypatch):
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "api"}}
    cluster.request("POST", POD.path(namespace), body | {"spec": {"containers": [{"name": "api", "image": "api:1"}]}})
    one = drill(cluster, namespace)
    monkeypatch.setattr(one, "_missing", lambda: "")
    monkeypatch.setattr(one.store, "members", lambda: 3)
    monkeypatch.setattr(one.store, "leader", lambda: "postgres-0")
    with pytest.raises(EngineError, match=f"no rest before the drill after 1 s: not ready are {namespace}/api"):
        one.require_possible()
    patch_status("api/v1:pods/api", {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
    assert one.require_possible() == "postgres-0"


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
        fault = drill(cluster, namespace, "drain").fault
        fault.leader, fault.node = "postgres-0", "drained"
        with pytest.raises(EngineError) as refused:
            fault.begin()
        assert f"the drain of drained does not end; still there: {namespace}/guarded (" in str(refused.value)
        assert "disruption budget postgres needs 1 healthy pods and has 1 currently" in str(refused.value)
        assert cluster.get(NODE, None, "drained")["spec"]["unschedulable"]
        assert "deletionTimestamp" not in cluster.get(POD, namespace, "guarded")["metadata"]
        fault.end()
        assert "unschedulable" not in cluster.get(NODE, None, "drained")["spec"]
        assert cluster.get(NODE, None, "cordoned-by-hand")["spec"]["unschedulable"]
    finally:
        for name in ("drained", "cordoned-by-hand"):
            cluster.request("DELETE", NODE.path(None, name))


def test_how_far_a_writer_is_stands_between_what_it_has_said_of_errors(cluster, namespace, monkeypatch):
    writer, told = drill(cluster, namespace).writer, "psycopg2.OperationalError: not\n  there 1\n"
    for log, found in (
        (f"8.1 3 7.9 2 4\n{told}", (8.1, 3, 7.9)),
        (f"{told}8.1 3 7.9 2 4\n9.1 5 8.9 4 4\n", (9.1, 5, 8.9)),
        (told, (0.0, 0, 0.0)),
    ):
        monkeypatch.setattr(cluster, "request", lambda *_, log=log, **__: (200, log))
        assert (writer.now(), writer.count()) == found[:2]
        assert writer._told() == found


def test_a_writer_that_does_not_begin_is_not_left_behind(cluster, namespace, deploy, monkeypatch):
    one = drill(cluster, namespace)
    found = {}
    one.fault.node = "node2"
    monkeypatch.setattr(drill_writer, "START", 1)
    monkeypatch.setattr(one, "_choose", lambda: "postgres-0")
    monkeypatch.setattr(one.store, "writer", lambda: {"image": "postgres:1", "env": [], "secrets": [], "priority": ""})
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


class Disk:
    """The volume of a store's member 0 as its container sees it, and Prometheus; both as they answered in a cluster."""

    def __init__(self, one: Drill, monkeypatch, size: int, free: int) -> None:
        self.size, self.free, self.commands, self.away = size, free, [], set()
        self.alerts = []
        monkeypatch.setattr(one.store, "run", self.run)
        monkeypatch.setattr(
            one.store, "pods", lambda: [{"metadata": {"name": f"{one.store.name}-{n}"}} for n in (0, 1)]
        )
        monkeypatch.setattr(one.fault.prometheus, "_ask", self.ask)
        one.fault.leader = f"{one.store.name}-0"

    def run(self, pod: str, *words: str) -> str:
        self.commands.append((pod, *words))
        if pod in self.away:
            raise EngineError(f"exec in pod {pod}: no")
        if words[0] == "fallocate":
            self.free -= int(words[2])
        return f"  1B-blocks      Avail\n{self.size} {self.free}\n" if words[0] == "df" else ""

    def ask(self, path: str) -> dict:
        if path == "alerts":
            return {"alerts": self.alerts}
        names = {"PersistentVolumeFilling": ("persistentvolumeclaim:used:ratio", 0.85, 0.95)}
        names["ElasticsearchDiskFilling"] = ("elasticsearch:filesystem_used:ratio", 0.8, 0.9)
        rules = [
            {"name": name, "labels": {"severity": severity}, "query": f"{metric} > {limit}"}
            for name, (metric, *limits) in names.items()
            for severity, limit in zip(("warning", "critical"), limits, strict=True)
        ]
        return {"groups": [{"rules": []}, {"rules": rules}]}

    def alert(self, name: str, severity: str = "critical", state: str = "pending", **labels: str) -> None:
        self.alerts.append({"labels": {"alertname": name, "severity": severity, "team": "x"} | labels, "state": state})


def test_a_disk_that_others_share_is_not_filled(cluster, namespace, deploy, monkeypatch):
    deploy(VOLUME, store="postgres")
    one = drill(cluster, namespace, "disk-filled")
    disk = Disk(one, monkeypatch, 252 << 30, 50 << 30)
    with pytest.raises(
        EngineError, match=r"the disk of data-postgres-0 has 252\.0 GiB and the claim 1Gi: others share it"
    ):
        one.fault.require_possible("postgres-0")
    disk.size = 1300 * MIB  # a file system that has a little more than was asked for
    one.fault.require_possible("postgres-0")
    assert not [command for command in disk.commands if "fallocate" in command]


def test_a_volume_is_filled_just_above_its_alert_and_waited_for(cluster, namespace, deploy, monkeypatch):
    deploy(VOLUME, store="postgres")
    one = drill(cluster, namespace, "disk-filled")
    disk = Disk(one, monkeypatch, 1000 * MIB, 900 * MIB)
    one.fault.begin()
    assert disk.free == pytest.approx(40 * MIB, abs=1)
    assert disk.commands[-1] == ("postgres-0", "fallocate", "--length", str(860 * MIB), "/data/citadelbuy-drill")
    claim = {"namespace": namespace, "persistentvolumeclaim": "data-postgres-0"}
    # Neither the other severity nor another volume is it.
    disk.alert("PersistentVolumeFilling", "warning", **claim)
    disk.alert("PersistentVolumeFilling", **claim | {"persistentvolumeclaim": "data-postgres-1"})
    assert not one.fault.happened()
    disk.alert("PersistentVolumeFilling", **claim)
    assert one.fault.happened()
    assert one.fault.awaited() == ""
    # The next round waits until it has gone.
    assert "data-postgres-0) is pending" in one.fault.remains()
    with pytest.raises(EngineError, match="96% of the volume of postgres-0 are in use already"):
        one.fault.begin()


def test_an_alert_that_does_not_come_is_named(cluster, namespace, deploy, monkeypatch):
    deploy(VOLUME, store="postgres")
    one = drill(cluster, namespace, "disk-filled", ratio=0.9)
    Disk(one, monkeypatch, 1000 * MIB, 900 * MIB)
    one.fault.begin()
    said = (
        r"postgres disk-filled: no end of what happens after 1 s: PersistentVolumeFilling \(critical; namespace \S+, "
        r"persistentvolumeclaim data-postgres-0\) comes above 95%, and 90% of the volume are in use"
    )
    with pytest.raises(EngineError, match=said):
        one._until("end of what happens", one._over, one.fault.awaited)


def test_the_file_goes_from_every_member_and_one_that_cannot_be_asked_is_named(cluster, namespace, deploy, monkeypatch):
    deploy(VOLUME, store="redis")
    one = drill(cluster, namespace, "disk-filled", store="redis")
    disk = Disk(one, monkeypatch, 1000 * MIB, 900 * MIB)
    one.heal()
    assert disk.commands == [(name, "rm", "-f", "/data/citadelbuy-drill") for name in ("redis-0", "redis-1")]
    disk.away = {"redis-0"}
    with pytest.raises(EngineError, match="not removed: /data/citadelbuy-drill of redis-0: exec in pod redis-0: no"):
        one.heal()
    assert disk.commands[-1][0] == "redis-1"


def test_elasticsearch_has_an_alert_of_its_own_before_it_takes_no_writes(cluster, namespace, deploy, monkeypatch):
    deploy(VOLUME, store="elasticsearch")
    one = drill(cluster, namespace, "disk-filled", store="elasticsearch")
    disk = Disk(one, monkeypatch, 1000 * MIB, 900 * MIB)
    settings = {"persistent": {}, "transient": {}, "defaults": {FLOOD_STAGE: "95%"}}
    monkeypatch.setattr(one.store, "_ask", lambda _path: settings)
    one.fault.require_possible("elasticsearch-0")
    one.fault.begin()
    assert disk.free == pytest.approx(90 * MIB, abs=1)
    disk.alert("ElasticsearchDiskFilling", namespace=namespace, pod="elasticsearch-0", state="firing")
    assert one.fault.happened()
    settings["persistent"] = {FLOOD_STAGE: "90%"}
    with pytest.raises(
        EngineError, match=r"takes no writes with 90% of its disk in use, and 91% are to be for Elastic"
    ):
        one.fault.require_possible("elasticsearch-0")


def test_a_prometheus_without_the_alert_is_named(cluster, namespace, monkeypatch):
    one = drill(cluster, namespace, "disk-filled")
    monkeypatch.setattr(one.fault.prometheus, "_ask", lambda _path: {"groups": []})
    with pytest.raises(EngineError, match="monitoring/prometheus-0 has no critical alert PersistentVolumeFilling"):
        one.fault.prometheus.share("PersistentVolumeFilling")


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


def test_all_scenarios_are_those_that_ask_no_more_of_a_cluster():
    every = named(["all"], [*FAULTS], "scenario", ALONE)
    assert [name for name in FAULTS if name not in every] == ["disk-filled"]
    assert named(["disk-filled"], [*FAULTS], "scenario", ALONE) == ["disk-filled"]


def test_names_come_with_commas_and_in_order():
    assert named(["redis, postgres"], ["postgres", "redis"], "store") == ["postgres", "redis"]
    assert named(["all"], ["postgres", "redis"], "store") == ["postgres", "redis"]


def test_a_round_of_elasticsearch_tells_whether_the_cluster_was_red(cluster, namespace):
    def remark(log: str) -> str:
        notes = [write.note for write in parse(log)]
        return drill_stores.Elasticsearch(cluster, namespace).remark(notes[0], notes[-1], notes)

    assert remark("1.0 1 green\n2.0 2 yellow\n3.0 3 green\n") == ", never red"
    assert remark("1.0 1 green\n2.0 2 red\n3.0 3 green\n") == ", red"
    assert remark("1.0 1 \n2.0 2 \n") == ", of unknown health"


def test_a_write_bears_the_worst_health_since_the_one_before(monkeypatch):
    writer = load_program("roles/drill/files/elasticsearch_writer.py")
    told = iter(["green", "yellow", "red", "yellow", "green"])
    health, stop = writer.Health(), SimpleNamespace(exists=lambda: False)
    client = SimpleNamespace(ask=lambda *_: (200, {"status": next(told)}))
    monkeypatch.setattr(writer, "Client", lambda _timeout: client)
    monkeypatch.setattr(writer, "STOP", stop)
    monkeypatch.setattr(writer, "LOOK", 0)

    def look(times: int) -> str:
        left = iter([False] * times)
        stop.exists = lambda: next(left, True)
        health.watch()
        return health.take()

    assert [look(1), look(3), look(1), look(0)] == ["green", "red", "green", "green"]


def test_elasticsearch_without_a_master_has_no_leader_and_what_else_it_says_is_told(cluster, namespace, monkeypatch):
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    store = drill_stores.Elasticsearch(cluster, namespace)
    monkeypatch.setattr(store, "pods", lambda: [{"metadata": {"name": "elasticsearch-0"}, "status": ready}])
    monkeypatch.setattr(drill_stores, "client_context", lambda *_: None)
    said = [b"master_not_discovered_exception", b"cluster_block_exception"]
    replies = iter([Reply(503, http.client.HTTPMessage(), text) for text in said])
    monkeypatch.setattr(drill_stores, "http_through_pod", lambda *_: next(replies))
    assert store.leader() == ""
    with pytest.raises(EngineError, match=r"elasticsearch-0 answers 503 to GET /_cat/master.*: cluster_block"):
        store.leader()
