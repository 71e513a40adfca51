"""Diagnose names the cause of what is broken, in a page that holds no secret, and survives whatever cannot be read."""

from __future__ import annotations

import base64
import html.parser
import json
import os
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from ansible_collections.citadelbuy.platform.plugins.module_utils import diagnose_causes, diagnose_collect
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import ApiError, Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_causes import RULES, find
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_collect import Collector, Snapshot
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_mask import Mask, mask_literals
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_network import refusals
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_report import NOTHING, Report
from conftest import CHECKOUT

sys.path.insert(0, str(CHECKOUT / "tests/tools"))

from secret_search import Search

NOW = datetime(2025, 6, 1, 3, 0, tzinfo=UTC)
RECENT, OLD = "2025-06-01T02:50:00Z", "2025-05-20T00:00:00Z"
SPACE = "citadelbuy"
READY = [{"type": "Ready", "status": "True"}]


def snapshot(**parts: Any) -> Snapshot:
    """What was collected at three in the night; parts by name, a blank for an underscore of a pod's part."""
    return Snapshot("prod", "https://k", "v1.35.0", [SPACE], NOW, timedelta(hours=1), parts)


def pod(name: str = "citadelbuy-api-7d4b9c5f6-x2x2x", **status: Any) -> dict[str, Any]:
    """A running pod of the API; keywords replace parts of its status."""
    container = {"name": "api", "ready": True, "state": {"running": {}}, "image": "r/api:2", "restartCount": 0}
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": SPACE,
            "labels": {"tier": "api", "app.kubernetes.io/name": "citadelbuy-api"},
            "creationTimestamp": OLD,
            "ownerReferences": [{"kind": "ReplicaSet", "name": "citadelbuy-api-7d4b9c5f6"}],
        },
        "spec": {"containers": [{"name": "api", "resources": {"limits": {"memory": "512Mi", "cpu": "1"}}}]},
        "status": {"phase": "Running", "conditions": READY, "containerStatuses": [container], **status},
    }


def container(state: dict[str, Any], last: dict[str, Any] | None = None, restarts: int = 0) -> dict[str, Any]:
    """The status of a pod whose container is not well."""
    item = {"name": "api", "ready": False, "image": "r/api:2", "state": state, "restartCount": restarts}
    item["lastState"] = {"terminated": last} if last else {}
    return {"conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [item]}


def event(reason: str, message: str, of: dict[str, Any], **more: Any) -> dict[str, Any]:
    metadata = of["metadata"]
    target = {"kind": of["kind"], "name": metadata["name"], "namespace": metadata["namespace"]} | more.pop("target", {})
    return {"involvedObject": target, "reason": reason, "message": message, "lastTimestamp": RECENT, "type": "Warning"}


def store(name: str, port: int, ready: bool = True, policy: bool = True) -> dict[str, list[dict[str, Any]]]:
    """A store's pod and Service, and a policy that lets the API in."""
    body = pod(f"{name}-0", **({} if ready else container({"running": {}})))
    body["metadata"]["labels"] = {"app.kubernetes.io/name": name}
    body["metadata"]["ownerReferences"] = [{"kind": "StatefulSet", "name": name}]
    service = {"kind": "Service", "metadata": {"name": name, "namespace": SPACE}}
    service["spec"] = {
        "selector": {"app.kubernetes.io/name": name},
        "clusterIP": "10.0.0.9",
        "ports": [{"port": port, "targetPort": port}],
    }
    labels = {"kubernetes.io/service-name": name}
    endpoints = {"metadata": {"name": f"{name}-x1", "namespace": SPACE, "labels": labels}}
    endpoints["endpoints"] = [{"addresses": ["10.1.0.7"], "conditions": {"ready": ready}}]
    peer = {"podSelector": {"matchLabels": {"tier": "api" if policy else "nobody"}}}
    rule = {"from": [peer], "ports": [{"port": port, "protocol": "TCP"}]}
    spec = {"podSelector": service["spec"]["selector"], "policyTypes": ["Ingress"], "ingress": [rule]}
    policies = [{"metadata": {"name": f"{name}-policy", "namespace": SPACE}, "spec": spec}]
    return {"pods": [body], "services": [service], "endpoints": [endpoints], "policies": policies}


MASTER = {
    "kind": "Service",
    "metadata": {"name": "master", "namespace": SPACE},
    "spec": {"selector": {"app.kubernetes.io/name": "redis", "role": "master"}},
}
NOT_READY = {"conditions": [{"type": "Ready", "status": "False"}]}
API = pod()
WAITING = pod(**NOT_READY)
IMAGE = pod(**container({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}}))
CRASHED = pod(
    **container(
        {"waiting": {"reason": "CrashLoopBackOff"}},
        {"exitCode": 1, "reason": "Error", "finishedAt": RECENT},
        5,
    )
)
OOM = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": RECENT}
LOG = f"log {API['metadata']['name']}/api"
ERRORS = f"errors {API['metadata']['name']}"
READINESS = f"readiness {API['metadata']['name']}"


