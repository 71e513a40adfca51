"""Whether network policies let one pod reach another, as the API's documentation defines it."""

from __future__ import annotations

import ipaddress
from typing import Any

Body = dict[str, Any]


def selects(selector: Body | None, labels: dict[str, str]) -> bool:
    """Whether a label selector selects; an empty one selects everything."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for rule in selector.get("matchExpressions") or []:
        value, values = labels.get(rule["key"]), rule.get("values") or []
        held = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }.get(rule["operator"], False)
        if not held:
            return False
    return True


def policies_of(pod: Body, policies: list[Body], direction: str | None = None) -> list[Body]:
    """The policies that select a pod, of one direction (Ingress, Egress) or of any."""
    return [
        policy
        for policy in policies
        if policy["metadata"].get("namespace") == pod["metadata"].get("namespace")
        and selects(policy["spec"].get("podSelector"), pod["metadata"].get("labels") or {})
        and (direction is None or direction in _types(policy))
    ]


def _types(policy: Body) -> list[str]:
    spec = policy["spec"]
    return spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") is not None else [])]


def _is_peer(peer: Body, pod: Body, own_namespace: str, namespaces: dict[str, dict[str, str]]) -> bool:
    if "ipBlock" in peer:
        address = (pod.get("status") or {}).get("podIP")
        if not address:
            return False
        block = peer["ipBlock"]
        inside = ipaddress.ip_address(address) in ipaddress.ip_network(block["cidr"], strict=False)
        return inside and not any(
            ipaddress.ip_address(address) in ipaddress.ip_network(cidr, strict=False)
            for cidr in block.get("except") or []
        )
    namespace = pod["metadata"].get("namespace", "")
    if "namespaceSelector" in peer:
        labels = namespaces.get(namespace, {"kubernetes.io/metadata.name": namespace})
        if not selects(peer["namespaceSelector"], labels):
            return False
    elif namespace != own_namespace:
        return False
    return selects(peer.get("podSelector"), pod["metadata"].get("labels") or {})


def _is_port(entry: Body, target: Body, port: int, protocol: str) -> bool:
    if entry.get("protocol", "TCP") != protocol:
        return False
    wanted = entry.get("port")
    if isinstance(wanted, str):
        named = {
            item.get("name"): item["containerPort"]
            for container in target["spec"].get("containers") or []
            for item in container.get("ports") or []
        }
        wanted = named.get(wanted, -1)
    return wanted is None or wanted <= port <= entry.get("endPort", wanted)


def _lets(
    policy: Body, field: str, peer: Body, target: Body, port: int, protocol: str, namespaces: dict[str, dict[str, str]]
) -> bool:
    peers, own = ("from" if field == "ingress" else "to"), policy["metadata"].get("namespace", "")
    return any(
        (not rule.get("ports") or any(_is_port(entry, target, port, protocol) for entry in rule["ports"]))
        and (not rule.get(peers) or any(_is_peer(one, peer, own, namespaces) for one in rule[peers]))
        for rule in policy["spec"].get(field) or []
    )


def refusals(
    source: Body,
    target: Body,
    port: int,
    policies: list[Body],
    namespaces: dict[str, dict[str, str]],
    protocol: str = "TCP",
) -> list[str]:
    """Why policies do not let one pod reach a port of another; empty where they do.

    :param port: the container's port.
    :param namespaces: labels by namespace.
    """
    found = []
    names = source["metadata"]["name"], target["metadata"]["name"]
    for direction, field, pod, peer in (("Egress", "egress", source, target), ("Ingress", "ingress", target, source)):
        chosen = policies_of(pod, policies, direction)
        if chosen and not any(_lets(policy, field, peer, target, port, protocol, namespaces) for policy in chosen):
            policy_names = ", ".join(policy["metadata"]["name"] for policy in chosen)
            way = f"to pod {names[1]}" if field == "egress" else f"from pod {names[0]}"
            found.append(
                f"{direction.lower()} of pod {pod['metadata']['name']} {way}, port {port}/{protocol}: it is selected by"
                f" NetworkPolicy {policy_names} ({pod['metadata'].get('namespace')}), and none lets this through"
            )
    return found
