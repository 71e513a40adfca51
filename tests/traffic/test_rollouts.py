"""A day's changes under load: not one request fails. The slowest of a hundred is printed, beside that at rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from cluster import (
    API,
    CANARIES,
    FIREWALL,
    TRAEFIK,
    WEB,
    another_name,
    answers,
    awaited,
    deploy,
    get,
    identities,
    kubectl,
    playbook,
    pods,
    prometheus,
    release,
    settled,
    template,
)
from conftest import Ask
from shop import Customers, Entry, Served

ON_THE_WAY = (TRAEFIK, FIREWALL, WEB, API)


class Unnoticed:
    """Changes that no customer may notice."""

    def __init__(self, customers: Customers, rate: int, at_rest: Served) -> None:
        self._customers, self._rate, self._at_rest = customers, rate, at_rest

    def __call__(self, what: str, change: Callable[[], Any]) -> dict[str, tuple[int, int]]:
        """Make the change, and wait until all has settled. Of each application: how many pods went, how many stayed."""
        before = {name: identities(name) for name in ON_THE_WAY}

        def done() -> None:
            change()
            settled()

        served = self._customers.during(done, self._rate)
        share = served.percentile(0.99) / self._at_rest.percentile(0.99)
        after = {name: identities(name) for name in ON_THE_WAY}
        gone = {name: (len(before[name] - after[name]), len(before[name] & after[name])) for name in ON_THE_WAY}
        print(f"\n{what}: {served}, {share:.1f} times that at rest; pods replaced: {gone}")
        assert not served.failed, served.failed[:10]
        return gone


@pytest.fixture
def unnoticed(customers: Customers, rate: int, at_rest: Served) -> Unnoticed:
    return Unnoticed(customers, rate, at_rest)


def all_replaced(gone: dict[str, tuple[int, int]], *names: str) -> bool:
    """Whether all pods of these are others, and none of the rest is."""
    return all((left == 0) if name in names else (went == 0) for name, (went, left) in gone.items())


def test_a_new_version_and_back(unnoticed: Unnoticed) -> None:
    gone = unnoticed("new version", lambda: playbook("site", "--tags", "applications", **release(2)))
    assert all_replaced(gone, API, WEB)
    for name in (API, WEB):
        assert len({pod["spec"]["nodeName"] for pod in pods(name)}) == 2, f"{name}: all pods are on one node"

    def back() -> None:
        for name in (API, WEB):
            playbook("rollback", rollback_application=name)

    assert all_replaced(unnoticed("rollback", back), API, WEB)
    for name in (API, WEB):
        (container,) = get("deployment", name)["spec"]["template"]["spec"]["containers"]
        assert "RELEASE" not in {item["name"] for item in container["env"]}


def test_another_rate_limit(unnoticed: Unnoticed) -> None:
    gone = unnoticed("configuration", lambda: deploy(configuration_rate_limit_max_requests=999999))
    assert all_replaced(gone, API)
    read = kubectl("exec", f"deploy/{API}", "--", "printenv", "RATE_LIMIT_MAX_REQUESTS")
    assert read.strip() == "999999"


def test_another_password(unnoticed: Unnoticed) -> None:
    before = get("secret", "citadelbuy-secrets")["data"]["DATABASE_PASSWORD"]
    gone = unnoticed("secret", lambda: playbook("rotate_secrets", rotate_secrets_names="DATABASE_PASSWORD"))
    assert all_replaced(gone, API)
    assert get("secret", "citadelbuy-secrets")["data"]["DATABASE_PASSWORD"] != before


def test_a_restart(unnoticed: Unnoticed) -> None:
    gone = unnoticed("restart", lambda: playbook("restart", restart_application=f"{API},{WEB}"))
    assert all_replaced(gone, API, WEB)


@pytest.mark.parametrize("name", [FIREWALL, WEB, API])
def test_a_pod_is_deleted(unnoticed: Unnoticed, name: str) -> None:
    victim = pods(name)[0]["metadata"]["name"]
    gone = unnoticed(f"{victim} deleted", lambda: kubectl("delete", "pod", victim))
    assert {one: went for one, (went, _) in gone.items() if went} == {name: 1}


def test_a_node_is_drained(unnoticed: Unnoticed, entry: Entry) -> None:
    """The node that customers do not ask: a load balancer would turn away from theirs. Stores have a drill."""
    selector = "tier in (api, web, firewall, ingress)"

    def there() -> list[str]:
        found = get("pods", "-l", selector, f"--field-selector=spec.nodeName={entry.other},status.phase=Running")
        return [pod["metadata"]["name"] for pod in found["items"]]

    assert there(), "nothing of the shop runs on that node"

    def drain() -> None:
        words = ("--ignore-daemonsets", "--delete-emptydir-data", f"--pod-selector={selector}", "--timeout=300s")
        kubectl("drain", entry.other, *words)

    try:
        gone = unnoticed(f"{entry.other} drained", drain)
        assert sum(went for went, _ in gone.values()) > 0
        assert there() == []
    finally:
        kubectl("uncordon", entry.other)


class Shares:
    """Who has answered customers since it was made, by the pods' own counts."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> dict[str, int]:
        return {name: answers(name) for name in (*CANARIES, *CANARIES.values())}

    def told(self) -> dict[str, tuple[int, int]]:
        """Of each application: answers of the canary's pods, and of the others'."""
        more = {name: count - self._before[name] for name, count in self._now().items()}
        return {name: (more[canary], more[name]) for name, canary in CANARIES.items()}

    def of(self, weight: int) -> None:
        """The canary has had its share of both, within five standard deviations of so many customers by chance."""
        for name, (canary, others) in self.told().items():
            count, wanted = canary + others, weight / 100
            print(f"{name}: {canary} of {count} answers by the canary, at a weight of {weight}")
            assert count > 0
            assert abs(canary / count - wanted) <= 5 * math.sqrt(wanted * (1 - wanted) / count)


