"""What the reference document promises of the platform, seen from outside."""

from __future__ import annotations

import base64

import pytest

STORES = ("postgres", "redis", "elasticsearch")
APPS = ("citadelbuy-api", "citadelbuy-web")
NAMESPACES = ("citadelbuy", "citadelbuy-monitoring", "citadelbuy-nodes", "citadelbuy-restore")
TIERS = {
    "postgres": "database",
    "redis": "cache",
    "elasticsearch": "search",
    **dict(zip(APPS, ("api", "web"), strict=True)),
    "object-store": "backup",
    "postgres-backup-exporter": "backup",
    "backups-exporter": "backup",
}
EXPORTERS = {
    "postgres": (9187, "pg_up 1"),
    "redis": (9121, "redis_up 1"),
    "elasticsearch": (9114, "elasticsearch_cluster_health_up 1"),
}


def owner(pod):
    """The workload that a pod belongs to."""
    return max((name for name in TIERS if pod["metadata"]["name"].startswith(name)), key=len)


def test_every_pod_is_ready_and_never_restarted(pods):
    assert {owner(pod) for pod in pods} == set(TIERS)
    for pod in pods:
        for container in pod["status"]["containerStatuses"]:
            assert container["ready"], f"{pod['metadata']['name']}/{container['name']}"
            assert container["restartCount"] == 0, f"{pod['metadata']['name']}/{container['name']}"


def test_pods_carry_the_labels_of_the_document(pods):
    for pod in pods:
        labels = pod["metadata"]["labels"]
        assert labels["tier"] == TIERS[owner(pod)]
        assert labels["app.kubernetes.io/part-of"] == "citadelbuy"
        assert labels["app.kubernetes.io/name"]


def test_priorities(kubectl):
    values = dict.fromkeys((*STORES, "object-store"), 1000000) | dict.fromkeys((*APPS, "citadelbuy-migration"), 100000)
    found = set()
    for namespace in NAMESPACES:
        for pod in kubectl("get", "pods", "--namespace", namespace, "--output", "json")["items"]:
            name = pod["metadata"]["labels"].get("app.kubernetes.io/name")
            assert pod["spec"].get("priority", 0) == values.get(name, 0), pod["metadata"]["name"]
            found.add(name)
    # The migration's Job may be gone.
    assert {*values, "prometheus", "opentelemetry-collector"} - {"citadelbuy-migration"} <= found


def test_workloads_carry_the_common_labels(items):
    for workload in items("statefulsets") + items("deployments"):
        labels = workload["metadata"]["labels"]
        for key in ("name", "instance", "component", "part-of", "managed-by", "version"):
            assert labels.get(f"app.kubernetes.io/{key}"), f"{workload['metadata']['name']} {key}"


def test_pod_security_is_enforced_as_restricted(kubectl):
    for namespace in ("citadelbuy", "citadelbuy-monitoring", "citadelbuy-restore"):
        labels = kubectl("get", "namespace", namespace, "--output", "json")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    refused = kubectl("run", "root", "--image=i:1", "--dry-run=server", "--namespace", "citadelbuy", fails=True)
    assert "violates PodSecurity" in refused
    level = "pod-security.kubernetes.io/enforce=restricted"
    # The API server judges the running pods when a label changes, so it is taken away and given back, dry.
    answer = kubectl("label", "namespace", "citadelbuy", level, "--overwrite", "--dry-run=server")
    assert "existing pods" not in answer


def test_containers_are_confined(pods):
    for pod in pods:
        for container in pod["spec"]["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"], container["name"]
            assert context["capabilities"]["drop"] == ["ALL"]
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]


def test_probes(pods):
    for pod in pods:
        main = pod["spec"]["containers"][0]
        assert main["readinessProbe"], main["name"]
        assert main["livenessProbe"], main["name"]
        if main["name"] == "api":
            assert main["livenessProbe"]["httpGet"]["path"] == "/health/live"
            assert main["readinessProbe"]["httpGet"]["path"] == "/health/ready"
        if main["name"] == "web":
            assert main["livenessProbe"]["httpGet"]["path"].partition("?")[0] == "/api/health"
            assert main["readinessProbe"]["httpGet"]["path"] == "/api/health"