def unplaced(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(phase="Pending", conditions=[condition], containerStatuses=[])


def node(kind: str, status: str) -> dict[str, Any]:
    ready = [] if kind == "Ready" else [{"type": "Ready", "status": "True"}]
    conditions = [*ready, {"type": kind, "status": status, "reason": "Why", "message": "because"}]
    return {"metadata": {"name": "n1"}, "spec": {}, "status": {"conditions": conditions}}


def away(error: str) -> dict[str, Any]:
    """What the API's readiness answers while Redis is away."""
    checks = {"redis": {"status": "down", "error": error}, "postgres": {"status": "up"}}
    return {"status": 503, "path": "/health/ready", "body": {"failed": ["redis"], "checks": checks}}


def merged(*many: dict[str, list[Any]]) -> dict[str, Any]:
    """The parts of several makers together."""
    found: dict[str, Any] = {}
    for parts in many:
        for name, value in parts.items():
            found[name] = found[name] + value if isinstance(value, list) and name in found else value
    return found


def deployment(**more: Any) -> dict[str, Any]:
    """A rollout that has not come for an hour."""
    condition = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "late"}
    condition["lastUpdateTime"] = OLD
    return {
        "kind": "Deployment",
        "metadata": {"name": "citadelbuy-api", "namespace": SPACE, "generation": 1, "creationTimestamp": OLD},
        "spec": {"replicas": 3, "template": API | {"metadata": {"labels": API["metadata"]["labels"]}}} | more,
        "status": {"observedGeneration": 1, "replicas": 4, "updatedReplicas": 1, "conditions": [condition]},
    }


def autoscaler(condition: dict[str, Any]) -> dict[str, Any]:
    body = {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "citadelbuy-api-hpa", "namespace": SPACE}}
    return body | {"spec": {"maxReplicas": 10}, "status": {"currentReplicas": 10, "conditions": [condition]}}


CLAIM = {
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "data-redis-0", "namespace": SPACE},
    "spec": {"storageClassName": "fast"},
    "status": {"phase": "Pending"},
}
WANTS = unplaced("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.")
WANTS["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "data-redis-0"}}]
JOB = {
    "kind": "Job",
    "metadata": {"name": "citadelbuy-api-migrate-1", "namespace": SPACE},
    "status": {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "m"}]},
}
SESSIONS = [{"who": "app", "application": "api", "state": "idle", "waits_for": "-", "sessions": 190}]
BLOCKED = {"pid": 7, "who": "app", "seconds": 61, "query": "UPDATE a", "blocked_by": 5, "blocker": "app"}
BLOCKED |= {"blocker_state": "idle in transaction", "blocker_seconds": 90, "blocker_query": "SELECT ?"}
DECIDERS = [{"decision": "NO", "explanation": "the node is above the low watermark cluster setting"}]
EXPLAIN = {"index": "products", "node_allocation_decisions": [{"deciders": DECIDERS}]}

