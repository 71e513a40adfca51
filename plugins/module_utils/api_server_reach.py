"""Whether the pods that talk to the API server are let out to it by the network policies applied with them."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Any

Body = dict[str, Any]
Endpoint = tuple[str, int]


def endpoints(slices: Iterable[Body]) -> list[Endpoint]:
    """Addresses and ports of the API server, from the EndpointSlices of the Service kubernetes."""
    return [
        (address, port["port"])
        for item in slices
        for address in (address for endpoint in item.get("endpoints") or [] for address in endpoint["addresses"])
        for port in item.get("ports") or []
    ]


def cut_off(bodies: Iterable[Body], api_server: Iterable[Endpoint]) -> list[tuple[Body, Endpoint]]:
    """Workloads that mount a token for the API server, with each of its addresses that no policy lets them reach.

    A NetworkPolicy of policyTypes Egress denies what no policy allows (Kubernetes, Network Policies). Only ipBlocks
    count: the API server is no pod that a selector could select.
    """
    bodies = list(bodies)
    policies = [body for body in bodies if body["kind"] == "NetworkPolicy"]
    found: list[tuple[Body, Endpoint]] = []
    for body in bodies:
        template = (body.get("spec") or {}).get("template") or {}
        if not _has_token(template.get("spec") or {}):
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
                (body, endpoint) for endpoint in api_server if not any(_lets_out(spec, endpoint) for spec in over_it)
            ]
    return found


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
