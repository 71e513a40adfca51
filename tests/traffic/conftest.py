"""The platform that CITADELBUY_TRAFFIC_CLUSTER names, an embedded cluster that `make drill-traffic` brings up."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import cluster
from shop import HOST, PORT, Customers, Entry, Served
from traffic import AGENTS, NAMES

MOST = 200  # requests a second that are asked of any machine

Json = dict[str, Any]


class Ask(Protocol):
    """Send requests from the customers' node, each on a connection of its own; their answers in the same order."""

    def __call__(self, requests: list[Json], connections: int = 1) -> list[Json]: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a cluster nothing of this runs."""
    if not cluster.NAME:
        reason = pytest.mark.skip(reason="make drill-traffic brings the cluster that this needs")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(reason)


@pytest.fixture(scope="session")
def platform() -> None:
    """The applications as the drill's variables have them, whatever a run that was ended has left."""
    cluster.deploy()


@pytest.fixture(scope="session")
def entry(platform: None, tmp_path_factory: pytest.TempPathFactory) -> Entry:
    """A node with a Traefik, and another one for the customers: what comes from a node itself takes other ways."""
    nodes = {
        item["metadata"]["name"]: next(
            one["address"] for one in item["status"]["addresses"] if one["type"] == "InternalIP"
        )
        for item in cluster.get("nodes")["items"]
    }
    node = min(pod["spec"]["nodeName"] for pod in cluster.pods(cluster.TRAEFIK))
    (other,) = nodes.keys() - {node}
    authority = tmp_path_factory.mktemp("authority") / "ca.crt"
    authority.write_bytes(base64.b64decode(cluster.get("secret", "ingress-tls")["data"]["ca.crt"]))
    return Entry(node, nodes[node], other, nodes[other], f"{cluster.NAME}.{other}", authority)


@pytest.fixture(scope="session")
def ask(entry: Entry) -> Ask:
    script = str(Path(__file__).with_name("client.py"))

    def send(requests: list[Json], connections: int = 1) -> list[Json]:
        words = [sys.executable, script, entry.address, str(PORT), HOST, str(entry.authority), str(connections)]
        browser = {"User-Agent": AGENTS[0], "Accept": "*/*"}
        given = [request | {"headers": browser | (request.get("headers") or {})} for request in requests]
        done = subprocess.run(
            ["ip", "netns", "exec", entry.namespace, *words],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    return send


@pytest.fixture(scope="module", autouse=True)
def deployed(platform: None) -> None:
    """The same, whatever the modules before have left."""
    cluster.deploy()


@pytest.fixture(scope="session")
def products(ask: Ask) -> dict[str, str]:
    """The shop's products by name, all of them found by search; made where they are not there yet."""

    def known() -> dict[str, str]:
        (answer,) = ask([{"method": "GET", "path": "/api/products?limit=100"}])
        assert answer["status"] == 200, answer
        return {item["name"]: item["id"] for item in json.loads(answer["text"])["items"]}

    there = known()
    text = {"description": "In stock, ships within a day."}
    missing = [text | {"name": name, "price": 4.99 + 3 * n} for n, name in enumerate(NAMES) if name not in there]
    headers = {"Content-Type": "application/json"}
    request = {"method": "POST", "path": "/api/products", "headers": headers}
    made = ask([request | {"body": json.dumps(body)} for body in missing])
    assert {answer["status"] for answer in made} <= {201}, made
    found = known()
    wanted = {name: found[name] for name in NAMES}

    def indexed() -> bool:
        (answer,) = ask([{"method": "GET", "path": "/api/search?q=stock&limit=100"}])
        items = json.loads(answer["text"]).get("items", [])
        return set(wanted.values()) <= {item["id"] for item in items}

    cluster.awaited(indexed, 60, "search finds the new products")
    return wanted


@pytest.fixture(scope="session")
def customers(entry: Entry, products: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Customers:
    return Customers(entry, sorted(products.values()), tmp_path_factory.mktemp("load"))


@pytest.fixture(scope="session")
def rate(customers: Customers) -> int:
    """Requests a second: half of what this machine serves, Vegeta's own share included, and 200 at most."""
    customers.capacity(10)  # caches and compilers are warm then
    found = customers.capacity(20)
    chosen = min(MOST, int(found.rate / 2))
    print(f"\ncapacity: {found}; the tests ask for {chosen}/s")
    assert chosen > 0
    return chosen


@pytest.fixture(scope="session")
def at_rest(customers: Customers, rate: int) -> Served:
    """That rate while nothing else happens."""
    found = customers.at(rate, 30)
    print(f"\nat rest: {found}")
    assert not found.failed, found.failed[:10]
    return found