CASES: dict[str, tuple[str, Snapshot, str]] = {
    "node gone": ("node_not_ready", snapshot(nodes=[node("Ready", "Unknown")]), "A node is not ready"),
    "node full": ("node_not_ready", snapshot(nodes=[node("DiskPressure", "True")]), "A node has DiskPressure"),
    "no name": (
        "names_not_resolved",
        snapshot(pods=[API], **{ERRORS: [{"line": "getaddrinfo EAI_AGAIN postgres", "count": 3}]}),
        "DNS is not reached",
    ),
    "kept from DNS": (
        "names_not_resolved",
        snapshot(
            pods=[API],
            dns={"pods": [pod("coredns-1")], "ready": 1},
            policies=[{"metadata": {"name": "deny", "namespace": SPACE}, "spec": {"policyTypes": ["Egress"]}}],
            **{LOG: ["dial: Temporary failure in name resolution"]},
        ),
        "a network policy keeps pods from DNS",
    ),
    "no DNS": ("names_not_resolved", snapshot(dns={"pods": [API, API], "ready": 0}), "the cluster's DNS does not run"),
    "quota": (
        "creation_refused",
        snapshot(
            events=[
                event(
                    "FailedCreate",
                    'pods "a" is forbidden: exceeded quota: q',
                    API,
                    target={"kind": "ReplicaSet", "name": "citadelbuy-api-1"},
                )
            ]
        ),
        "A quota is used up",
    ),
    "policy": (
        "creation_refused",
        snapshot(
            events=[
                event(
                    "FailedCreate",
                    "ValidatingAdmissionPolicy 'citadelbuy-containers' with binding denied request",
                    API,
                    target={"kind": "Job", "name": "j"},
                )
            ]
        ),
        "refused by an admission policy",
    ),
    "certificate": (
        "certificate_expired",
        snapshot(certificates=[{"secret": "citadelbuy/tls", "subject": "CN=shop", "until": OLD}]),
        "A certificate has expired",
    ),
    "certificate in a log": (
        "certificate_expired",
        snapshot(pods=[API], **{LOG: ["x509: certificate has expired or is not yet valid"]}),
        "meets an expired certificate",
    ),
    "scaled": ("scaled_to_nothing", snapshot(deployments=[deployment(replicas=0)]), "is scaled to 0"),
    "image": ("image_not_pulled", snapshot(pods=[IMAGE]), "The image r/api:2 cannot be pulled"),
    "config": (
        "container_not_created",
        snapshot(
            pods=[
                pod(
                    **container(
                        {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}}
                    )
                )
            ]
        ),
        "lacks its configuration",
    ),
    "memory": (
        "out_of_memory",
        snapshot(pods=[pod(**container({"waiting": {"reason": "CrashLoopBackOff"}}, OOM, 3))]),
        "needs more memory than its limit of 512Mi",
    ),
    "claim": ("volume_not_bound", snapshot(claims=[CLAIM], pods=[WANTS]), "claim data-redis-0 is Pending"),
    "disk": (
        "volume_full",
        snapshot(**{"disk postgres-0": [{"claim": "data-postgres-0", "kib": 1000, "used_kib": 970, "free_kib": 30}]}),
        "The volume data-postgres-0 is 97 % full",
    ),
    "disk in a log": (
        "volume_full",
        snapshot(pods=[API], **{LOG: ["PANIC: could not write: No space left on device"]}),
        "finds its disk full",
    ),
    "cpu": (
        "pod_pending",
        snapshot(
            pods=[unplaced("0/2 nodes are available: 1 Insufficient cpu, 2 Insufficient memory. preemption: 0/2")]
        ),
        "too little cpu, memory",
    ),
    "taint": (
        "pod_pending",
        snapshot(pods=[unplaced("0/1 nodes are available: 1 node(s) had untolerated taint {dedicated: db}.")]),
        "taints keep it away",
    ),
    "unbound": ("pod_pending", snapshot(pods=[WANTS]), "waits for its volume"),
    "evicted": (
        "evicted",
        snapshot(pods=[pod(phase="Failed", reason="Evicted", message="ephemeral-storage", startTime=RECENT)]),
        "was evicted",
    ),
    "variable": (
        "container_crashes",
        snapshot(pods=[CRASHED], **{f"{LOG} (previous run)": ["Error: environment variable JWT_SECRET not set"]}),
        "its variable JWT_SECRET is not set",
    ),
    "crash": (
        "container_crashes",
        snapshot(pods=[CRASHED], **{f"{LOG} (previous run)": ["TypeError: x is not a function"]}),
        "crashes with exit code 1",
    ),
    "liveness": (
        "probe_fails",
        snapshot(
            pods=[WAITING],
            events=[
                event("Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 500", WAITING),
                event("Killing", "Container api failed liveness probe, will be restarted", WAITING),
            ],
        ),
        "The liveness probe of container api",
    ),
    "readiness": (
        "probe_fails",
        snapshot(pods=[WAITING], events=[event("Unhealthy", "Readiness probe failed: 404", WAITING)]),
        "it gets no requests",
    ),
    "job": ("job_failed", snapshot(jobs=[JOB]), "The Job citadelbuy-api-migrate-1 has failed"),
    "no leader": (
        "postgres_without_leader",
        snapshot(patroni=[{"name": "postgres-0", "role": "replica", "state": "running"}]),
        "PostgreSQL has no leader",
    ),
    "connections": (
        "postgres_connections",
        snapshot(
            postgres={
                "pod": "postgres-0",
                "limits": [{"max_connections": 200, "reserved": 3, "used": 190}],
                "activity": SESSIONS,
            }
        ),
        "190 of 200",
    ),
    "too many clients": (
        "postgres_connections",
        snapshot(pods=[API], **{LOG: ["FATAL: sorry, too many clients already"]}),
        "too many clients",
    ),
    "lock": (
        "postgres_locks",
        snapshot(postgres={"pod": "postgres-0", "blocked": [BLOCKED]}),
        "session 5 blocks 1 others",
    ),
    "redis full": (
        "redis_memory",
        snapshot(
            **{"redis redis-0": {"info": {"used_memory": "99", "maxmemory": "100", "maxmemory_policy": "noeviction"}}}
        ),
        "Redis is at its maxmemory",
    ),
    "redis refuses": (
        "redis_memory",
        snapshot(
            **{
                "redis redis-0": {
                    "info": {"rejected_connections": "4", "connected_clients": "100", "maxclients": "100"}
                }
            }
        ),
        "Redis has refused connections",
    ),
    "red": (
        "elasticsearch_health",
        snapshot(elasticsearch={"pod": "elasticsearch-0", "health": {"status": "red"}}),
        "Elasticsearch is red",
    ),
    "yellow": (
        "elasticsearch_health",
        snapshot(elasticsearch={"pod": "elasticsearch-0", "health": {"status": "yellow"}}),
        "Elasticsearch is yellow",
    ),
    "watermark": (
        "elasticsearch_health",
        snapshot(elasticsearch={"pod": "elasticsearch-0", "health": {"status": "yellow"}, "explain": EXPLAIN}),
        "disk watermark",
    ),
    "locked in": (
        "policy_on_unready_pod",
        snapshot(
            pods=[pod(**container({"running": {}}))],
            policies=[
                {
                    "metadata": {"name": "deny", "namespace": SPACE},
                    "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
                }
            ],
            **{LOG: ["connect ETIMEDOUT 10.0.0.9:6379"]},
        ),
        "may reach nothing",
    ),
    "store down": (
        "store_away",
        snapshot(**merged({"pods": [WAITING]}, store("redis", 6379, ready=False)), **{READINESS: away("ECONNREFUSED")}),
        "redis does not serve (none of its pods is ready: redis-0)",
    ),
    "store behind a policy": (
        "store_away",
        snapshot(**merged({"pods": [WAITING]}, store("redis", 6379, policy=False)), **{READINESS: away("timeout")}),
        "redis is kept from it by a network policy",
    ),
    "no service": (
        "store_away",
        snapshot(pods=[WAITING], **{READINESS: away("getaddrinfo")}),
        "redis has no Service",
    ),
    "refused by a service": (
        "connection_fails",
        snapshot(
            **merged({"pods": [API]}, store("redis", 6379, ready=False)),
            **{ERRORS: [{"line": "connect ECONNREFUSED 10.0.0.9:6379", "count": 2}]},
        ),
        "citadelbuy-api does not reach redis",
    ),
    "no endpoints": (
        "service_without_endpoints",
        snapshot(**store("redis", 6379, ready=False)),
        "The Service redis has no endpoints",
    ),
    "no metrics": (
        "autoscaler",
        snapshot(
            autoscalers=[autoscaler({"type": "ScalingActive", "status": "False", "reason": "FailedGetResourceMetric"})]
        ),
        "has no metrics",
    ),
    "at maximum": (
        "autoscaler",
        snapshot(autoscalers=[autoscaler({"type": "ScalingLimited", "status": "True", "reason": "TooManyReplicas"})]),
        "at its maximum of 10",
    ),
    "rollout": (
        "rollout_stands_still",
        snapshot(deployments=[deployment()]),
        "Deployment citadelbuy-api does not come forward",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_rule_names_its_cause_with_evidence_and_a_next_step(case: str) -> None:
    rule, seen, title = CASES[case]
    causes = find(seen)
    assert not seen.problems
    own = [cause for cause in causes if cause.kind == rule and title in cause.title]
    assert len(own) == 1, [(cause.kind, cause.title) for cause in causes]
    assert all(own[0].evidence), own[0]
    assert all(own[0].todo), own[0]
    assert own[0].objects


def test_a_service_without_a_master_names_the_members_that_could_be() -> None:
    seen = snapshot(**merged(store("redis", 6379), {"services": [MASTER]}))
    [cause] = find(seen)
    assert cause.title.startswith("The Service master has no endpoints")
    assert cause.evidence == ["no master among redis-0: see their agents' logs"]


def test_every_rule_has_a_case() -> None:
    assert {rule.__name__ for rule in RULES} == {rule for rule, _seen, _title in CASES.values()}


def test_a_healthy_platform_has_no_cause() -> None:
    parts = merged({"pods": [API]}, store("redis", 6379), store("postgres", 5432))
    parts["deployments"] = [deployment(replicas=0)]
    parts["deployments"][0]["spec"]["replicas"] = 1
    parts["deployments"][0]["status"] = {
        "observedGeneration": 1,
        "replicas": 1,
        "updatedReplicas": 1,
        "availableReplicas": 1,
    }
    parts["nodes"] = [{"metadata": {"name": "n"}, "spec": {}, "status": {"conditions": READY}}]
    parts["dns"] = {"pods": [API], "ready": 1}
    assert [cause.title for cause in find(snapshot(**parts))] == []


def test_what_has_passed_is_no_cause() -> None:
    """A crash of days ago, an event that was seen long before, a refusal after which the pods came."""
    calm = pod()
    calm["status"]["containerStatuses"][0]["lastState"] = {"terminated": OOM | {"finishedAt": OLD}}
    late = event("Unhealthy", "Liveness probe failed: x", WAITING) | {"lastTimestamp": OLD}
    come = deployment() | {"kind": "ReplicaSet"}
    come["spec"]["replicas"] = 1
    refused = event("FailedCreate", "exceeded quota", come)
    seen = snapshot(pods=[calm], events=[late, refused], replicasets=[come])
    assert [cause.title for cause in find(seen)] == []


def test_pods_with_the_same_fault_are_one_cause() -> None:
    twins = [
        pod(name, **IMAGE["status"]) for name in ("citadelbuy-api-7d4b9c5f6-aaaaa", "citadelbuy-api-7d4b9c5f6-bbbbb")
    ]
    causes = find(snapshot(pods=twins))
    assert len(causes) == 1
    assert len(causes[0].objects) == 2


def test_a_rule_that_breaks_is_told_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_snapshot: Snapshot) -> Any:
        raise KeyError("unforeseen")

    monkeypatch.setattr(diagnose_causes, "RULES", (broken, *RULES))
    seen = snapshot(pods=[IMAGE])
    assert [cause.kind for cause in find(seen)] == ["image_not_pulled"]
    assert "unforeseen" in seen.problems["rule broken"]


