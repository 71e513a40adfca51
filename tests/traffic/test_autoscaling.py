"""The autoscalers: from one pod to the most under load, and back; and what is said where the cluster has no room."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from cluster import API, WEB, awaited, deploy, get, kubectl, pods, prometheus
from shop import Customers

MOST = {API: 4, WEB: 2}  # pods
LEAST = {API: 1, WEB: 1}
FEW = 2  # requests a second by which no pod is kept
UP, DOWN = 420, 600  # seconds within which all pods are there, and gone again
SCALED: dict[str, Any] = {
    "applications_api_min_replicas": 1,
    "applications_api_max_replicas": MOST[API],
    "applications_web_min_replicas": 1,
    "applications_web_max_replicas": MOST[WEB],
    "applications_scale_down_window": 60,
}


class Watch:
    """How many pods are ready, as it changes."""

    def __init__(self) -> None:
        self._begun = 0.0
        self.seen: dict[str, list[tuple[float, int]]] = {API: [], WEB: []}

    def look(self) -> dict[str, int]:
        """Ready pods by Deployment, noted where they are others than before."""
        ready = {name: get("deployment", name)["status"].get("readyReplicas", 0) for name in self.seen}
        for name, count in ready.items():
            if not self.seen[name] or self.seen[name][-1][1] != count:
                self.seen[name].append((time.monotonic() - self._begun, count))
        return ready

    def until(self, wanted: dict[str, int], seconds: int) -> None:
        """Wait until there are so many."""
        self._begun = time.monotonic()
        try:
            awaited(lambda: self.look() == wanted, seconds, f"{wanted} are ready")
        except AssertionError:
            print(kubectl("get", "hpa"), kubectl("top", "pods"))  # which of CPU and memory it was
            raise

    def tell(self, what: str) -> None:
        """Print when which number was reached."""
        for name, seen in self.seen.items():
            print(f"{what}, {name}: " + ", ".join(f"{count} after {after:.0f} s" for after, count in seen))


@pytest.fixture(scope="module")
def one_of_each(rate: int) -> Iterator[None]:
    """One pod of each at rest; how many requests are asked for was measured before."""
    deploy(**SCALED)
    Watch().until(LEAST, DOWN)
    yield
    deploy()


@pytest.mark.usefixtures("one_of_each")
def test_up_under_load_and_down_after_it(customers: Customers, rate: int) -> None:
    up, down = Watch(), Watch()
    served = customers.during(lambda: up.until(MOST, UP), rate)
    print(f"\nup: {served}")
    up.tell("up")
    afterwards = customers.during(lambda: down.until(LEAST, DOWN), FEW)
    print(f"down: {afterwards}")
    down.tell("down")
    assert not served.failed, served.failed[:10]
    assert not afterwards.failed, afterwards.failed[:10]


@pytest.mark.usefixtures("one_of_each")
def test_without_room_event_and_alert_say_so_and_what_runs_serves_on(customers: Customers, rate: int) -> None:
    Watch().until(LEAST, DOWN)
    nodes = [node["metadata"]["name"] for node in get("nodes")["items"]]
    begun = time.monotonic()

    def alerts() -> list[str]:
        found = prometheus("alerts")["alerts"]
        return [
            one["labels"]["pod"]
            for one in found
            if one["labels"]["alertname"] == "PodUnschedulable" and one["state"] == "firing"
        ]

    def too_small() -> None:
        kubectl("cordon", *nodes)
        try:
            pending = awaited(lambda: [pod for pod in pods(API) if pod["status"]["phase"] == "Pending"], UP, "scaled")
            name = pending[0]["metadata"]["name"]
            query = f"--field-selector=reason=FailedScheduling,involvedObject.name={name}"
            events = awaited(lambda: get("events", query)["items"], 60, "the event")
            print(f"\nevent after {time.monotonic() - begun:.0f} s: {events[0]['message']}")
            awaited(lambda: name in alerts(), 180, "the alert")
            print(f"alert after {time.monotonic() - begun:.0f} s")
        finally:
            kubectl("uncordon", *nodes)
        awaited(lambda: not alerts(), 180, "the alert ends")

    served = customers.during(too_small, rate)
    print(served)
    assert not served.failed, served.failed[:10]
