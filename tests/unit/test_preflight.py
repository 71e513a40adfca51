"""Preflight: every folder of inputs it refuses or takes, and the clusters it refuses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible.vars.manager import VariableManager
from ansible_collections.citadelbuy.platform.plugins.action import preflight
from ansible_collections.citadelbuy.platform.plugins.module_utils import capacity
from ansible_collections.citadelbuy.platform.plugins.module_utils.cluster_checks import ClusterChecks
from conftest import ApiServer, free_port, serve_gateways, serve_snapshots, withdraw_gateways, withdraw_snapshots

CHECKOUT = Path(__file__).resolve().parents[2]
CASES = CHECKOUT / "tests/inventories"
ROLES = yaml.safe_load((CHECKOUT / "roles/preflight/defaults/main.yml").read_text())["preflight_roles"]
GIB = 2**30
# Kinds that the test's cluster does not have.
NEED_A_CONTROLLER = {
    "certificates-by-cert-manager": "cert-manager.io/v1 Certificate",
    "secrets-external": "external-secrets.io/v1 ExternalSecret",
    "secrets-sealed": "bitnami.com/v1alpha1 SealedSecret",
}

Check = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def inventory() -> tuple[DataLoader, dict[str, Any]]:
    """The variables of the local inventory."""
    loader = DataLoader()
    manager = InventoryManager(loader, [str(CHECKOUT / "inventories/local")])
    return loader, VariableManager(loader, manager).get_vars(host=manager.get_host("local"))


@pytest.fixture
def check(
    inventory: tuple[DataLoader, dict[str, Any]], api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> Check:
    """Run the action with variables on top of the local inventory's."""
    monkeypatch.chdir(CHECKOUT)
    loader, variables = inventory

    def run(case: str | None = None, cluster: bool = True, capacity: bool = True, **more: Any) -> dict[str, Any]:
        given = loader.load_from_file(str(CASES / case), trusted_as_template=True) if case else {}
        # The test's API server has the address that this machine happens to have.
        here = {
            "cluster_kubeconfig": str(api_server.kubeconfig),
            "network_policies_api_server_cidrs": ["0.0.0.0/0"],
            "network_policies_api_server_ports": [f"{api_server.port}/TCP"],
        }
        everything = variables | here | given | more
        args = {"roles": ROLES, "cluster": cluster, "capacity_required": capacity}
        task = SimpleNamespace(args=args, async_val=0, check_mode=False, diff=False, action="preflight", _role=None)
        templar = Templar(loader=loader, variables=everything)
        action = preflight.ActionModule(task, MagicMock(), MagicMock(), loader, templar, MagicMock())
        result = action.run(task_vars=everything)
        result["text"] = result.get("problems") or (result["msg"] if result.get("failed") else "")
        return result

    return run


