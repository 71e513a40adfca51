#!/usr/bin/env python3
"""Enforces NetworkPolicies on one node of the embedded cluster. For local use: other clusters have a CNI that does it.

network_policy_agent.py NODE POD_NETWORK KUBECONFIG SOCKET

It watches pods, namespaces and policies, and keeps one nftables table that is replaced in a single transaction. A pod
of this node that it does not know may neither send nor receive. The CNI asks over SOCKET before a pod's first container
starts, and has its answer when the pod's rules stand: no pod is open for a moment, and none loses its first packets.
What the node itself sends to its own pods is never filtered, as Kubernetes demands. Established connections are left
alone when a policy changes.

Rules: https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import ipaddress
import json
import logging
import os
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

Object = dict[str, Any]
TABLE = "citadelbuy_network_policy"
RESOURCES = {
    "pods": "/api/v1/pods",
    "namespaces": "/api/v1/namespaces",
    "networkpolicies": "/apis/networking.k8s.io/v1/networkpolicies",
}
BATCH = 0.03  # seconds in which changes are gathered
AGAIN = 0.5  # seconds between tries to reach the API
SILENCE = 90  # seconds after which a watch without a word (the API sends a bookmark each minute) is taken for lost
PATIENCE = 5.0  # seconds that a new pod waits for its rules; after that it starts, and is denied until they stand
OPERATORS: dict[str, Callable[[str | None, list[str]], bool]] = {
    "In": lambda value, values: value is not None and value in values,
    "NotIn": lambda value, values: value not in values,  # true where the label is missing
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
}
log = logging.getLogger("network-policy")


@dataclass(frozen=True)
class Pod:
    """What counts of a pod."""

    uid: str
    namespace: str
    labels: dict[str, str]
    address: str
    node: str
    ports: tuple[tuple[str, str, int], ...]  # name, protocol, number


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector selects; an empty one selects everything."""
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items()) and all(
        OPERATORS[item["operator"]](labels.get(item["key"]), item.get("values") or [])
        for item in selector.get("matchExpressions") or []
    )


def pods_with_address(objects: Iterable[Object], told: dict[str, str]) -> list[Pod]:
    """The pods that policies are about: with an address of their own, and not ended.

    :param told: addresses by uid that the CNI has told; the API knows them later, and forgets former ones later.
    """
    found = []
    owners = {address: uid for uid, address in told.items()}
    for item in objects:
        spec, status, metadata = item["spec"], item.get("status") or {}, item["metadata"]
        uid = metadata["uid"]
        listed = [entry["ip"] for entry in status.get("podIPs") or [] if ":" not in entry["ip"]]
        address = told.get(uid) or next((entry for entry in listed if owners.get(entry, uid) == uid), None)
        if spec.get("hostNetwork") or not address or status.get("phase") in ("Succeeded", "Failed"):
            continue
        ports = tuple(
            (port["name"], port.get("protocol") or "TCP", port["containerPort"])
            for container in [*(spec.get("initContainers") or []), *spec["containers"]]
            for port in container.get("ports") or []
            if port.get("name")
        )
        place = (metadata["namespace"], metadata.get("labels") or {}, address, spec.get("nodeName") or "")
        found.append(Pod(uid, *place, ports))
    # Who an address belongs to is unknown where two pods claim it: neither is let through.
    claims = Counter(pod.address for pod in found)
    return sorted((pod for pod in found if claims[pod.address] == 1), key=lambda pod: pod.address)


