"""The monitoring of the deployed platform: every target answers, every rule works, only the watchdog fires."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

JOBS = {
    "alertmanager",
    "apiserver",
    "cadvisor",
    "citadelbuy-api",
    "citadelbuy-web",
    "elasticsearch",
    "grafana",
    "kube-state-metrics",
    "kubelet",
    "postgres",
    "prometheus",
    "redis",
}
FIRST_LOOKS = 120  # seconds until every target was scraped and every rule evaluated
KEYS = ("database-password", "redis-password", "elasticsearch-password", "jwt-secret", "session-secret")
STORES = ("elasticsearch", "postgres", "redis")

Ask = Callable[[str], Any]


@pytest.fixture(scope="module")
def ask(kubectl) -> Ask:
    """Ask a pod of the monitoring over HTTP, through the API server: `prometheus-0:9090/api/v1/targets`."""

    def get(path: str) -> Any:
        pod, _, rest = path.partition("/")
        return json.loads(kubectl("get", "--raw", f"/api/v1/namespaces/citadelbuy-monitoring/pods/{pod}/proxy/{rest}"))

    return get


def awaited(look: Callable[[], list[str]]) -> list[str]:
    """What is wrong, once nothing is or the time is over."""
    deadline = time.monotonic() + FIRST_LOOKS
    while (problems := look()) and time.monotonic() < deadline:
        time.sleep(1)
    return problems


def test_every_target_is_up(ask: Ask) -> None:
    def look() -> list[str]:
        targets = ask("prometheus-0:9090/api/v1/targets?state=active")["data"]["activeTargets"]
        down = [
            f"{item['scrapeUrl']}: {item['health']} {item['lastError']}" for item in targets if item["health"] != "up"
        ]
        missing = JOBS - {item["labels"]["job"] for item in targets}
        return down + [f"no target of job {job}" for job in sorted(missing)]

    assert not awaited(look)


def test_every_rule_is_evaluated(ask: Ask) -> None:
    def look() -> list[str]:
        groups = ask("prometheus-0:9090/api/v1/rules")["data"]["groups"]
        return [
            f"{group['name']}/{rule['name']}: {rule['health']} {rule.get('lastError', '')}"
            for group in groups
            for rule in group["rules"]
            if rule["health"] != "ok"
        ] or ["no rules"] * (not groups)

    assert not awaited(look)


def test_nothing_fires_but_the_watchdog(ask: Ask) -> None:
    def firing() -> set[str]:
        alerts = ask("prometheus-0:9090/api/v1/alerts")["data"]["alerts"]
        return {json.dumps(item["labels"], sort_keys=True) for item in alerts if item["state"] == "firing"}

    assert not awaited(lambda: [] if any('"Watchdog"' in labels for labels in firing()) else ["the watchdog is silent"])
    assert not {labels for labels in firing() if '"Watchdog"' not in labels}


def test_alerts_reach_alertmanager(ask: Ask) -> None:
    def look() -> list[str]:
        names = {alert["labels"]["alertname"] for alert in ask("alertmanager-0:9093/api/v2/alerts")}
        return [] if "Watchdog" in names else [f"Alertmanager knows {sorted(names)}"]

    assert not awaited(look)


@pytest.mark.parametrize("lease", [*(f"secret-{key}" for key in KEYS), *(f"certificate-{store}" for store in STORES)])
def test_the_age_of_each_secret_and_certificate_is_a_metric(ask: Ask, lease: str) -> None:
    def look() -> list[str]:
        answer = ask(f"prometheus-0:9090/api/v1/query?query=kube_lease_renew_time%7Blease%3D%22{lease}%22%7D")
        values = [float(item["value"][1]) for item in answer["data"]["result"]]
        return [] if values and 0 < time.time() - values[0] < 10**7 else [f"{lease}: {answer['data']}"]

    assert not awaited(look)


def test_prometheus_reads_no_secret(kubectl) -> None:
    for account in ("prometheus", "kube-state-metrics", "grafana", "alertmanager"):
        who = f"--as=system:serviceaccount:citadelbuy-monitoring:{account}"
        for namespace in ("citadelbuy", "citadelbuy-monitoring", "kube-system"):
            answer = kubectl("auth", "can-i", "list", "secrets", "--namespace", namespace, who, fails=True)
            assert answer is not None