def put_node(cluster, name: str, cpu: str, memory: str) -> None:
    """A node that has just become Ready: it has the API server's taint for new nodes, which nobody takes away here."""
    cluster.request("POST", "/api/v1/nodes", {"metadata": {"name": name}})
    status = {
        "allocatable": {"cpu": cpu, "memory": memory, "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    merge = "application/merge-patch+json"
    cluster.request("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, content=merge)


@pytest.fixture(autouse=True)
def roomy(cluster) -> Iterator[None]:
    """Two nodes of 2 cores and 4 GiB, and a default StorageClass."""
    for name in ("a", "b"):
        put_node(cluster, name, "2", "4Gi")
    path = "/apis/storage.k8s.io/v1/storageclasses"
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    cluster.request(
        "POST", path, {"metadata": {"name": "standard", "annotations": default}, "provisioner": "example.com/none"}
    )
    yield
    for name in ("a", "b"):
        cluster.request("DELETE", f"/api/v1/nodes/{name}")
    cluster.request("DELETE", f"{path}/standard")


@pytest.mark.parametrize("members", [-1, 0, 2, 4])
def test_members_of_redis_that_are_no_majority_are_refused(check: Check, members: int) -> None:
    text = check(redis_replicas=members)["text"]
    assert "variable redis_replicas" in text
    assert f"value of redis_replicas must be one of: 1, 3, got: {members}" in text


@pytest.mark.parametrize("case", sorted(path.stem for path in (CASES / "invalid").glob("*.yml")))
def test_refused(check: Check, case: str) -> None:
    result = check(f"invalid/{case}.yml")
    expected = (CASES / f"invalid/{case}.expected").read_text().strip()
    assert result.get("failed"), "nothing was found"
    assert expected in result["text"]
    assert len(result["text"].splitlines()) == (5 if case == "empty-secrets" else 1)
    assert "vErY-sHoRt" not in str(result)


@pytest.mark.parametrize("case", sorted(path.stem for path in (CASES / "valid").glob("*.yml")))
def test_taken(check: Check, case: str) -> None:
    if case in NEED_A_CONTROLLER:
        text = check(f"valid/{case}.yml")["text"]
        assert f"the cluster does not serve {NEED_A_CONTROLLER[case]}: install its operator." in text
        assert not check(f"valid/{case}.yml", cluster=False).get("failed")
        return
    result = check(f"valid/{case}.yml")
    assert not result.get("failed"), result["text"]
    assert result["version"].startswith("v1.")


def test_all_problems_are_told_at_once_inventory_and_cluster(check: Check) -> None:
    text = check(redis_replicas="many", redis_replica=1, secrets_generate=False, cluster_kubeconfig="/nope")["text"]
    for part in ("redis_replicas", "unknown variable redis_replica:", "secrets_jwt_secret is empty", "/nope"):
        assert part in text


def test_nothing_is_deployed_while_a_restore_is_under_way(check: Check, cluster) -> None:
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": "restoring"}})
    assert not check(platform_namespace="restoring").get("failed")
    cluster.request("POST", "/api/v1/namespaces/restoring/configmaps", {"metadata": {"name": "restore"}})
    assert "a restore is under way in restoring" in check(platform_namespace="restoring")["text"]


def test_another_major_of_postgres_is_refused_where_there_is_data(check: Check, cluster) -> None:
    newer = {"postgres_image": "citadelbuy.local/postgres-17:17-1", "platform_namespace": "major"}
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": "major"}})
    assert not check(**newer).get("failed")
    labels = {"app": "postgres"}
    pod = {"containers": [{"name": "postgres", "image": "citadelbuy.local/postgres:15-12"}]}
    spec = {"replicas": 0, "serviceName": "postgres", "selector": {"matchLabels": labels}}
    spec["template"] = {"metadata": {"labels": labels}, "spec": pod}
    body = {"metadata": {"name": "postgres"}, "spec": spec}
    cluster.request("POST", "/apis/apps/v1/namespaces/major/statefulsets", body)
    [line] = check(**newer)["text"].splitlines()
    assert "major/postgres runs citadelbuy.local/postgres:15-12, and postgres_image is citadelbuy" in line
    assert "To do: playbooks/upgrade_postgres.yml" in line
    for tag in ("15-12", "15-13", "of-ours"):
        assert not check(**newer | {"postgres_image": f"citadelbuy.local/postgres:{tag}"}).get("failed")


def test_sealed_secrets_needs_leave_for_a_secret_that_exists(check: Check, cluster) -> None:
    leave = "annotate secret citadelbuy-secrets sealedsecrets.bitnami.com/managed=true"
    assert leave not in check("valid/secrets-sealed.yml")["text"]
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": "sealed"}})
    place = "/api/v1/namespaces/sealed/secrets"
    owner = {"apiVersion": "bitnami.com/v1alpha1", "kind": "SealedSecret", "name": "citadelbuy-secrets", "uid": "1"}
    for metadata, taken in (
        ({}, False),
        ({"annotations": {"sealedsecrets.bitnami.com/managed": "true"}}, True),
        ({"ownerReferences": [owner]}, True),
        ({"ownerReferences": [owner | {"kind": "ExternalSecret"}]}, False),
    ):
        cluster.request("POST", place, {"metadata": {"name": "citadelbuy-secrets"} | metadata})
        text = check("valid/secrets-sealed.yml", platform_namespace="sealed")["text"]
        assert (leave in text) is not taken, metadata
        cluster.request("DELETE", f"{place}/citadelbuy-secrets")


def test_flags_and_numbers_on_the_command_line_are_texts_and_mean_what_they_say(check: Check) -> None:
    assert "without Patroni" in check(postgres_replicas="2", postgres_patroni_enabled="false")["text"]
    assert "secrets_jwt_secret is empty" in check(secrets_generate="no")["text"]


def test_an_inventory_can_be_checked_without_its_cluster(check: Check) -> None:
    assert not check(cluster=False, cluster_kubeconfig="/nope").get("failed")


def test_a_template_error_is_found_before_anything_is_applied(check: Check, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "roles/broken/templates"
    folder.mkdir(parents=True)
    (folder / "10-a.yaml.j2").write_text("kind: ConfigMap\nname: {{ broken_nmae }}\n")
    (folder / "20-b.yaml.j2").write_text("{% if %}\n")
    real = preflight.ActionModule._roles

    def with_broken(self):
        return real(self) | {"postgres": preflight.Role(name="broken", path=folder.parent)}

    monkeypatch.setattr(preflight.ActionModule, "_roles", with_broken)
    text = check()["text"]
    assert "10-a.yaml.j2" in text
    assert "broken_nmae" in text
    assert "20-b.yaml.j2" in text


def test_a_wrong_context_lists_the_others(check: Check) -> None:
    assert "it has: admin, nobody" in check(cluster_context="prod")["text"]


def test_an_api_that_does_not_answer_is_one_problem(check: Check, tmp_path: Path, api_server: ApiServer) -> None:
    config = yaml.safe_load(api_server.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_port()}"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    result = check(cluster_kubeconfig=str(tmp_path / "kubeconfig"))
    assert len(result["text"].splitlines()) == 1
    assert "Connection refused" in result["text"]


def test_a_login_that_is_refused_is_one_problem(check: Check, tmp_path: Path, api_server: ApiServer) -> None:
    config = yaml.safe_load(api_server.kubeconfig.read_text())
    config["users"][0]["user"]["token"] = "stale-token"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    text = check(cluster_kubeconfig=str(tmp_path / "kubeconfig"))["text"]
    assert len(text.splitlines()) == 1
    assert "login" in text
    assert "Unauthorized" in text or "401" in text
    assert "stale-token" not in text


def test_missing_permissions_are_named(check: Check) -> None:
    result = check(cluster_context="nobody")
    assert "no permission to create, delete, get, list, patch secrets in namespace citadelbuy" in result["text"]
    assert "no permission to create, get, patch namespaces citadelbuy (cluster-wide)" in result["text"]
    assert "no permission to list namespaces (cluster-wide)" in result["text"]
    assert "no permission to create, get pods/exec in namespace citadelbuy" in result["text"]
    assert any("capacity could not be checked" in warning for warning in result["warnings"])


def test_just_enough_permissions_are_enough(check: Check, cluster) -> None:
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    verbs = ["get", "list", "watch", "create", "patch", "delete"]
    everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": verbs}]
    cluster.request("POST", f"{rbac}/clusterroles", {"metadata": {"name": "deployer"}, "rules": everything})
    binding = {
        "metadata": {"name": "deployer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "deployer"},
        "subjects": [{"kind": "User", "name": "nobody", "apiGroup": "rbac.authorization.k8s.io"}],
    }
    cluster.request("POST", f"{rbac}/clusterrolebindings", binding)
    try:
        result = check(cluster_context="nobody")
    finally:
        cluster.request("DELETE", f"{rbac}/clusterrolebindings/deployer")
        cluster.request("DELETE", f"{rbac}/clusterroles/deployer")
    assert not result.get("failed"), result["text"]


def test_no_default_storage_class(check: Check, cluster) -> None:
    path = "/apis/storage.k8s.io/v1/storageclasses/standard"
    merge = "application/merge-patch+json"
    cluster.request("PATCH", path, {"metadata": {"annotations": None}}, content=merge)
    text = check()["text"]
    for store in ("postgres", "redis", "elasticsearch", "prometheus"):
        assert re.search(f"StatefulSet {store}(, StatefulSet [a-z]+)*: no default StorageClass", text), store
    assert "the cluster has: standard" in text


def test_the_class_of_snapshots(check: Check, cluster) -> None:
    given = {"platform_backups": True, "platform_snapshot_class": "fast"}
    text = check(**given)["text"]
    assert "VolumeSnapshotClass 'fast': the cluster does not serve snapshot.storage.k8s.io/v1: install the CRDs" in text
    serve_snapshots(cluster, "slow")
    try:
        text = check(**given)["text"]
        assert "VolumeSnapshotClass 'fast' does not exist (platform_snapshot_class); the cluster has: slow." in text
        result = check(**given | {"platform_snapshot_class": "slow"})
    finally:
        withdraw_snapshots(cluster)
    assert not result.get("failed"), result["text"]


def test_a_volume_cannot_shrink(check: Check, cluster) -> None:
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": "shrink"}})
    claim = {
        "metadata": {"name": "data-postgres-0"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}},
    }
    cluster.request("POST", "/api/v1/namespaces/shrink/persistentvolumeclaims", claim)
    text = check(platform_namespace="shrink", postgres_storage_size="19Gi")["text"]
    assert "volume data-postgres-0 has 20Gi and cannot shrink to 19Gi" in text
    assert not check(platform_namespace="shrink", postgres_storage_size="20Gi").get("failed")


def test_members_are_not_just_stopped(check: Check, cluster, namespace: str) -> None:
    given = {"platform_namespace": namespace, "capacity": False}
    path = f"/apis/apps/v1/namespaces/{namespace}/statefulsets"
    labels = {"matchLabels": {"app": "x"}}
    pod = {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}
    for name in ("elasticsearch", "postgres"):
        spec = {"replicas": 3, "serviceName": "x", "selector": labels, "template": pod}
        cluster.request("POST", path, {"metadata": {"name": name}, "spec": spec})
    assert check(**given)["text"] == (
        f"Preflight, nothing was changed: StatefulSet {namespace}/elasticsearch has 3 replicas, and 1 are wanted"
        " (elasticsearch_replicas): votes and shards leave a member before it stops, by hand: see docs/operations.md,"
        " Fewer members of Elasticsearch."
    )
    for replicas in (3, 5):
        assert not check(**given, elasticsearch_replicas=replicas).get("failed")


def test_pods_of_others_take_room_and_our_own_do_not(check: Check, cluster, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    container = {"name": "c", "image": "i:1", "resources": {"requests": {"cpu": "1900m"}}}
    for node in ("a", "b"):
        body = {"metadata": {"name": f"big-{node}"}, "spec": {"nodeName": node, "containers": [container]}}
        cluster.request("POST", pods, body)
    try:
        assert "too small" in check()["text"]
        assert any("too small" in warning for warning in check(capacity=False)["warnings"])
        assert not check(platform_namespace=namespace).get("failed")
    finally:  # no kubelet does it
        for node in ("a", "b"):
            cluster.request("DELETE", f"{pods}/big-{node}", {"gracePeriodSeconds": 0})


def test_a_cordoned_node_takes_no_pods(check: Check, cluster) -> None:
    for name in ("a", "b"):
        merge = "application/merge-patch+json"
        cluster.request("PATCH", f"/api/v1/nodes/{name}", {"spec": {"unschedulable": True}}, content=merge)
    assert "no node that is Ready and takes pods" in check()["text"]


def test_nodes_that_prometheus_cannot_reach_are_named(check: Check, cluster) -> None:
    merge = "application/merge-patch+json"
    for name, address in (("a", "10.89.0.11"), ("b", "203.0.113.7")):
        status = {"addresses": [{"type": "InternalIP", "address": address}]}
        cluster.request("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, content=merge)
    # Pods of a test before may take the room.
    assert check(capacity=False)["text"] == (
        "Preflight, nothing was changed: StatefulSet prometheus needs the kubelets of the nodes b (203.0.113.7:10250),"
        " and no network policy lets it: add 203.0.113.7/32, or a network that holds them, to"
        " network_policies_node_cidrs."
    )
    assert not check(capacity=False, network_policies_node_cidrs=["10.89.0.0/24", "203.0.113.0/24"]).get("failed")


def test_a_missing_metrics_api_is_a_warning(check: Check) -> None:
    assert any("citadelbuy-api-hpa" in text and "metrics-server" in text for text in check()["warnings"])


def test_an_old_cluster_is_refused() -> None:
    cluster = MagicMock(server="https://old")
    cluster.request.return_value = (200, {"gitVersion": "v1.23.17-eks"})
    assert "upgrade it to v1.24" in ClusterChecks(cluster, []).run().problems[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", 0.5),
        ("2", 2),
        (2, 2),
        ("1.5", 1.5),
        ("1Gi", GIB),
        ("128974848", 128974848),
        ("1e3", 1000),
        ("1k", 1000),
    ],
)
def test_quantities(text: Any, value: float) -> None:
    assert float(capacity.quantity(text)) == value


def demand(cpu: float, owner: str = "Deployment d", **spec: Any) -> capacity.Demand:
    return capacity.Demand(owner, capacity.Size(capacity.Decimal(str(cpu)), capacity.Decimal(GIB), 1), spec)


def node(name: str, cpu: float, **more: Any) -> capacity.Node:
    free = capacity.Size(capacity.Decimal(str(cpu)), capacity.Decimal(64 * GIB), 110)
    return capacity.Node(name, free, **more)


def test_the_sum_may_fit_where_no_node_has_room() -> None:
    assert capacity.shortage([demand(0.7)] * 3, [], [node("a", 1.4), node("b", 0.7)]) is None
    text = capacity.shortage([demand(0.7)] * 3, [], [node("a", 1.05), node("b", 1.05)])
    assert "fits on no node" in str(text)


def test_only_the_largest_passing_pod_counts() -> None:
    assert capacity.shortage([demand(1)], [demand(0.5), demand(0.5)], [node("a", 1.5)]) is None
    assert "Job migrate" in str(capacity.shortage([demand(1)], [demand(0.6, "Job migrate")], [node("a", 1.5)]))


def test_taints_keep_pods_away() -> None:
    taint = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
    tainted = [node("a", 4, taints=[taint])]
    assert "taints" in str(capacity.shortage([demand(1)], [], tainted))
    tolerant = demand(1, tolerations=[{"operator": "Exists"}])
    assert capacity.shortage([tolerant], [], tainted) is None


def test_requests_of_a_pod() -> None:
    def container(cpu: str, **more: Any) -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": cpu}}} | more

    spec = {
        "initContainers": [container("100m", restartPolicy="Always"), container("900m")],
        "containers": [container("200m"), {"resources": {"limits": {"cpu": "300m"}}}],
    }
    assert capacity.pod_size(spec).cpu == capacity.Decimal("1.0")


def play(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the playbook as a user does."""
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "playbooks/preflight.yml", *arguments]
    env = os.environ | {"ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, env=env)


def test_the_playbook_tells_all_and_has_changed_nothing() -> None:
    done = play("-e", "cluster_kubeconfig=/nope", "-e", "redis_replicas=abc", "--check")
    assert done.returncode == 2
    assert "Preflight found 2 problems, nothing was changed." in done.stdout + done.stderr
    assert "- variable redis_replicas (set by cli option" in done.stdout or "- variable redis_replicas" in done.stdout
    assert "kubeconfig /nope does not exist" in done.stdout
    assert "changed=0" in done.stdout


def test_a_missing_vault_password_is_one_clear_error(tmp_path: Path) -> None:
    vault = str(Path(sys.executable).with_name("ansible-vault"))
    shutil.copytree(CHECKOUT / "inventories/local", tmp_path / "inventory")
    secret = tmp_path / "inventory/group_vars/clusters/secrets.yml"
    secret.write_text("secrets_jwt_secret: vErY-sHoRt\n")
    (tmp_path / "password").write_text("x\n")
    encrypt = [vault, "encrypt", "--vault-password-file", str(tmp_path / "password"), str(secret)]
    subprocess.run(encrypt, check=True, capture_output=True)
    done = play("-i", str(tmp_path / "inventory"))
    assert done.returncode != 0
    errors = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith(("[ERROR]", "[WARNING]"))]
    assert errors == ["[ERROR]: Attempting to decrypt but no vault secrets found."]


def test_the_class_and_the_certificate_of_an_ingress(check: Check, cluster) -> None:
    classes, merge = "/apis/networking.k8s.io/v1/ingressclasses", "application/merge-patch+json"
    body = {"metadata": {"name": "public"}, "spec": {"controller": "example.com/none"}}
    given = {"platform_ingress": "ingress", "platform_namespace": "way-in"}
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": "way-in"}})
    cluster.request("POST", classes, body)
    try:
        assert (
            "IngressClass 'nginx' does not exist (ingress_class); the cluster has: public."
            in (check(ingress_class="nginx", **given)["text"])
        )
        assert not check(ingress_class="public", **given).get("failed")
        assert "no default IngressClass: name one in ingress_class; the cluster has: public." in check(**given)["text"]
        annotations = {"ingressclass.kubernetes.io/is-default-class": "true"}
        cluster.request("PATCH", f"{classes}/public", {"metadata": {"annotations": annotations}}, content=merge)
        assert not check(**given).get("failed")
        # cert-manager makes the one, somebody the other.
        assert "the cluster has no cert-manager" in check(ingress_certificate_issuer="acme", **given)["text"]
        [line] = check(ingress_tls_secret="shop", **given)["text"].splitlines()
        assert "Ingress citadelbuy: Secret way-in/shop has no tls.crt and no tls.key (ingress_tls_secret)" in line
        path = "/api/v1/namespaces/way-in/secrets"
        secret = {"metadata": {"name": "shop"}, "data": {"tls.crt": "", "tls.key": ""}, "type": "kubernetes.io/tls"}
        cluster.request("POST", path, secret)
        for kind in ("ingress", "traefik"):
            assert not check(ingress_tls_secret="shop", **given | {"platform_ingress": kind}).get("failed")
    finally:
        cluster.request("DELETE", f"{classes}/public")


def test_the_gateway_of_the_routes(check: Check, cluster) -> None:
    given = {"platform_ingress": "gateway", "ingress_gateway_name": "public", "ingress_gateway_namespace": "gateways"}
    text = check(**given)["text"]
    assert "the cluster does not serve gateway.networking.k8s.io/v1 HTTPRoute: install its operator." in text
    assert len(text.splitlines()) == 1
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": "gateways"}})
    serve_gateways(cluster)
    try:
        text = check(**given)["text"]
        for route in ("citadelbuy", "citadelbuy-to-https"):
            assert f"HTTPRoute {route}: Gateway gateways/public does not exist (ingress_gateway_name" in text
        listeners = [{"name": name, "port": port, "protocol": "HTTP"} for name, port in (("http", 80), ("tls", 443))]
        body = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "public"}}
        body |= {"spec": {"gatewayClassName": "any", "listeners": listeners}}
        cluster.request("POST", "/apis/gateway.networking.k8s.io/v1/namespaces/gateways/gateways", body)
        [line] = check(**given)["text"].splitlines()
        assert "HTTPRoute citadelbuy: Gateway gateways/public has no listener https" in line
        assert line.endswith("it has: http, tls.")
        assert not check(ingress_gateway_https_listener="tls", **given).get("failed")
    finally:
        withdraw_gateways(cluster)


def test_an_image_that_is_not_used_needs_no_digest(check: Check) -> None:
    given = {"ingress_traefik_image": "registry.example.com:5000/traefik:3", "ingress_class": "nginx"}
    refused = "ingress_traefik_image: image registry.example.com:5000/traefik:3 has no digest"
    assert refused in check("valid/every-image-by-digest.yml", cluster=False, **given)["text"]
    given["platform_ingress"] = "ingress"
    assert not check("valid/every-image-by-digest.yml", cluster=False, **given).get("failed")
