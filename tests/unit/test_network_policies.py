"""Network policies: their order, their document, and that they leave the pods that need the API server a way to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils.rank import rank_of
from ansible_collections.citadelbuy.platform.plugins.module_utils.reach import (
    cut_off,
    endpoints,
    kubelets,
    reads_kubelets,
)

CHECKOUT = Path(__file__).resolve().parents[2]
API_SERVER = ("10.89.0.11", 6443)


def policy(egress: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    """A NetworkPolicy over the pods of Patroni."""
    spec = {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"], "egress": egress or []} | more
    return {"kind": "NetworkPolicy", "metadata": {"name": "db", "namespace": "shop"}, "spec": spec}


def workload(**spec: Any) -> dict[str, Any]:
    """A StatefulSet whose pods have a token, unless said otherwise."""
    template = {"metadata": {"labels": {"app": "db", "tier": "database"}}}
    template["spec"] = spec or {
        "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]
    }
    return {"kind": "StatefulSet", "metadata": {"name": "db", "namespace": "shop"}, "spec": {"template": template}}


def out(cidr: str, port: int = 6443, **more: Any) -> list[dict[str, Any]]:
    """One egress rule."""
    return [{"to": [{"ipBlock": {"cidr": cidr} | more}], "ports": [{"port": port, "protocol": "TCP"}]}]


def test_the_document_is_current() -> None:
    tool = CHECKOUT / "tests/tools/network_table.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_allowed_stands_before_the_rest_is_denied() -> None:
    everything = {"kind": "NetworkPolicy", "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}}
    assert rank_of(policy()) < rank_of(everything)


@pytest.mark.parametrize(
    ("policies", "reached"),
    [
        ([], True),  # nothing is denied
        ([policy()], False),
        ([policy(policyTypes=["Ingress"])], True),
        ([policy(podSelector={"matchLabels": {"app": "web"}})], True),  # somebody else's
        ([policy(podSelector={})], False),
        ([policy(out("10.89.0.0/24"))], True),
        ([policy(out("10.89.0.0/24", **{"except": ["10.89.0.11/32"]}))], False),
        ([policy(out("10.89.1.0/24"))], False),
        ([policy(out("10.89.0.0/24", port=443))], False),
        ([policy([{"to": [{"podSelector": {}}]}])], False),  # the API server is no pod
        ([policy([{}])], True),
        ([policy(), policy(out("10.89.0.11/32"))], True),  # policies add up
    ],
)
def test_the_way_to_the_api_server(policies: list[dict[str, Any]], reached: bool) -> None:
    found = cut_off([workload(), *policies], [API_SERVER])
    assert found == ([] if reached else [(workload(), API_SERVER)])


def test_who_has_no_token_needs_no_way() -> None:
    assert cut_off([workload(automountServiceAccountToken=False), policy()], [API_SERVER]) == []
    assert len(cut_off([workload(automountServiceAccountToken=True), policy()], [API_SERVER])) == 1


def test_every_address_of_the_api_server_counts() -> None:
    slices = [{"endpoints": [{"addresses": ["10.89.0.11"]}, {"addresses": ["10.89.0.12"]}], "ports": [{"port": 6443}]}]
    found = cut_off([workload(), policy(out("10.89.0.11/32"))], endpoints(slices))
    assert [endpoint for _, endpoint in found] == [("10.89.0.12", 6443)]


def node(name: str, address: str, port: int | None = None) -> dict[str, Any]:
    """A node with an InternalIP, a name, and perhaps its kubelet's port."""
    addresses = [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]
    ports = {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}} if port else {}
    return {"metadata": {"name": name}, "status": {"addresses": addresses} | ports}


def test_who_reads_kubelets_needs_a_way_to_every_node() -> None:
    nodes = kubelets([node("a", "10.89.0.11"), node("b", "10.89.0.12", 10255), {"metadata": {"name": "new"}}])
    assert nodes == {("10.89.0.11", 10250): "a", ("10.89.0.12", 10255): "b"}
    role = {"kind": "ClusterRole", "metadata": {"name": "db"}, "rules": [{"resources": ["nodes", "nodes/metrics"]}]}
    subjects = [{"kind": "ServiceAccount", "name": "db", "namespace": "shop"}]
    binding = {"kind": "ClusterRoleBinding", "metadata": {}, "roleRef": {"name": "db"}, "subjects": subjects}
    bodies = [workload(serviceAccountName="db"), policy(out("10.89.0.11/32", port=10250)), role, binding]
    found = cut_off(bodies, nodes, reads_kubelets(bodies))
    assert [nodes[endpoint] for _, endpoint in found] == ["b"]
    for bodies in (
        [workload(serviceAccountName="other"), policy(), role, binding],
        [workload(serviceAccountName="db"), policy(), role | {"rules": [{"resources": ["nodes"]}]}, binding],
    ):
        assert cut_off(bodies, nodes, reads_kubelets(bodies)) == []