@dataclass
class Ruleset:
    """The nftables table of one node, compiled from the state of the whole cluster."""

    node: str
    pod_network: str
    pods: list[Pod]
    namespaces: dict[str, dict[str, str]]  # labels by name
    policies: list[Object]
    _sets: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """What `nft -f` takes: it replaces the whole table in one transaction."""
        local = [pod for pod in self.pods if pod.node == self.node]
        own = sorted({pod.address for pod in local})
        chains: dict[str, list[str]] = {}
        maps = {"ingress": self._verdicts(local, "Ingress", chains), "egress": self._verdicts(local, "Egress", chains)}
        lines = [f"add table ip {TABLE}", f"delete table ip {TABLE}", f"table ip {TABLE} {{"]
        lines += _collection("set known", "type ipv4_addr", own)
        lines += _collection("set itself", "type ipv4_addr . ipv4_addr", [f"{address} . {address}" for address in own])
        for name, declared in sorted(self._sets.items()):
            lines.append(f"  set {name} {{ {declared} }}")
        for name in sorted(chains):
            lines += [f"  chain {name} {{", *(f"    {rule}" for rule in chains[name]), "    drop", "  }"]
        for name, elements in maps.items():
            lines += _collection(f"map {name}", "type ipv4_addr : verdict", elements)
        network = self.pod_network
        # After kube-proxy's, which refuses what is for a Service that leads nowhere: dropped, it would be waited for.
        lines += [
            "  chain from_pod {",
            "    ip saddr . ip daddr @itself accept",
            "    ip saddr != @known drop",
            "    ip saddr vmap @egress",
            "  }",
            "  chain to_pod {",
            "    ip daddr != @known drop",
            "    ip daddr vmap @ingress",
            "  }",
            "  chain forward {",
            "    type filter hook forward priority filter + 10",
            "    ct state established,related accept",
            f"    ip saddr {network} jump from_pod",
            f"    ip daddr {network} jump to_pod",
            "  }",
            "  chain input {",
            "    type filter hook input priority filter + 10",
            "    iifname lo accept",
            "    ct state established,related accept",
            f"    ip saddr {network} jump from_pod",
            "  }",
            "}",
        ]
        return "\n".join(lines) + "\n"

    def _verdicts(self, local: list[Pod], direction: str, chains: dict[str, list[str]]) -> list[str]:
        """Where each isolated pod's packets of a direction go; pods with the same policies share a chain."""
        elements = []
        of_direction = [policy for policy in self.policies if direction in policy_types(policy["spec"])]
        compiled: dict[str, list[str]] = {}
        for pod in local:
            over_it = [
                policy
                for policy in of_direction
                if policy["metadata"]["namespace"] == pod.namespace
                and selects(policy["spec"].get("podSelector") or {}, pod.labels)
            ]
            if not over_it:
                continue
            keys = sorted(policy["metadata"]["uid"] for policy in over_it)
            name = f"{direction.lower()}_{_short('|'.join(keys))}"
            if name not in chains:
                rules: list[str] = []
                for policy in over_it:
                    uid = policy["metadata"]["uid"]
                    if uid not in compiled:
                        compiled[uid] = list(self._rules(policy, direction))
                    rules += compiled[uid]
                chains[name] = rules
            elements.append(f"{pod.address} : jump {name}")
        return sorted(set(elements))

    def _rules(self, policy: Object, direction: str) -> Iterator[str]:
        """What a policy allows, as rules that let a packet go on."""
        side, peers, address = ("ingress", "from", "saddr") if direction == "Ingress" else ("egress", "to", "daddr")
        for rule in policy["spec"].get(side) or []:
            for where in self._addresses(policy["metadata"]["namespace"], rule.get(peers) or [], address):
                for port in self._ports(rule.get("ports") or []):
                    yield " ".join(part for part in (where, port, "return") if part)

    def _addresses(self, namespace: str, peers: list[Object], address: str) -> Iterator[str]:
        """The matches for the peers of a rule; without peers, anybody."""
        if not peers:
            yield ""
            return
        members = sorted(
            {pod.address for peer in peers if "ipBlock" not in peer for pod in self._peer(namespace, peer)}
        )
        if members:
            yield f"ip {address} @{self._set('peers', 'type ipv4_addr', members)}"
        for peer in peers:
            block = peer.get("ipBlock")
            if block and ":" not in block["cidr"]:
                holes = ", ".join(hole for hole in block.get("except") or [] if ":" not in hole)
                cidr = ipaddress.ip_network(block["cidr"], strict=False)
                yield f"ip {address} {cidr}" + (f" ip {address} != {{ {holes} }}" if holes else "")

    def _peer(self, namespace: str, peer: Object) -> Iterator[Pod]:
        """The pods that a podSelector, a namespaceSelector, or both together mean."""
        by_namespace, by_pod = peer.get("namespaceSelector"), peer.get("podSelector") or {}
        for pod in self.pods:
            if by_namespace is None:
                there = pod.namespace == namespace
            else:
                there = pod.namespace in self.namespaces and selects(by_namespace, self.namespaces[pod.namespace])
            if there and selects(by_pod, pod.labels):
                yield pod

    def _ports(self, ports: list[Object]) -> Iterator[str]:
        """The matches for the ports of a rule; without ports, any protocol and port."""
        if not ports:
            yield ""
        for port in ports:
            protocol = (port.get("protocol") or "TCP").lower()
            number = port.get("port")
            if number is None:
                yield f"meta l4proto {protocol}"
            elif isinstance(number, int):
                last = port.get("endPort")
                yield f"meta l4proto {protocol} th dport {number}" + (f"-{last}" if last else "")
            else:
                # A name is what the pod that receives calls it.
                members = sorted(
                    f"{pod.address} . {protocol} . {own}"
                    for pod in self.pods
                    for name, of, own in pod.ports
                    if (name, of.lower()) == (number, protocol)
                )
                if members:
                    kind = "type ipv4_addr . inet_proto . inet_service"
                    yield f"ip daddr . meta l4proto . th dport @{self._set('ports', kind, members)}"

    def _set(self, prefix: str, kind: str, members: list[str]) -> str:
        """The name of a set with these members; the same members are one set."""
        declared = f"{kind}; elements = {{ {', '.join(dict.fromkeys(members))} }}"
        name = f"{prefix}_{_short(declared)}"
        self._sets[name] = declared
        return name


