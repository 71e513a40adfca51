"""The alert of a volume that fills, as the platform's Prometheus has it."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import http_through_pod

Body = dict[str, Any]
POD = "prometheus-0"
SEVERITY = "critical"
LIMIT = re.compile(r">\s*([0-9.]+)\s*$")
ABOVE = 0.01  # of a volume: how far it is filled above the alert's ratio


class Prometheus:
    """Questions to the first Prometheus; asking changes nothing."""

    def __init__(self, cluster: Cluster, namespace: str, ratio: float = 0) -> None:
        """Nothing is sent.

        :param namespace: of the monitoring.
        :param ratio: share of a volume to fill; 0 stands for what brings the alert.
        """
        self.cluster, self.namespace, self.ratio = cluster, namespace, ratio

    def limit(self, alert: str) -> float:
        """The share of a volume above which the critical alert of this name comes.

        :raises EngineError: there is no such alert.
        """
        for group in self._ask("rules?type=alert")["groups"]:
            for rule in group["rules"]:
                found = LIMIT.search(rule["query"])
                if rule["name"] == alert and rule["labels"].get("severity") == SEVERITY and found:
                    return float(found[1])
        raise EngineError(
            f"{self.namespace}/{POD} has no {SEVERITY} alert {alert}: run playbooks/monitoring.yml first."
        )

    def share(self, alert: str) -> float:
        """How much of a volume is to be in use for the alert."""
        return self.ratio or self.limit(alert) + ABOVE

    def state(self, alert: str, labels: dict[str, str]) -> str:
        """`pending` or `firing`; empty where it is neither."""
        wanted = labels | {"alertname": alert, "severity": SEVERITY}
        found = [item["state"] for item in self._ask("alerts")["alerts"] if wanted.items() <= item["labels"].items()]
        return str(found[0]) if found else ""

    def _ask(self, path: str) -> Body:
        """An answer of its API.

        :raises EngineError: there is none.
        """
        reply = http_through_pod(self.cluster, self.namespace, POD, 9090, "GET", f"/api/v1/{path}", timeout=30)
        told = reply.json()
        if reply.status != 200 or not isinstance(told, dict):
            raise EngineError(f"{self.namespace}/{POD} answers {reply.status} to {path}: {reply.text[:200]}")
        return dict(told["data"])