# Network policies.

EXCEPT = {"cidr": "10.1.0.0/16", "except": ["10.1.0.5/32"]}


@pytest.mark.parametrize(
    ("spec", "lets"),
    [
        ({"podSelector": {"matchLabels": {"tier": "other"}}, "policyTypes": ["Ingress"]}, True),  # selects another
        ({"podSelector": {}, "policyTypes": ["Ingress"]}, False),
        ({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}, True),
        ({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]}, False),
        ({"podSelector": {}, "ingress": [{"ports": [{"port": 6000, "endPort": 6400}]}]}, True),
        ({"podSelector": {}, "ingress": [{"ports": [{"port": "redis"}]}]}, True),
        ({"podSelector": {}, "ingress": [{"ports": [{"port": 6379, "protocol": "UDP"}]}]}, False),
        ({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]}]}, False),
        ({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]}, True),
        ({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]}]}, True),
        ({"podSelector": {}, "ingress": [{"from": [{"ipBlock": EXCEPT}]}]}, False),
        (
            {
                "podSelector": {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["api"]}]},
                "policyTypes": ["Ingress"],
            },
            True,
        ),
        ({"podSelector": {}, "policyTypes": ["Egress"]}, False),  # selects the caller, too
    ],
)  # fmt: skip
def test_policies_let_through_what_kubernetes_does(spec: dict[str, Any], lets: bool) -> None:
    caller, target = pod(podIP="10.1.0.5"), pod("redis-0", podIP="10.1.0.7")
    target["spec"]["containers"][0]["ports"] = [{"name": "redis", "containerPort": 6379}]
    policy = {"metadata": {"name": "p", "namespace": SPACE}, "spec": spec}
    assert (refusals(caller, target, 6379, [policy], {SPACE: {}}) == []) == lets