def policy_types(spec: Object) -> list[str]:
    """Without policyTypes a policy is about ingress, and about egress where it has egress rules."""
    return spec.get("policyTypes") or ["Ingress"] + (["Egress"] if spec.get("egress") else [])


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _collection(head: str, kind: str, elements: list[str]) -> list[str]:
    """A set or map, which nft wants without `elements` where it is empty."""
    return [f"  {head} {{ {kind};" + (f" elements = {{ {', '.join(elements)} }}" if elements else "") + " }"]


class Api:
    """The node's way to the API, with the kubelet's credentials."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def get(self, path: str) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        """Ask for a path. The kubelet renews its certificate, so it is read for each connection.

        :raises OSError: when there is no answer, it is no success, or the kubeconfig is missing or not whole yet.
        """
        try:
            config = yaml.safe_load(self.kubeconfig.read_text(encoding="utf-8"))
            cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
            authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
            context = ssl.create_default_context(cadata=authority)
            if "client-certificate" in user:
                context.load_cert_chain(user["client-certificate"], user["client-key"])
            else:
                with tempfile.NamedTemporaryFile(prefix="network-policy-") as pem:
                    pem.write(
                        b"".join(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key"))
                    )
                    pem.flush()
                    context.load_cert_chain(pem.name)
            url = urlsplit(cluster["server"])
        except (yaml.YAMLError, LookupError, TypeError) as error:
            raise ConnectionError(f"{self.kubeconfig} is not whole: {error}") from None
        connection = http.client.HTTPSConnection(url.hostname or "", url.port, context=context, timeout=SILENCE)
        connection.request("GET", path, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            connection.close()
            raise ConnectionError(f"GET {path.partition('?')[0]}: {answer.status} {answer.reason}")
        return connection, answer


class State:
    """What the API says, and what the CNI has told; its watches run in threads."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.objects: dict[str, dict[str, Object]] = {}  # by resource and uid; missing until first listed
        self.told: dict[str, str] = {}
        self.generation = 0  # of what is known
        self.changed = threading.Condition()

    def watch(self) -> None:
        """Start to watch everything."""
        for resource in RESOURCES:
            threading.Thread(target=self._follow, args=(resource,), daemon=True).start()

    def synced(self) -> bool:
        """Whether everything was listed once."""
        return len(self.objects) == len(RESOURCES)

    def update(self, change: Callable[[], None]) -> int:
        """Make a change; returns its generation."""
        with self.changed:
            change()
            self.generation += 1
            self.changed.notify_all()
            return self.generation

    def _follow(self, resource: str) -> None:
        told = ""
        while True:
            try:
                self._stream(resource, self._list(resource))
            except (OSError, http.client.HTTPException, ValueError) as error:
                if str(error) != told:
                    told = str(error)
                    log.info("%s: %s; listing again", resource, told)
                time.sleep(AGAIN)

    def _list(self, resource: str) -> str:
        connection, answer = self.api.get(RESOURCES[resource])
        try:
            found = json.load(answer)
        finally:
            connection.close()
        items = {item["metadata"]["uid"]: item for item in found.get("items") or []}

        def take() -> None:
            gone = self.objects.get(resource, {}).keys() - items.keys()
            self.objects[resource] = items
            for uid in gone:
                self.told.pop(uid, None)

        self.update(take)
        return found["metadata"]["resourceVersion"]

    def _stream(self, resource: str, version: str) -> None:
        query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
        connection, answer = self.api.get(f"{RESOURCES[resource]}?{urlencode(query)}")
        try:
            while line := answer.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":  # mostly 410: the version is too old
                    raise ConnectionError(event["object"].get("message"))
                if event["type"] != "BOOKMARK":
                    self.update(lambda event=event: self._take(resource, event))
        finally:
            connection.close()

    def _take(self, resource: str, event: Object) -> None:
        uid = event["object"]["metadata"]["uid"]
        if event["type"] == "DELETED":
            self.objects[resource].pop(uid, None)
            self.told.pop(uid, None)
        else:
            self.objects[resource][uid] = event["object"]

    def ruleset(self, node: str, pod_network: str) -> Ruleset:
        """The rules for what is known; call it with the lock held."""
        return Ruleset(
            node,
            pod_network,
            pods_with_address(self.objects["pods"].values(), self.told),
            {
                item["metadata"]["name"]: item["metadata"].get("labels") or {}
                for item in self.objects["namespaces"].values()
            },
            sorted(self.objects["networkpolicies"].values(), key=lambda item: item["metadata"]["uid"]),
        )


