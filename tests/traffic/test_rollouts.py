"""A day's changes under load: not one request fails. The slowest of a hundred is printed, beside that at rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cluster import API, FIREWALL, TRAEFIK, WEB, deploy, get, identities, kubectl, playbook, pods, release, settled
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