# Secrets.

VALUE = "p+ss/w%rd\"'<&>-x9Qé"
SECRET = {
    "metadata": {"name": "keys", "namespace": SPACE, "annotations": {"citadelbuy.io/keep": "LOGIN"}},
    "data": {
        "DATABASE_PASSWORD": base64.b64encode(VALUE.encode()).decode(),
        "SHORT": base64.b64encode(b"abc12").decode(),
        "DATABASE_USER": base64.b64encode(b"citadelbuy").decode(),
        "LOGIN": base64.b64encode(b"elastic-owner").decode(),
        "URL": base64.b64encode(b"redis://:in-the-url-77@redis:6379").decode(),
        "PEM": base64.b64encode(b"-----BEGIN KEY-----\nMIIEvQIBADANBg\nabcdefghijkl\n").decode(),
    },
}


def test_values_of_secrets_are_masked_in_every_form() -> None:
    """The forms are those that the project's search for secrets knows."""
    mask = Mask([SECRET])
    search = Search({"value": VALUE})
    texts = [form.decode() for form, _name, _kind in search.forms]
    texts += [VALUE, quote(VALUE), json.dumps({"a": json.dumps({"b": VALUE})}), repr(VALUE)]
    texts += [base64.b64encode(("a" * before + VALUE + "tail").encode()).decode() for before in range(3)]
    for text in texts:
        search.text("masked", mask.text(text))
    assert search.found == []
    assert mask.text("line MIIEvQIBADANBg") == "line *****"
    assert mask.text("with in-the-url-77 here") == "with ***** here"
    assert mask.text("is abc12, not abc123") == "is *****, not abc123"
    assert mask.text("user citadelbuy, elastic-owner") == "user citadelbuy, elastic-owner"