class Agent:
    """Keeps the node's table as the state wants it."""

    def __init__(self, state: State, node: str, pod_network: str, load: Callable[[str], None]) -> None:
        self.state, self.node, self.pod_network, self.load = state, node, pod_network, load
        self.applied = -1  # generation of the state that the table stands for
        self.standing: set[str] = set()  # uids of this node's pods that it knows
        self._text = self._refused = ""

    def run(self) -> None:
        """Apply every change, those that come together at once."""
        while True:
            with self.state.changed:
                self.state.changed.wait_for(lambda: self.state.synced() and self.applied != self.state.generation)
            time.sleep(BATCH)
            self.apply()

    def apply(self) -> None:
        """Bring the table up to date; where nft refuses, the old one stays, and it is tried again."""
        with self.state.changed:
            generation = self.state.generation
            ruleset = self.state.ruleset(self.node, self.pod_network)
        text = ruleset.text()
        if text != self._text:
            try:
                self.load(text)
                self._text = text
            except subprocess.CalledProcessError as error:
                if error.stderr != self._refused:
                    self._refused = error.stderr
                    log.error("nft refused the rules, the former ones stay: %s", error.stderr[:2000])
                time.sleep(AGAIN)
                return
        with self.state.changed:
            self.applied = generation
            self.standing = {pod.uid for pod in ruleset.pods if pod.node == self.node}
            self.state.changed.notify_all()

    def admit(self, uid: str, address: str) -> None:
        """Wait until a new pod's rules stand; not where nothing is known yet, since it is denied until then."""
        generation = self.state.update(lambda: self.state.told.__setitem__(uid, address))
        with self.state.changed:
            if self.state.synced():
                self.state.changed.wait_for(lambda: uid in self.standing and self.applied >= generation, PATIENCE)


class Asked(socketserver.StreamRequestHandler):
    """A question of the CNI: its arguments in a line, then its configuration; answered with the address's result."""

    def handle(self) -> None:
        """Answer when the pod's rules stand."""
        arguments = dict(
            pair.split("=", 1) for pair in self.rfile.readline().decode().strip().split(";") if "=" in pair
        )
        result = json.load(self.rfile)["prevResult"]
        for entry in result.get("ips") or []:
            address = entry["address"].partition("/")[0]
            if ":" not in address:
                self.server.agent.admit(arguments["K8S_POD_UID"], address)  # type: ignore[attr-defined]
        self.wfile.write(json.dumps(result).encode())


def answer_cni(agent: Agent, place: str) -> None:
    """Listen for the CNI."""
    Path(place).unlink(missing_ok=True)
    server = socketserver.ThreadingUnixStreamServer(place, Asked)
    os.chmod(place, 0o600)
    server.agent = agent  # type: ignore[attr-defined]
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()


def nft(text: str) -> None:
    """Replace the table."""
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True, capture_output=True)


def end(failure: threading.ExceptHookArgs) -> None:
    """End the program, which the supervisor starts anew: without one of its threads it would enforce a former state."""
    log.critical("ends: %s", failure.thread, exc_info=(failure.exc_type, failure.exc_value, failure.exc_traceback))  # type: ignore[arg-type]
    os._exit(1)


def main() -> None:
    """Run until ended."""
    threading.excepthook = end
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    node, pod_network, kubeconfig, place = sys.argv[1:]
    state = State(Api(Path(kubeconfig)))  # kubeadm writes it: until then its reading fails, and is tried again
    agent = Agent(state, node, pod_network, nft)
    answer_cni(agent, place)
    state.watch()
    agent.run()


if __name__ == "__main__":
    main()