@pytest.mark.parametrize(
    ("service", "port"),
    [("postgres", 5432), ("redis", 6379), ("elasticsearch", 9200), *((name, 3000) for name in APPS)],
)
def test_services_have_endpoints(kubectl, service, port):
    found = kubectl("get", "service", service, "--namespace", "citadelbuy", "--output", "json")
    assert port in [item["port"] for item in found["spec"]["ports"]]
    selector = f"--selector=kubernetes.io/service-name={service}"
    slices = kubectl("get", "endpointslices", selector, "--namespace", "citadelbuy", "--output", "json")["items"]
    assert any(
        point.get("conditions", {}).get("ready", True) for item in slices for point in item.get("endpoints") or []
    )


@pytest.mark.parametrize("store", STORES)
def test_exporters_answer_and_reach_their_store(kubectl, store):
    port, line = EXPORTERS[store]
    metrics = kubectl("get", "--raw", f"/api/v1/namespaces/citadelbuy/pods/{store}-0:{port}/proxy/metrics")
    assert line in metrics.splitlines()


def test_the_api_has_metrics(kubectl, pods):
    name = next(pod["metadata"]["name"] for pod in pods if owner(pod) == "citadelbuy-api")
    assert "# TYPE" in kubectl("get", "--raw", f"/api/v1/namespaces/citadelbuy/pods/{name}:3000/proxy/metrics")


def test_volumes_are_bound(items):
    claims = {claim["metadata"]["name"]: claim["status"]["phase"] for claim in items("persistentvolumeclaims")}
    assert claims == {f"data-{store}-0": "Bound" for store in (*STORES, "object-store")}


def test_autoscalers_follow_cpu_and_memory(items):
    scalers = {item["metadata"]["name"]: item["spec"] for item in items("horizontalpodautoscalers")}
    assert set(scalers) == {f"{name}-hpa" for name in APPS}
    for spec in scalers.values():
        targets = {
            item["resource"]["name"]: item["resource"]["target"]["averageUtilization"] for item in spec["metrics"]
        }
        assert targets == {"cpu": 70, "memory": 80}


def test_updates_keep_every_replica(items):
    deployments = {item["metadata"]["name"]: item["spec"]["strategy"]["rollingUpdate"] for item in items("deployments")}
    assert {name: deployments[name]["maxUnavailable"] for name in APPS} == dict.fromkeys(APPS, 0)
    assert {item["metadata"]["name"].removesuffix("-pdb") for item in items("poddisruptionbudgets")} >= set(APPS)


def test_rate_limits_are_those_of_the_document(kubectl):
    data = kubectl("get", "configmap", "citadelbuy-config", "--namespace", "citadelbuy", "--output", "json")["data"]
    limits = {
        "RATE_LIMIT_TTL": "60000",
        "RATE_LIMIT_MAX_REQUESTS": "100",
        "RATE_LIMIT_PUBLIC_MAX": "300",
        "RATE_LIMIT_SEARCH_MAX": "200",
        "RATE_LIMIT_AUTH_MAX": "10",
        "RATE_LIMIT_PAYMENT_MAX": "20",
    }
    assert {key: data.get(key) for key in limits} == limits


@pytest.fixture
def secret_values(kubectl):
    """The values of the platform's Secret, decoded, but those of users' names, which are kept beside the passwords."""
    secret = kubectl("get", "secret", "citadelbuy-secrets", "--namespace", "citadelbuy", "--output", "json")
    annotations = secret["metadata"].get("annotations") or {}
    assert "last-applied" not in str(annotations)
    names = annotations.get("citadelbuy.io/keep", "").split(",")
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items() if key not in names}


def test_secrets_were_generated(secret_values):
    needed = {"DATABASE_PASSWORD", "REDIS_PASSWORD", "ELASTICSEARCH_PASSWORD", "JWT_SECRET", "SESSION_SECRET"}
    assert needed <= set(secret_values)
    assert all(len(secret_values[key]) >= 32 for key in needed)
    assert len(set(secret_values.values())) == len(secret_values)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("psql -h postgres -U citadelbuy -d citadelbuy -tAc 'SELECT 1'", "1"),
        ("redis-cli -h redis ping", "PONG"),
        ("npm run migration:run", "migrat"),
    ],
)
def test_the_documents_commands_in_the_api_pod(kubectl, command, answer):
    into = ("exec", "deployment/citadelbuy-api", "--namespace", "citadelbuy", "--container", "api")
    assert answer in kubectl(*into, "--", "sh", "-c", command)