def test_a_secret_of_bytes_is_masked_in_base64() -> None:
    encoded = base64.b64encode(b"\xfe\xed\xfe\xed-a-key-store").decode()
    assert Mask([{"metadata": {"name": "k"}, "data": {"keystore.jks": encoded}}]).text(f"is {encoded}") == "is *****"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("REDIS_PASSWORD=hunter2 next", "REDIS_PASSWORD=***** next"),
        ('{"api_token": "abc", "n": 1}', '{"api_token": "*****", "n": 1}'),
        ("postgres://app:hunter2@postgres:5432/x", "postgres://app:*****@postgres:5432/x"),
        ("Authorization: Bearer abcdefghijk", "Authorization: Bearer *****"),
        ("API_KEY='a b'", "API_KEY=*****"),
        ("db0:keys=12,expires=3", "db0:keys=12,expires=3"),
        ("secret \"a\" not found, key DATABASE_PASSWORD", "secret \"a\" not found, key DATABASE_PASSWORD"),
        ("STATEMENT: SELECT 'anna@example.org', 5", "STATEMENT: SELECT ?, ?"),
        ("DETAIL: Key (email)=(anna@example.org) already exists.", "DETAIL: Key (email)=(?) already exists."),
    ],
)  # fmt: skip
def test_what_is_named_a_secret_is_masked_without_its_value(text: str, shown: str) -> None:
    assert Mask([]).text(text) == shown


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("SELECT * FROM users2 WHERE id = 42 AND name = 'O''Brien'", "SELECT * FROM users2 WHERE id = ? AND name = ?"),
        ("UPDATE a SET b = $tag$se'cret$tag$ WHERE c > 1.5", "UPDATE a SET b = ? WHERE c > ?"),
        ("SELECT 'cut off in the mid", "SELECT ?"),
        ("SELECT E'it\\'s', $1", "SELECT ?, $1"),
    ],
)
def test_queries_are_shown_without_their_values(query: str, shown: str) -> None:
    assert mask_literals(query) == shown


# The page.


class Page(html.parser.HTMLParser):
    """Checks that tags are closed and nothing is loaded; `tags` holds them in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag not in ("script", "img", "link", "iframe")
        assert not {"src", "href", "onclick"} & {name for name, _value in attrs}
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def full() -> Snapshot:
    """A night with several faults, hostile texts among them."""
    evil = '<script>alert(1)</script> & "q"'
    seen = snapshot(
        **merged(
            {"pods": [CRASHED, IMAGE | {"metadata": IMAGE["metadata"] | {"name": "other-1"}}]}, store("redis", 6379)
        ),
        nodes=[node("DiskPressure", "True")],
        deployments=[deployment()],
        claims=[CLAIM],
        events=[event("BackOff", evil, CRASHED)],
        alerts=[{"state": "firing", "labels": {"alertname": "RedisDown", "severity": "critical"}, "activeAt": RECENT}],
        elasticsearch={"pod": "e", "health": {"status": "green"}, "nodes": [], "indices": []},
        secrets=[{"metadata": {"name": "s", "namespace": SPACE, "annotations": {"rotated.citadelbuy.io/K": RECENT}}}],
        **{f"{LOG} (previous run)": [evil]},
        **{
            "redis redis-0": diagnose_collect.redis_answers(
                "## INFO memory\r\nused_memory_human:2M\r\n## SLOWLOG\n[]\n"
            )
        },
    )
    seen.problems["node_metrics"] = "nodes.metrics.k8s.io is forbidden"
    seen.masked_by = "the values of 3 Secrets are masked"
    return seen


def test_the_page_begins_with_causes_and_escapes_what_it_shows() -> None:
    seen = full()
    report = Report(seen, find(seen))
    page = report.html()
    tags = Page(page).tags
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;q&quot;" in page
    assert "default-src 'none'" in page
    assert "http://" not in page.replace("https://k", "")
    assert tags.index("article") < tags.index("table") < tags.index("details")
    assert page.index("Likely causes") < page.index("How things are") < page.index("Details")
    assert "nodes.metrics.k8s.io is forbidden" in page


def test_the_text_says_the_same() -> None:
    seen = full()
    text = Report(seen, find(seen)).text()
    assert text.startswith("Diagnosis of prod: ")
    assert text.index("LIKELY CAUSES") < text.index("NODES") < text.index("RECENT CHANGES")
    for words in (
        "sign:  container api of pod citadelbuy-api-7d4b9c5f6-x2x2x: exit code 1",
        "The image r/api:2 cannot be pulled",
        "A node has DiskPressure",
        "RedisDown  critical  10m",
        "top of nodes  nodes.metrics.k8s.io is forbidden",
        "the values of 3 Secrets are masked",
        "s       K    2025-06-01T02:50:00Z",
    ):
        assert words in text, text


def test_no_cause_is_said_in_words() -> None:
    report = Report(snapshot(), [])
    assert NOTHING in report.text()
    assert NOTHING in report.html()
    assert report.headline.startswith("0 likely causes")


# Collecting.


def test_a_part_that_hangs_or_breaks_is_told_and_stops_nothing(cluster: Cluster) -> None:
    release = threading.Event()
    collector = Collector(cluster, [SPACE], timedelta(hours=1), limit=0.5)

    def refuse() -> None:
        raise EngineError("forbidden")

    def stumble() -> None:
        raise ZeroDivisionError("x")

    collector._run({"hangs": release.wait, "refuses": refuse, "stumbles": stumble, "works": lambda: [1]})
    release.set()
    assert collector.snapshot.parts == {"works": [1]}
    assert collector.snapshot.problems == {
        "hangs": "no answer within 0.5 s",
        "refuses": "forbidden",
        "stumbles": "ZeroDivisionError: x",
    }


def test_errors_of_an_application_are_counted_by_what_they_have_in_common() -> None:
    error = diagnose_collect.error_of
    one = '{"time":"1","level":"error","msg":"no store","requestId":"a"}'
    assert error(one) == error(one.replace('"a"', '"b"'))
    assert error('{"level":"info","msg":"request","status":503}')
    assert not error('{"level":"info","msg":"request","status":200}')
    assert not error("ready")
    assert error("Error: at 17") == error("Error: at 18")


def test_slow_commands_are_shown_without_their_data() -> None:
    rows = diagnose_collect.slow_commands(
        '[[1, 1748746800, 1200, ["SET", "product:1", "secret data"], "10.0.0.1:1", ""]]'
    )
    assert rows == [{"time": "2025-06-01T03:00:00Z", "us": 1200, "command": "SET product:1 (and 1 more arguments)"}]


# On a real API server.

PLAYBOOK = """
- hosts: clusters
  gather_facts: false
  roles:
    - role: citadelbuy.platform.diagnose
