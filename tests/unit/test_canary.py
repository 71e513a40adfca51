"""A canary comes before requests are sent to it, and goes after: its playbooks, on a real API server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, senders
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster
from ansible_collections.citadelbuy.platform.plugins.module_utils.foresee import Foreseen
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import POD
from conftest import Deployer, Played, serve_gateways, withdraw_gateways
from test_wait import Gate, Kubelet, running, waiting

IMAGES = {"platform_canary_api_image": "api:2", "platform_canary_web_image": "web:2"}
CANARY = IMAGES | {"platform_canary_weight": 20}
DEPLOYMENTS = {"citadelbuy-api", "citadelbuy-web", "traefik"}
CANARIES = {"citadelbuy-api-canary", "citadelbuy-web-canary"}
# What a pod of Traefik that is ending is found by.
LOOK = "/pods?labelSelector=app.kubernetes.io%2Fname%3Dtraefik"
Play = Callable[..., Played]
Names = Callable[..., set[str]]


class World:
    """A cluster whose kubelets say of pods what the test wants, and a way to it that the test watches."""

    def __init__(self, cluster: Cluster, namespace: str, folder: Path) -> None:
        """Begin."""
        self.broken = ""  # images whose pods never start hold this
        self.gate = Gate(cluster)
        self.kubeconfig = self.gate.kubeconfig(folder)
        self.kubelet = Kubelet(cluster, namespace, self._status)
        self.kubelet.start()

    def _status(self, pod: dict[str, Any]) -> dict[str, Any]:
        (container,) = pod["spec"]["containers"]
        absent = self.broken and self.broken in container["image"]
        status = waiting("ErrImagePull", "not found")(pod) if absent else running(pod)
        status["containerStatuses"][0]["name"] = container["name"]
        return status

    def end(self) -> None:
        """Leave nothing behind."""
        self.kubelet.stopped.set()
        self.kubelet.join()
        self.gate.shutdown()
        self.gate.server_close()


@pytest.fixture
def world(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[World]:
    found = World(cluster, namespace, tmp_path)
    yield found
    found.end()


@pytest.fixture
def play(run_playbook: Play, world: World) -> Play:
    """Run a playbook on the shop behind Traefik."""

    def run(name: str, *arguments: str, **variables: Any) -> Played:
        shop = {
            "applications_priority_class": "",
            "applications_migration_enabled": False,
            "firewall_priority_class": "",
            "ingress_traefik_priority_class": "",
            "ingress_hosts": ["shop.example.com"],
            "ingress_tls_secret": "shop",
            "platform_ingress": "traefik",
            "platform_wait_timeout": 60,
        }
        return run_playbook(f"playbooks/{name}.yml", *arguments, kubeconfig=world.kubeconfig, **shop | variables)

    return run


@pytest.fixture
def names(live: Callable[[str], dict[str, Any]]) -> Names:
    """What there is of a kind."""

    def read(path: str = "apis/apps/v1:deployments") -> set[str]:
        return {item["metadata"]["name"] for item in live(path)["items"]}

    return read


def well(played: Played) -> str:
    """What a run printed that had no failure."""
    text, counts = played
    assert counts["failed"] == "0", text
    return text


def test_it_goes_when_nobody_is_sent_there_any_more(
    play: Play, names: Names, world: World, cluster: Cluster, namespace: str
) -> None:
    well(play("applications", **CANARY))
    well(play("ingress", **CANARY))
    assert names() == DEPLOYMENTS | CANARIES
    # Emptied, it serves on until the way in is another.
    well(play("applications"))
    assert names() == DEPLOYMENTS | CANARIES
    text = well(play("ingress", "--tags", "applications"))
    assert f"ConfigMap {namespace}/traefik sends requests to Service citadelbuy-api-canary" in text
    assert names() == DEPLOYMENTS | CANARIES
    # A check knows that it would be.
    text = well(play("ingress", "--check"))
    for kind in ("Deployment", "PodDisruptionBudget", "Service"):
        for name in CANARIES:
            assert f"would prune {kind} {namespace}/{name}" in text
    assert names() == DEPLOYMENTS | CANARIES
    # And until the last pod of the way in has ended that does as before.
    labels = {"app.kubernetes.io/name": "traefik"}
    pod = {"metadata": {"name": "traefik-that-ends", "labels": labels}}
    pod["spec"] = {"nodeName": "nowhere", "containers": [{"name": "main", "image": "traefik:1"}]}
    cluster.request("POST", POD.path(namespace), pod)
    cluster.request("DELETE", POD.path(namespace, "traefik-that-ends"))
    looks: list[set[str]] = []

    def watch(path: str) -> str:
        if LOOK in path:
            looks.append(names("services") & CANARIES)
            if len(looks) == 2:
                cluster.request("DELETE", POD.path(namespace, "traefik-that-ends"), {"gracePeriodSeconds": 0})
        return path

    world.gate.turn = watch
    well(play("ingress"))
    assert len(looks) == 2, "the pod is gone at the second look"
    assert all(look == CANARIES for look in looks)
    assert names() == DEPLOYMENTS
    assert names("services") == {"citadelbuy-api", "citadelbuy-web", "traefik"}
    world.gate.turn = lambda path: path
    assert play("ingress")[1]["changed"] == "0"


def test_without_requests_a_broken_one_holds_up_nothing(play: Play, names: Names, world: World) -> None:
    world.broken = "api:2"
    text, counts = play("applications", **CANARY, platform_firewall=True)
    assert counts["failed"] == "1"
    assert "container api of pod citadelbuy-api-canary-" in text
    assert names() == {"citadelbuy-api", "citadelbuy-web", *CANARIES}, "nobody is sent there"
    # Told in the end, when nobody is sent there any more.
    less = CANARY | {"platform_canary_weight": 0}
    well(play("applications", **less))
    text, counts = play("ingress", **less)
    assert counts["failed"] == "1"
    assert "container api of pod citadelbuy-api-canary-" in text
    assert names() == DEPLOYMENTS | CANARIES
    well(play("applications"))
    well(play("ingress"))
    assert names() == DEPLOYMENTS


def test_of_two_one_may_go(play: Play, names: Names, live: Callable[[str], dict[str, Any]]) -> None:
    both = CANARY | {"platform_firewall": True}
    well(play("applications", **both))
    well(play("ingress", **both))

    for playbook, given in {"scale": {}, "rollback": {"rollback_show": True}, "restart": {}}.items():
        text, _ = play(playbook, **given)
        assert set(re.findall(r"[\w-]+-canary", text)) >= CANARIES, playbook

    def asks() -> str:
        pod = live("apis/apps/v1:deployments/citadelbuy-web-canary")["spec"]["template"]["spec"]
        return next(item["value"] for item in pod["containers"][0]["env"] if item["name"] == "API_URL")

    assert asks() == "http://citadelbuy-api-canary:3000"
    one = both | {"platform_canary_api_image": ""}
    well(play("applications", **one))
    assert asks() == "http://citadelbuy-api:3000"
    assert names() == DEPLOYMENTS | CANARIES | {"citadelbuy-firewall"}, "it goes after the way in"
    well(play("ingress", **one))
    assert names() == DEPLOYMENTS | {"citadelbuy-web-canary", "citadelbuy-firewall"}
    # Both go by the firewall's playbook and that of the ingress, whose Traefik never knew them.
    well(play("applications", platform_firewall=True))
    well(play("ingress", platform_firewall=True))
    assert names() == DEPLOYMENTS | {"citadelbuy-firewall"}


def config(text: str) -> dict[str, Any]:
    """An object that says something."""
    return {"kind": "ConfigMap", "metadata": {"name": "proxy", "namespace": "shop"}, "data": {"routes": text}}


SERVICE = {"kind": "Service", "metadata": {"name": "api-canary", "namespace": "shop"}}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("server api-canary:3000;", True),
        ("http://api-canary.shop.svc:3000", True),
        ("server api:3000;", False),
        ("server shop-api-canary:3000;", False),
        ("server api-canary-2:3000;", False),
    ],
)
def test_a_name_is_a_whole_one(text: str, named: bool) -> None:
    told = senders.named_by([config(text)], [SERVICE], Foreseen())
    assert told.startswith("ConfigMap shop/proxy sends requests to Service api-canary") == named
    assert senders.named_by([config(text)], [{**SERVICE, "kind": "Deployment"}], Foreseen()) == ""


def test_what_a_check_would_change_names_it_no_more() -> None:
    before = config("server api-canary;")
    foreseen = Foreseen()
    foreseen.add(applyset.hash_keys(before), "ConfigMap", "shop", "proxy")
    assert senders.named_by([before], [SERVICE], foreseen)
    foreseen.add(applyset.hash_keys(config("server api;")), "ConfigMap", "shop", "proxy")
    assert senders.named_by([before], [SERVICE], foreseen) == ""


def test_a_route_is_quiet_once_its_controller_has_seen_it(cluster: Cluster, namespace: str) -> None:
    serve_gateways(cluster)
    try:
        place = f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes"
        body = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "shop"}}
        body["metadata"]["namespace"] = namespace
        body["spec"] = {"parentRefs": [{"name": "public"}]}
        cluster.request("POST", place, body)

        def seen(generation: int) -> None:
            now = "2026-01-01T00:00:00Z"
            condition = {"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""}
            condition |= {"observedGeneration": generation, "lastTransitionTime": now}
            parent = {"parentRef": {"name": "public"}, "controllerName": "example.com/one", "conditions": [condition]}
            status = {"status": {"parents": [parent]}}
            cluster.request("PATCH", f"{place}/shop/status", status, content="application/merge-patch+json")

        unseen = f"HTTPRoute {namespace}/shop has a change that its controller has not seen"
        assert senders.wait_until_quiet(cluster, [body], 0).startswith(unseen)
        seen(1)
        assert senders.wait_until_quiet(cluster, [body], 0) == ""
        change = {"spec": {"hostnames": ["shop.example.com"]}}
        cluster.request("PATCH", f"{place}/shop", change, content="application/merge-patch+json")
        assert senders.wait_until_quiet(cluster, [body], 0).startswith(unseen)
        told: list[str] = []

        def tell(line: str) -> None:
            told.append(line)
            if len(told) == 1:
                seen(2)

        assert senders.wait_until_quiet(cluster, [body], 60, tell) == ""
        assert unseen in told[0]
    finally:
        withdraw_gateways(cluster)


def test_a_roll_that_is_not_over_is_not_quiet(deploy: Deployer, cluster: Cluster, namespace: str) -> None:
    template = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: proxy, namespace: "{{ ns }}"}
spec:
  replicas: 1
  selector: {matchLabels: {app: proxy}}
  template: {metadata: {labels: {app: proxy}}, spec: {containers: [{name: main, image: "proxy:1"}]}}
"""
    (change,) = deploy(template).applied
    told = senders.wait_until_quiet(cluster, [change.after, config("")], 0)
    assert told.startswith(f"Deployment {namespace}/proxy rolls (")
    cluster.request("DELETE", f"/apis/apps/v1/namespaces/{namespace}/deployments/proxy")
    assert senders.wait_until_quiet(cluster, [change.after], 0) == ""