def test_a_canary_from_its_first_customer_to_all_of_them(
    unnoticed: Unnoticed, customers: Customers, rate: int, ask: Ask
) -> None:
    deploy()
    images = {name: template(name)["spec"]["containers"][0]["image"] for name in CANARIES}
    canary = {name: another_name(image, "canary") for name, image in images.items()}
    given: dict[str, Any] = {"platform_canary_api_image": canary[API], "platform_canary_web_image": canary[WEB]}

    def weigh(weight: int, replicas: int = 1) -> dict[str, tuple[int, int]]:
        variables = given | {"platform_canary_weight": weight, "applications_canary_replicas": replicas}
        words = ("site", "--tags", "applications,ingress")
        return unnoticed(f"canary at {weight}", lambda: playbook(*words, **variables))

    def serve(weight: int) -> None:
        shares = Shares()
        served = customers.at(rate, 20)
        assert not served.failed, served.failed[:10]
        shares.of(weight)

    # Nobody gets it, and nobody else's pod is another.
    assert all_replaced(weigh(0))
    serve(0)
    for name in CANARIES:
        up = quote(f'up{{job="{name}",track="canary"}} == 1')
        awaited(lambda query=f"query?query={up}": prometheus(query)["result"], 90, f"{name}'s canary is scraped")
    assert all_replaced(weigh(20), FIREWALL)
    serve(20)
    # One customer, who is given a cookie, sees one version of API and web.
    (first,) = ask([{"method": "GET", "path": "/"}])
    cookie = first["headers"]["set-cookie"].partition(";")[0]
    shares = Shares()
    paths = ("/", "/api/products?limit=1")
    seen = ask([{"method": "GET", "path": path, "headers": {"Cookie": cookie}} for path in paths * 10])
    assert {answer["status"] for answer in seen} == {200}
    assert {answer["headers"].get("set-cookie") for answer in seen} == {None}
    told = shares.told()
    assert {min(counts) for counts in told.values()} == {0}, told
    assert len({canary > 0 for canary, _ in told.values()}) == 1, told
    assert all_replaced(weigh(100, 3), FIREWALL)
    serve(100)
    # Promoted, in one run.
    promoted = {"applications_api_image": canary[API], "applications_web_image": canary[WEB]}
    gone = unnoticed("promoted", lambda: playbook("site", "--tags", "applications,ingress", **promoted))
    assert all_replaced(gone, API, WEB, FIREWALL)
    assert not {body["metadata"]["name"] for body in get("deployments")["items"]} & set(CANARIES.values())
    assert not {body["metadata"]["name"] for body in get("services")["items"]} & set(CANARIES.values())
    assert {name: template(name)["spec"]["containers"][0]["image"] for name in CANARIES} == canary
    text = playbook("site", "--tags", "applications,ingress", **promoted)
    assert "changed=0 " in text