"""


def run(folder: Path, kubeconfig: Path, namespace: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The playbook on a namespace; its report goes into the folder's `reports`."""
    variables = {
        "cluster_kubeconfig": str(kubeconfig),
        "platform_namespace": namespace,
        "platform_monitoring_namespace": namespace,
        "diagnose_report_dir": str(folder / "reports"),
    }
    (folder / "hosts.json").write_text(json.dumps({"clusters": {"hosts": {"east": None}, "vars": variables}}))
    (folder / "play.yml").write_text(PLAYBOOK)
    env = os.environ | {"ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "collections"), "ANSIBLE_LOCALHOST_WARNING": "false"}
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", "hosts.json", "play.yml", *arguments]
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, check=False)


@pytest.fixture
def broken(cluster: Cluster, namespace: str, patch_status: Any) -> str:
    """A namespace with a pod whose image does not come, one that no node takes, and a Secret that a message quotes."""
    root = f"/api/v1/namespaces/{namespace}"
    data = {"DATABASE_PASSWORD": base64.b64encode(VALUE.encode()).decode()}
    cluster.request("POST", f"{root}/secrets", {"metadata": {"name": "keys"}, "data": data})
    spec = {"containers": [{"name": "api", "image": "registry.example/api:9"}]}
    for name in ("image", "room"):
        cluster.request("POST", f"{root}/pods", {"metadata": {"name": f"diagnose-test-{name}"}, "spec": spec})
    waiting = {
        "reason": "ErrImagePull",
        "message": f"registry.example/api:9 not found; it said {VALUE} and {quote(VALUE)}",
    }
    state = {"name": "api", "image": "registry.example/api:9", "imageID": "", "ready": False, "restartCount": 0}
    patch_status("pods/diagnose-test-image", {"containerStatuses": [state | {"state": {"waiting": waiting}}]})
    condition = unplaced("0/1 nodes are available: 1 Insufficient memory.")["status"]["conditions"]
    patch_status("pods/diagnose-test-room", {"phase": "Pending", "conditions": condition})
    return namespace


def test_broken_pods_are_named_and_no_secret_is_written(tmp_path: Path, api_server: Any, broken: str) -> None:
    done = run(tmp_path, api_server.kubeconfig, broken)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"changed=0 +unreachable=0 +failed=0", done.stdout)
    assert "The image registry.example/api:9 cannot be pulled" in done.stdout
    assert f"Pod {broken}/diagnose-test-image" in done.stdout
    assert "No node has room for a pod: too little memory" in done.stdout
    page, text = sorted((tmp_path / "reports").iterdir())
    assert page.suffix == ".html"
    assert {file.stat().st_mode & 0o777 for file in (page, text)} == {0o600}
    Page(page.read_text())
    search = Search({"DATABASE_PASSWORD": VALUE})
    for name, content in (("html", html.unescape(page.read_text())), ("text", text.read_text()), ("out", done.stdout)):
        search.text(name, content)
    assert search.found == []
    assert "*****" in text.read_text()
    assert "metrics-server is missing" in text.read_text()


