"""The embedded cluster comes up from nothing and from any leftover, and goes without a trace.

The tests share one cluster of three nodes and run in order, each from where the one before ended.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "cluster-test"
STATE = Path("/var/lib/citadelbuy") / NAME
VARIABLES = {
    "local_cluster_name": NAME,
    "local_cluster_nodes": 3,
    "local_cluster_api_port": 16643,
    "local_images_enabled": False,
}
CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")


def playbook(name: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run a playbook of this project on the test's cluster."""
    command = [str(Path(sys.executable).with_name("ansible-playbook")), f"playbooks/{name}.yml"]
    command += ["-i", "inventories/local", "--extra-vars", json.dumps(VARIABLES | variables)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def bring_up() -> None:
    """Bring the cluster up; it must end well, with every node ready."""
    result = playbook("local_cluster")
    assert result.returncode == 0, result.stdout[result.stdout.find("[ERROR]") :][:6000] + result.stderr[-2000:]
    nodes = kubectl("get", "nodes", "-o", "json")
    ready = {
        node["metadata"]["name"]
        for node in json.loads(nodes)["items"]
        for condition in node["status"]["conditions"]
        if condition["type"] == "Ready" and condition["status"] == "True"
    }
    assert ready == {"node1", "node2", "node3"}


def kubectl(*arguments: str) -> str:
    """Run kubectl on the test's cluster and return what it printed."""
    programs = max((CACHE / "binaries").glob("*/kubectl"), key=lambda path: path.stat().st_mtime)
    command = [str(programs), "--kubeconfig", str(STATE / "admin.conf"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
READ_API = "kubectl get --raw /readyz --server=https://{host}"
READ_API += f' --certificate-authority={ACCOUNT}/ca.crt --token="$(cat {ACCOUNT}/token)"'
METRICS = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:10249/metrics').read().decode())"
ETCD = """
import json, ssl, sys, urllib.request
pki, path, body = sys.argv[1:]
context = ssl.create_default_context(cafile=f"{pki}/ca.crt")
context.load_cert_chain(f"{pki}/server.crt", f"{pki}/server.key")
print(urllib.request.urlopen(f"https://127.0.0.1:2379/v3/kv/{path}", body.encode(), context=context).read().decode())
"""


def etcd(path: str, **fields: str) -> dict[str, list[dict[str, str]]]:
    """Ask the cluster's etcd by its HTTP gateway; fields are given and returned as etcd's JSON has them, in Base64."""
    body = json.dumps({name: base64.b64encode(value.encode()).decode() for name, value in fields.items()})
    enter = ["nsenter", f"--net=/run/netns/{NAME}.node1", sys.executable, "-c", ETCD]
    pki = STATE / "nodes/node1/etc/kubernetes/pki/etcd"
    result = subprocess.run([*enter, str(pki), path, body], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def stored(kind: str, name: str) -> bytes:
    """The bytes that etcd holds of an object in the namespace default."""
    return base64.b64decode(etcd("range", key=f"/registry/{kind}/default/{name}")["kvs"][0]["value"])


def audit_log() -> str:
    """The whole audit log, rotated files included."""
    return "".join(file.read_text() for file in (STATE / "logs/audit").glob("audit*"))


def processes() -> set[int]:
    """Return the ids of the cluster's processes, found by their cgroups."""
    found: set[int] = set()
    # Not pathlib's: that one stumbles over the cgroups of pods that end meanwhile.
    for procs in glob.glob(f"/sys/fs/cgroup/*/citadelbuy/{NAME}/**/cgroup.procs", recursive=True):
        with contextlib.suppress(OSError):
            found.update(int(line) for line in Path(procs).read_text().split())
    return found


def kill_everything() -> None:
    """Kill every process of the cluster and wait until all are gone."""
    while left := processes():
        for process in left:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


@contextlib.contextmanager
def pods_that_end_late() -> Iterator[None]:
    """Hold the network namespaces of all that runs now: the kernel may take its time to end those of dead pods."""
    with contextlib.ExitStack() as held:
        for process in processes():
            with contextlib.suppress(OSError):
                held.enter_context(open(f"/proc/{process}/ns/net", "rb"))
        yield


def host_state() -> dict[str, str]:
    """Return what the cluster must never change of the host's network."""
    commands = {
        "links": ["ip", "-br", "link"],
        "addresses": ["ip", "-br", "address"],
        "routes": ["ip", "route", "show", "table", "all"],
        "rules": ["ip", "rule"],
        "firewall": ["nft", "list", "ruleset"],
        "forwarding": ["sysctl", "-n", "net.ipv4.ip_forward"],
    }
    return {
        name: subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for name, command in commands.items()
    }


@pytest.fixture(scope="module")
def host_before() -> Iterator[dict[str, str]]:
    """The host's network before the cluster; the cluster is taken down whatever happens."""
    playbook("local_cluster_down")
    before = host_state()
    yield before
    playbook("local_cluster_down")


def test_comes_up_from_nothing_and_leaves_the_host_alone(host_before: dict[str, str]) -> None:
    """Three nodes, add-ons and all; the host's network is as before."""
    bring_up()
    assert host_state() == host_before
    assert "local-path (default)" in kubectl("get", "storageclass")
    kubectl("create", "configmap", "kept", "--from-literal=written=before")


def test_a_second_run_changes_nothing() -> None:
    """Nothing is changed on a cluster that is up."""
    result = playbook("local_cluster")
    assert result.returncode == 0, result.stdout[-6000:]
    assert "changed=0" in result.stdout


@pytest.mark.usefixtures("host_before")
def test_pods_of_one_node_do_not_starve_the_agents_of_all() -> None:
    (group,) = (file.parent for file in Path("/sys/fs/cgroup").glob(f"*/citadelbuy/{NAME}/cpu.shares"))
    shares = {name: int((group / name / "cpu.shares").read_text()) / 1024 for name in ("supervisor", "node1", "node2")}
    assert shares == {"supervisor": 3, "node1": 2, "node2": 1}
    assert int((group / "cpu.shares").read_text()) == 1024


VALUE = "hardly-a-word-that-occurs-elsewhere"


@pytest.mark.usefixtures("host_before")
def test_secrets_and_config_maps_are_encrypted_at_rest() -> None:
    """Neither value nor key name is in what etcd holds; the key is for root alone."""
    for kind in (["secret", "generic"], ["configmap"]):
        kubectl("create", *kind, "at-rest", f"--from-literal=word={VALUE}")
    for kind in ("secrets", "configmaps"):
        raw = stored(kind, "at-rest")
        assert raw.startswith(b"k8s:enc:secretbox:v1:first:")
        assert VALUE.encode() not in raw
    key = (STATE / "api-server/encryption.yaml").stat()
    assert (stat.S_IMODE(key.st_mode), key.st_uid) == (0o600, 0)


def test_the_audit_log_tells_who_did_what_and_no_value() -> None:
    """The creation above is in it, by diagnose too, and the Secret's value is not."""
    kubectl("get", "secret", "at-rest")
    log = audit_log()
    assert '"name":"at-rest"' in log
    assert VALUE not in log
    assert base64.b64encode(VALUE.encode()).decode() not in log
    result = playbook("diagnose", diagnose_what="who", diagnose_object="secret/at-rest")
    assert result.returncode == 0, result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if "default/secrets/at-rest" in line]
    assert [(row[1], row[2], row[-1]) for row in rows] == [
        ("kubernetes-admin", "create", "201"),
        ("kubernetes-admin", "get", "200"),
    ]


def test_a_cluster_from_before_encryption_takes_it_up() -> None:
    """What an API server without a key has stored is readable, and then encrypted."""
    metadata = {"name": "older", "namespace": "default", "uid": "11111111-2222-3333-4444-555555555555"}
    data = {"word": base64.b64encode(VALUE.encode()).decode()}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
    etcd("put", key="/registry/secrets/default/older", value=json.dumps(body))
    (STATE / "nodes/node1/encrypted").unlink()
    with pods_that_end_late():
        bring_up()
    assert stored("secrets", "older").startswith(b"k8s:enc:secretbox:")
    assert kubectl("get", "secret", "older", "-o", "jsonpath={.data.word}") == data["word"]


@pytest.mark.usefixtures("host_before")
def test_a_pod_of_one_node_reaches_a_service_on_another() -> None:
    """Cluster DNS and services work from every node: a pod on each resolves and reads the API through its service."""
    image = kubectl("-n", "kube-system", "get", "daemonset", "coredns", "-o", "jsonpath={..image}")
    # The API server that was replaced takes itself out of its Service when it ends, and the new one comes back in 10 s.
    read = f"until {READ_API.format(host='kubernetes.default.svc.cluster.local')}; do sleep 1; done"
    # The API server was replaced before: a kubelet and a kube-proxy that it refused meanwhile come back by and by.
    kubectl("--namespace=kube-system", "rollout", "status", "daemonset/kube-proxy", "--timeout=300s")
    api = kubectl("get", "service", "kubernetes", "--output=jsonpath={.spec.clusterIP}")
    for node in ("node1", "node2", "node3"):
        until(
            lambda node=node: any(line.startswith(f"{api} . ") for line in services(node)),
            f"kube-proxy of {node} leads nowhere with Service kubernetes",
        )
    for node in ("node1", "node2", "node3"):
        overrides = json.dumps({"spec": {"nodeName": node, "terminationGracePeriodSeconds": 0}})
        options = [f"--image={image}", "--restart=Never", "--overrides", overrides, "--command"]
        kubectl("run", f"probe-{node}", *options, "--", "sh", "-c", read)
    for node in ("node1", "node2", "node3"):
        try:
            # A kubelet that was refused while the API server was replaced asks for its pods again after up to a minute:
            # client-go's back-off ends at 30 s, and its jitter doubles them.
            kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/probe-{node}", "--timeout=180s")
        except AssertionError as error:
            said = kubectl("describe", "pod", f"probe-{node}")
            said += "".join((STATE / f"nodes/{node}/logs/kubelet.log").read_text().splitlines(keepends=True)[-40:])
            raise AssertionError(f"{error}\n{said}") from error
        kubectl("delete", "pod", f"probe-{node}", "--wait=false")


def in_node(node: str, *command: str) -> str:
    """What a command prints in a node's network; empty where it fails."""
    enter = ["nsenter", f"--net=/run/netns/{NAME}.{node}", *command]
    return subprocess.run(enter, capture_output=True, text=True, check=False).stdout


def services(node: str) -> list[str]:
    """The addresses of Services that kube-proxy leads to pods, with their protocols and ports."""
    found = in_node(node, "nft", "--numeric", "list", "map", "ip", "kube-proxy", "service-ips")
    return sorted(re.findall(r"[0-9.]+ \. \d+ \. \d+ : goto", found))


def test_a_kube_proxy_that_starts_anew_knows_its_rules_again() -> None:
    """As once an hour, it reads them from the kernel, and deletes those that it takes for another's."""
    nodes = ("node1", "node2", "node3")
    before = {node: services(node) for node in nodes}
    assert all(before.values()), before
    kubectl("--namespace=kube-system", "delete", "pods", "--selector=k8s-app=kube-proxy", "--wait")
    kubectl("--namespace=kube-system", "rollout", "status", "daemonset/kube-proxy", "--timeout=120s")
    synced = re.compile(r'^kubeproxy_sync_proxy_rules_last_timestamp_seconds\{ip_family="IPv4"\} [1-9]', re.MULTILINE)
    ask = (sys.executable, "-c", METRICS)
    for node in nodes:
        until(lambda node=node: bool(synced.search(in_node(node, *ask))), f"kube-proxy of {node} has not synced")
        assert services(node) == before[node]


def test_comes_up_after_everything_was_killed() -> None:
    """Every process killed at once, supervisors included: the data is still there."""
    key = STATE / "api-server/encryption.yaml"
    before = key.read_text()
    kill_everything()
    bring_up()
    assert kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.written}") == "before"
    assert kubectl("get", "secret", "at-rest", "-o", "jsonpath={.data.word}")
    assert key.read_text() == before


def test_a_lost_key_is_told_and_not_replaced() -> None:
    """Another key could not read what this one has encrypted."""
    key = STATE / "api-server/encryption.yaml"
    key.rename(key.with_suffix(".away"))
    result = playbook("local_cluster")
    assert result.returncode != 0
    assert "the key of every stored Secret and ConfigMap, is gone" in result.stdout + result.stderr
    assert not key.exists()
    key.with_suffix(".away").rename(key)


def running(program: str) -> set[int]:
    """The processes of a program, or of a script, on all nodes."""
    found = set()
    for process in processes():
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        except FileNotFoundError:
            continue
        if program in [Path(word.decode(errors="replace")).name for word in words[:2]]:
            found.add(process)
    return found


def send(sent: signal.Signals, program: str) -> None:
    """Send a signal to a program on all three nodes."""
    found = running(program)
    assert len(found) == 3
    for process in found:
        os.kill(process, sent)


def until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for it, at most a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)


def test_supervisor_restarts_what_dies() -> None:
    """A killed containerd and kubelet are running again without a hand."""
    before = {program: running(program) for program in ("containerd", "kubelet")}
    for program in before:
        send(signal.SIGKILL, program)
    until(lambda: all(len(running(one) - then) == 3 for one, then in before.items()), "one of them did not come back")


def test_network_policies_outlive_their_enforcer() -> None:
    """What was denied stays so while all enforcers are dead; what has changed meanwhile holds when they are back."""
    image = kubectl("-n", "kube-system", "get", "daemonset", "coredns", "-o", "jsonpath={..image}")
    overrides = json.dumps({"spec": {"nodeName": "node2", "terminationGracePeriodSeconds": 0}})
    kubectl("run", "asks", f"--image={image}", "--overrides", overrides, "--command", "--", "sleep", "infinity")
    kubectl("wait", "--for=condition=Ready", "pod/asks", "--timeout=60s")
    ask = f"timeout 5 {READ_API.format(host='$KUBERNETES_SERVICE_HOST')} || true"

    def reached() -> bool:
        """Whether the pod reaches the API, which is on another node."""
        return "ok" in kubectl("exec", "asks", "--", "sh", "-c", ask)

    assert reached()
    deny = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"}}
    policy = STATE / "deny.json"
    policy.write_text(json.dumps(deny | {"spec": {"podSelector": {}, "policyTypes": ["Egress"]}}))
    kubectl("create", "-f", str(policy))
    until(lambda: not reached(), "the policy has no effect")

    # Whoever may send nothing is refused at once, too, where a Service leads nowhere, as one between two leaders.
    kubectl("create", "service", "clusterip", "nowhere", "--tcp=80")
    address = kubectl("get", "service", "nowhere", "--output=jsonpath={.spec.clusterIP}")
    connect = f"kubectl get --raw / --server=http://{address}:80 --request-timeout=3s 2>&1 || true"
    until(lambda: "refused" in kubectl("exec", "asks", "--", "sh", "-c", connect), "what leads nowhere is waited for")
    kubectl("delete", "service", "nowhere")

    send(signal.SIGSTOP, "network_policy_agent.py")
    kubectl("delete", "-f", str(policy))
    assert not reached()
    send(signal.SIGKILL, "network_policy_agent.py")
    until(reached, "the policy's end has no effect")
    kubectl("delete", "pod", "asks", "--wait=false")


def test_comes_up_from_a_half_made_node_and_a_stale_namespace() -> None:
    """A node whose join was cut off, a namespace name without a namespace, a lost link: all are made good."""
    kill_everything()
    (STATE / "nodes/node3/joined").unlink()
    subprocess.run(["umount", f"/run/netns/{NAME}.node2"], check=True)
    subprocess.run(["ip", "-n", f"{NAME}.fabric", "link", "delete", "node1"], check=True)
    bring_up()
    assert kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.written}") == "before"


