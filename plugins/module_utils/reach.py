"""Whether pods are let out to the API server and to the nodes by the network policies applied with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from typing import Any

Body = dict[str, Any]
Endpoint = tuple[str, int]
KUBELET_PORT = 10250


def endpoints(slices: Iterable[Body]) -> list[Endpoint]:
    """Addresses and ports of the API server, from the EndpointSlices of the Service kubernetes."""
    return [
        (address, port["port"])
        for item in slices
        for address in (address for endpoint in item.get("endpoints") or [] for address in endpoint["addresses"])
        for port in item.get("ports") or []
    ]


def kubelets(nodes: Iterable[Body]) -> dict[Endpoint, str]:
    """The kubelets' addresses and ports, each with the name of its node; one without an InternalIP has none."""
    found = {}
    for node in nodes:
        status = node.get("status") or {}
        port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port") or KUBELET_PORT
        for address in status.get("addresses") or []:
            if address["type"] == "InternalIP":
                found[address["address"], port] = node["metadata"]["name"]
    return found


def cut_off(
    bodies: Iterable[Body], targets: Iterable[Endpoint], needs: Callable[[Body], bool] | None = None
) -> list[tuple[Body, Endpoint]]:
    """Workloads with each of the targets that no policy lets them reach.

    A NetworkPolicy of policyTypes Egress denies what no policy allows (Kubernetes, Network Policies). Only ipBlocks
    count: the targets are no pods that a selector could select.

    :param needs: whether a workload talks to the targets; by default those do that mount a token for the API server.
    """
    bodies = list(bodies)
    policies = [body for body in bodies if body["kind"] == "NetworkPolicy"]
    found: list[tuple[Body, Endpoint]] = []
    for body in bodies:
        template = (body.get("spec") or {}).get("template") or {}
        if not (needs(body) if needs else _has_token(template.get("spec") or {})):
            continue
        labels = (template.get("metadata") or {}).get("labels") or {}
        namespace = body["metadata"].get("namespace")
        over_it = [
            policy["spec"]
            for policy in policies
            if policy["metadata"].get("namespace") == namespace
            and "Egress" in (policy["spec"].get("policyTypes") or [])
            and _selects(policy["spec"].get("podSelector") or {}, labels)
        ]
        if over_it:
            found += [
                (body, endpoint) for endpoint in targets if not any(_lets_out(spec, endpoint) for spec in over_it)
            ]
    return found


def reads_kubelets(bodies: Iterable[Body]) -> Callable[[Body], bool]:
    """Whether a workload's account is given the metrics of kubelets by a ClusterRole that is applied with it."""
    bodies = list(bodies)
    roles = {
        body["metadata"]["name"]
        for body in bodies
        if body["kind"] == "ClusterRole"
        and any("nodes/metrics" in (rule.get("resources") or []) for rule in body.get("rules") or [])
    }
    accounts = {
        (subject.get("namespace"), subject["name"])
        for body in bodies
        if body["kind"] == "ClusterRoleBinding" and body["roleRef"]["name"] in roles
        for subject in body.get("subjects") or []
    }

    def reads(body: Body) -> bool:
        spec = ((body.get("spec") or {}).get("template") or {}).get("spec") or {}
        return (body["metadata"].get("namespace"), spec.get("serviceAccountName")) in accounts

    return reads


def _has_token(spec: Body) -> bool:
    """Whether pods get a token; the service account's own word does not count, our templates say it themselves."""
    sources = [
        source
        for volume in spec.get("volumes") or []
        for source in (volume.get("projected") or {}).get("sources") or []
    ]
    return bool(spec.get("automountServiceAccountToken")) or any("serviceAccountToken" in source for source in sources)


def _selects(selector: Body, labels: dict[str, str]) -> bool:
    return (selector.get("matchLabels") or {}).items() <= labels.items()


def _lets_out(spec: Body, endpoint: Endpoint) -> bool:
    address, number = endpoint
    return any(
        (not rule.get("ports") or any(_is_port(port, number) for port in rule["ports"]))
        and (not rule.get("to") or any(_holds(peer.get("ipBlock"), address) for peer in rule["to"]))
        for rule in spec.get("egress") or []
    )


def _is_port(port: Body, number: int) -> bool:
    return port.get("protocol", "TCP") == "TCP" and port.get("port") in (None, number)


def _holds(block: Body | None, address: str) -> bool:
    if not block:
        return False
    inside = ip_address(address) in ip_network(block["cidr"], strict=False)
    return inside and not any(
        ip_address(address) in ip_network(hole, strict=False) for hole in block.get("except") or []
    )