def test_nothing_is_changed(api_server: Any, cluster: Cluster, broken: str) -> None:
    """Every request of a collection is a read."""
    asked: list[str] = []
    reader = Cluster.from_kubeconfig("test", str(api_server.kubeconfig))
    send = reader.request

    def request(method: str, *rest: Any, **named: Any) -> Any:
        asked.append(method)
        return send(method, *rest, **named)

    reader.request = request  # type: ignore[method-assign]
    Collector(reader, [broken], timedelta(hours=1), 20).collect()
    assert set(asked) == {"GET"}
    assert len(asked) > 15


def test_what_may_not_be_read_stands_in_the_report(
    tmp_path: Path, api_server: Any, cluster: Cluster, broken: str
) -> None:
    """A login that lists pods only: its report names the image, and says that Secrets were not read."""
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{broken}"
    cluster.request("POST", f"{rbac}/roles", {"metadata": {"name": "few"}, "rules": rules})
    binding = {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "few"}}
    subjects = [{"kind": "User", "name": "nobody", "apiGroup": "rbac.authorization.k8s.io"}]
    cluster.request("POST", f"{rbac}/rolebindings", {"metadata": {"name": "few"}, "subjects": subjects} | binding)
    done = run(tmp_path, api_server.kubeconfig, broken, "-e", "cluster_context=nobody")
    assert done.returncode == 0, done.stdout
    assert "The image registry.example/api:9 cannot be pulled" in done.stdout
    text = next((tmp_path / "reports").glob("*.txt")).read_text()
    assert "Secrets could not all be read" in text
    for part in ("nodes", "events", "endpoints", "top of nodes"):
        assert re.search(rf"^{part} +\S.*(forbidden|missing)", text, re.MULTILINE), text[-3000:]


def test_the_deployer_reads_all_but_what_is_told(api_server: Any, cluster: Cluster, deploy: Any, broken: str) -> None:
    """With the rights that the role deployer gives, in a platform of one namespace."""
    variables = {
        "deployer_namespace": broken,
        "deployer_monitoring_namespace": broken,
        "deployer_nodes_namespace": "",
        "deployer_restore_namespace": "",
        "deployer_snapshots_enabled": False,
        "deployer_service_account": "",
        "deployer_secrets_source": "values",
        "deployer_certificates_enabled": False,
        "deployer_ingress_kind": "none",
        "deployer_subjects": [{"kind": "User", "name": "nobody"}],
    }
    made = []
    try:
        for template in sorted((CHECKOUT / "roles/deployer/templates").glob("*.j2")):
            for manifest in deploy.render(template.read_text(), **variables):
                kind = cluster.resource(manifest.api_version, manifest.kind)
                cluster.request("POST", kind.path(manifest.namespace), manifest.body)
                made.append(kind.path(manifest.namespace, manifest.name))
        reader = Cluster.from_kubeconfig("test", str(api_server.kubeconfig), "nobody")
        seen = Collector(reader, [broken], timedelta(hours=1), 20).collect()
    finally:
        # Another test wants somebody without rights.
        for path in made:
            cluster.request("DELETE", path)
    refused = {part for part, text in seen.problems.items() if "forbidden" in text}
    assert refused == {"quotas", "ingresses", "pod_metrics", "node_metrics"}
    assert {"image_not_pulled", "pod_pending"} <= {cause.kind for cause in find(seen)}
    assert seen.masked_by == "the values of 1 Secrets are masked"


def test_a_cluster_out_of_reach_fails_with_one_line(tmp_path: Path, api_server: Any) -> None:
    config = yaml.safe_load(api_server.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    done = run(tmp_path, tmp_path / "kubeconfig", SPACE)
    assert done.returncode != 0
    assert "cluster east: cannot reach https://127.0.0.1:1: Connection refused." in done.stdout
    assert not list((tmp_path / "reports").iterdir())


def test_a_time_that_is_none_is_refused(tmp_path: Path, api_server: Any) -> None:
    done = run(tmp_path, api_server.kubeconfig, SPACE, "-e", "diagnose_since=yesterday")
    assert done.returncode != 0
    assert "since is 'yesterday': write a number and s, m, h or d" in done.stdout


def test_an_api_error_of_the_login_is_not_a_report(api_server: Any) -> None:
    stranger = Cluster.from_kubeconfig("test", str(api_server.kubeconfig))
    stranger._credentials.headers["Authorization"] = "Bearer wrong"
    with pytest.raises(ApiError, match="does not accept the kubeconfig's login"):
        Collector(stranger, [SPACE], timedelta(hours=1), 20).collect()