def test_comes_up_from_a_half_made_control_plane() -> None:
    """Without its first member there is no cluster: all of it is made anew."""
    kill_everything()
    (STATE / "nodes/node1/joined").unlink()
    bring_up()
    assert "kept" not in kubectl("get", "configmaps", "-o", "name")


def test_a_machine_that_cannot_host_it_is_told_why_at_once() -> None:
    """One line names everything that is missing, and nothing was made."""
    other = {"local_cluster_name": "cluster-test-2", "local_cluster_api_port": 16643}
    result = playbook("local_cluster", **other, local_cluster_minimum_memory=10**9, local_cluster_minimum_disk=10**9)
    assert result.returncode != 0
    for reason in ("port 16643 on 127.0.0.1 is taken", "of memory are available", "MiB are free in"):
        assert reason in result.stdout + result.stderr
    assert not Path("/var/lib/citadelbuy/cluster-test-2").exists()


def test_goes_without_a_trace(host_before: dict[str, str]) -> None:
    """No process, mount, namespace, link, cgroup or folder is left."""
    result = playbook("local_cluster_down")
    assert result.returncode == 0, result.stdout[-6000:]
    assert not processes()
    assert NAME not in Path("/proc/mounts").read_text()
    assert not list(Path("/run/netns").glob(f"{NAME}.*"))
    assert not list(Path("/sys/fs/cgroup").glob(f"*/citadelbuy/{NAME}"))
    assert not STATE.exists()
    assert host_state() == host_before
