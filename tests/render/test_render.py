"""Every inventory's manifests: valid, complete, accepted by a real API server, and of the agreed size."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rendering
import yaml
from ansible_collections.citadelbuy.platform.plugins.module_utils.apply import Applier, Policy
from ansible_collections.citadelbuy.platform.plugins.module_utils.applyset import WORKLOADS, pod_template
from ansible_collections.citadelbuy.platform.plugins.module_utils.capacity import quantity
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.foresee import Foreseen
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import Parent
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest

RUNNING = (*WORKLOADS, "CronJob")
Sets = list[rendering.Rendered]
Account = tuple[str | None, str]  # namespace and name


def manifests(inventory: Sets, *kinds: str) -> list[Manifest]:
    """The manifests of some kinds."""
    return [item for rendered in inventory for item in rendered.manifests if not kinds or item.kind in kinds]


def containers(inventory: Sets) -> Iterator[tuple[str, dict[str, Any]]]:
    """All containers with a name for messages."""
    for manifest in manifests(inventory, *RUNNING):
        pod = pod_template(manifest.body)["spec"]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield f"{manifest}/{container['name']}", container


def test_kubeconform(inventory: Sets, kubeconform: str, schema_folder: Path, tmp_path: Path) -> None:
    for rendered in inventory:
        rendering.write(rendered, tmp_path)
    location = f"{schema_folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    done = subprocess.run(
        # A slice's endpoints are others': the API server takes it without.
        [kubeconform, "-summary", "-skip", "EndpointSlice", "-schema-location", location, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(manifests(inventory))} resources found" in done.stdout
    assert f"Skipped: {len(manifests(inventory, 'EndpointSlice'))}" in done.stdout


def test_api_server_accepts_everything(inventory: Sets, cluster: Cluster, tmp_path: Path) -> None:
    for rendered in inventory:
        parent, foreseen = Parent(cluster, rendered.set_name, "citadelbuy"), Foreseen(tmp_path / "foreseen")
        # The accounts of another inventory are there.
        outcome = Applier(cluster, parent, Policy(prune=False), foreseen, check=True).apply(rendered.manifests)
        assert outcome.errors == []
        # What another inventory has made here goes, or is kept.
        made = [item for item in outcome.applied if item.action not in ("kept", "pruned")]
        assert len(made) == len(rendered.manifests)


def test_pods_pass_pod_security_restricted(inventory: Sets, cluster: Cluster) -> None:
    for manifest in manifests(inventory, *RUNNING):
        template = pod_template(manifest.body)
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{manifest.name}-test", "labels": template["metadata"]["labels"]},
            "spec": template["spec"],
        }
        for claim in manifest.body["spec"].get("volumeClaimTemplates") or []:
            name = claim["metadata"]["name"]
            pod["spec"]["volumes"] = [
                *pod["spec"].get("volumes", []),
                {"name": name, "persistentVolumeClaim": {"claimName": name}},
            ]
        path = f"/api/v1/namespaces/{manifest.namespace}/pods"
        cluster.request("POST", path, pod, {"dryRun": "All", "fieldValidation": "Strict"})


def test_configuration_files_are_yaml(inventory: Sets) -> None:
    files = 0
    for manifest in manifests(inventory, "ConfigMap"):
        for name, text in manifest.body.get("data", {}).items():
            if name.endswith((".yml", ".yaml")):
                assert isinstance(yaml.safe_load(text), dict), f"{manifest}: {name}"
                files += 1
    assert files > 10


def test_containers_are_confined_and_sized(inventory: Sets) -> None:
    for name, container in containers(inventory):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True, name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        for part in ("requests", "limits"):
            assert set(container["resources"][part]) >= {"cpu", "memory"}, name
        assert container["imagePullPolicy"] == "IfNotPresent", name
        assert not container["image"].endswith(":latest"), name


def test_priorities(inventory: Sets) -> None:
    values = {item.name: item.body["value"] for item in manifests(inventory, "PriorityClass")}
    assert values == {"citadelbuy-datastores.citadelbuy": 1000000, "citadelbuy-applications.citadelbuy": 100000}
    expected = dict.fromkeys(("postgres", "redis", "elasticsearch", "object-store"), 1000000)
    expected |= dict.fromkeys((f"citadelbuy-{name}" for name in ("api", "web", "migration", "firewall")), 100000)
    expected["traefik"] = 100000
    for manifest in manifests(inventory, *RUNNING):
        name = pod_template(manifest.body)["metadata"]["labels"]["app.kubernetes.io/name"]
        of = pod_template(manifest.body)["spec"].get("priorityClassName")
        assert (values[of] if of else 0) == expected.get(name.removesuffix("-canary"), 0), manifest


def test_pods_are_confined(inventory: Sets) -> None:
    tokens: dict[Account, list[dict[str, Any]]] = {}
    for manifest in manifests(inventory):
        template = pod_template(manifest.body)
        if template is None:
            continue
        pod = template["spec"]
        security = pod["securityContext"]
        # The files of a node's containers are root's; what else is allowed there, the role admission says.
        on_nodes = manifest.namespace == "citadelbuy-nodes"
        assert security.get("runAsNonRoot", False) is not on_nodes, manifest
        assert on_nodes or not any("hostPath" in volume for volume in pod.get("volumes", [])), manifest
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, manifest
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), manifest
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            own = container["securityContext"]
            assert own.get("runAsNonRoot", True) is True, manifest
            assert own.get("privileged", False) is False, manifest
            assert "seccompProfile" not in own, manifest
            assert not any("hostPort" in port for port in container.get("ports", [])), manifest
        sources = [item for volume in pod.get("volumes", []) for item in volume.get("projected", {}).get("sources", [])]
        found = [item["serviceAccountToken"] for item in sources if "serviceAccountToken" in item]
        if found or pod["automountServiceAccountToken"] is not False:
            tokens[manifest.namespace, pod["serviceAccountName"]] = found
    assert set(rights(inventory)) == set(tokens), "a token where there are rights, and nowhere else"
    assert all(token["expirationSeconds"] < 7200 for found in tokens.values() for token in found)


def rights(inventory: Sets) -> dict[Account, list[Manifest]]:
    """The Roles and ClusterRoles bound to each account; each has one binding, of its own name."""
    roles = {(item.kind, item.namespace, item.name): item for item in manifests(inventory, "Role", "ClusterRole")}
    bound: dict[Account, list[Manifest]] = {}
    for binding in manifests(inventory, "RoleBinding", "ClusterRoleBinding"):
        reference = binding.body["roleRef"]
        assert binding.kind == f"{reference['kind']}Binding", binding
        assert binding.name == reference["name"], binding
        role = roles.pop((reference["kind"], binding.namespace, reference["name"]))
        for subject in binding.body["subjects"]:
            bound.setdefault((subject["namespace"], subject["name"]), []).append(role)
    assert roles == {}, "roles that are bound to nobody"
    return bound


def test_rights_of_the_monitoring_only_look(inventory: Sets) -> None:
    found = {account: roles for account, roles in rights(inventory).items() if account[0] == "citadelbuy-monitoring"}
    assert set(found) == {("citadelbuy-monitoring", name) for name in ("prometheus", "kube-state-metrics")}
    for roles in found.values():
        for role in roles:
            assert role.kind == "Role" or role.name.endswith(".citadelbuy-monitoring"), "two platforms in a cluster"
            for rule in role.body["rules"]:
                assert set(rule["verbs"]) <= {"get", "list", "watch"}, role
                assert not {"secrets", "*"} & {*rule.get("resources", []), *rule["verbs"]}, role
                # Of other namespaces, nothing but the API server's addresses.
                if role.kind == "ClusterRole" and {"pods", "services", "endpointslices"} & {*rule.get("resources", [])}:
                    assert rule["resourceNames"] == ["kubernetes"], role


def test_long_running_containers_are_probed(inventory: Sets) -> None:
    for manifest in manifests(inventory, "Deployment", "StatefulSet"):
        for container in pod_template(manifest.body)["spec"]["containers"]:
            assert "livenessProbe" in container, f"{manifest}/{container['name']}"
            if container["name"] != "exporter":
                assert {"startupProbe", "readinessProbe"} <= set(container), f"{manifest}/{container['name']}"


def test_pods_have_their_own_account_and_no_token(inventory: Sets) -> None:
    accounts = {item.name for item in manifests(inventory, "ServiceAccount")}
    used = []
    for manifest in manifests(inventory, *RUNNING):
        pod = pod_template(manifest.body)["spec"]
        assert pod["automountServiceAccountToken"] is False, manifest
        assert pod["enableServiceLinks"] is False, manifest
        used.append(pod["serviceAccountName"])
    assert set(used) == accounts
    # Verifiers of what restic has stored share an account without rights; a canary has that of what it is of.
    shared = {"backups-verify"}
    if any(item.name.endswith("-canary") for item in manifests(inventory, "Deployment")):
        shared |= {"citadelbuy-api", "citadelbuy-web", "citadelbuy-migration"}
    assert {account for account in used if used.count(account) > 1} <= shared


def test_labels(inventory: Sets) -> None:
    tiers = {"postgres": "database", "redis": "cache", "elasticsearch": "search", "traefik": "ingress"}
    tiers |= dict.fromkeys(("object-store", "postgres-backup-exporter", "backups-exporter"), "backup")
    for manifest in manifests(inventory, "Deployment", "StatefulSet"):
        labels = pod_template(manifest.body)["metadata"]["labels"]
        monitoring = manifest.namespace == "citadelbuy-monitoring"
        tier = (
            "monitoring"
            if monitoring
            else tiers.get(manifest.name, manifest.name.removeprefix("citadelbuy-").removesuffix("-canary"))
        )
        assert labels["tier"] == tier
        assert labels["app.kubernetes.io/name"] == manifest.name
        assert labels["app.kubernetes.io/part-of"] == "citadelbuy"
        assert {"app.kubernetes.io/component", "app.kubernetes.io/version"} <= set(labels)
        assert manifest.body["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_stores_are_verified_at_once(inventory: Sets) -> None:
    quotas = [
        item.body["spec"]["hard"] for item in manifests(inventory, "ResourceQuota") if "restore" in item.namespace
    ]
    pods = [
        pod_template(item.body)["spec"] for item in manifests(inventory, "CronJob") if item.name.endswith("-verify")
    ]
    for quota in quotas:
        assert len(pods) >= 4
        assert len(pods) <= int(quota["pods"])
        for name in quota.keys() - {"pods"}:
            part, resource = name.split(".")
            # Those that start first are done, or run beside and so count like the others.
            used = sum(
                quantity(container["resources"][part][resource])
                for pod in pods
                for container in [*pod.get("initContainers", []), *pod["containers"]]
            )
            assert used <= quantity(quota[name]), name


def test_budgets_let_a_drain_pass(inventory: Sets) -> None:
    budgets = {
        item.body["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]: item.body["spec"]
        for item in manifests(inventory, "PodDisruptionBudget")
    }
    assert set(budgets) == {item.name for item in manifests(inventory, "Deployment", "StatefulSet")}
    assert all(spec["maxUnavailable"] == 1 for spec in budgets.values())


def test_services_lead_to_pods(inventory: Sets) -> None:
    pods = [pod_template(item.body)["metadata"]["labels"] for item in manifests(inventory, *RUNNING)]
    for item in manifests(inventory, "StatefulSet"):
        labels = pod_template(item.body)["metadata"]["labels"]
        names = [f"{item.name}-{number}" for number in range(item.body["spec"]["replicas"])]
        pods += [labels | {"statefulset.kubernetes.io/pod-name": name} for name in names]
    by_hand = {
        item.body["metadata"]["labels"]["kubernetes.io/service-name"] for item in manifests(inventory, "EndpointSlice")
    }
    for service in manifests(inventory, "Service"):
        selector = service.body["spec"].get("selector")
        if service.name in by_hand:  # else what it leads to would be of two minds
            assert not any(selector.items() <= labels.items() for labels in pods), service
        elif selector:
            assert any(selector.items() <= labels.items() for labels in pods), service
        else:  # Patroni writes the Endpoints
            assert service.name in ("postgres", "postgres-config")


def test_no_secret_outside_the_secret(inventory: Sets) -> None:
    stand_in = next(iter(rendering.STAND_INS.values()))
    assert [str(item) for item in manifests(inventory) if item.kind != "Secret" and stand_in in str(item.body)] == []


def test_one_image_one_migration() -> None:
    def job(**overrides: Any) -> str:
        sets = list(rendering.render_inventory("local", **overrides))
        return manifests(sets, "Job")[0].name

    names = [job(), job(applications_api_image="x/api:2"), job(applications_migration_command=["true"])]
    assert len(set(names)) == 3
    assert job() == names[0]
    assert all(name.startswith("citadelbuy-api-migrate-") for name in names)


@pytest.mark.parametrize("switch", ["true", "false"])
def test_api_and_web_are_traced_where_asked_and_the_migration_never(switch: str) -> None:
    sets = list(rendering.render_inventory("local", ["applications"], platform_traces=switch))
    found = {}
    for manifest in manifests(sets, "Deployment", "Job"):
        (container,) = pod_template(manifest.body)["spec"]["containers"]
        found[container["name"]] = {
            item["name"]: item["value"] for item in container["env"] if item["name"].startswith("OTEL_")
        }
    common = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger.citadelbuy-monitoring:4318",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "1",
    }
    traced = {name: {"OTEL_SERVICE_NAME": f"citadelbuy-{name}"} | common for name in ("api", "web")}
    assert found == {"migration": {}} | (traced if switch == "true" else {"api": {}, "web": {}})


@pytest.mark.parametrize("switch", ["true", "false"])
def test_customers_come_through_the_firewall_alone_where_there_is_one(switch: str) -> None:
    ingress = {"network_policies_ingress_namespace": "ingress-nginx"}
    roles = ["network_policies", "applications", "firewall"]
    sets = list(rendering.render_inventory("local", roles, platform_firewall=switch, **ingress))
    reached = {
        policy.name
        for policy in manifests(sets, "NetworkPolicy")
        for rule in policy.body["spec"].get("ingress") or []
        if "ingress-nginx" in str(rule["from"])
    }
    (web,) = [item for item in manifests(sets, "Deployment") if item.name == "citadelbuy-web"]
    environment = pod_template(web.body)["spec"]["containers"][0]["env"]
    firewall = [item.kind for item in manifests(sets) if item.name.startswith("citadelbuy-firewall")]
    assert reached == ({"firewall"} if switch == "true" else {"web", "api"})
    assert {"name": "TRUST_PROXY", "value": switch} in environment
    assert bool(firewall) == (switch == "true")


@pytest.mark.parametrize("patroni", [True, False])
def test_postgres_with_and_without_patroni(patroni: bool) -> None:
    sets = [
        item
        for item in rendering.render_inventory("local", postgres_patroni_enabled=patroni)
        if item.role == "postgres"
    ]
    kinds = {item.kind for item in manifests(sets)}
    services = {item.name: item.body["spec"] for item in manifests(sets, "Service")}
    assert ("Role" in kinds) is patroni
    assert ("selector" in services["postgres"]) is not patroni
    assert services["postgres"]["ports"][0]["name"] == "postgresql"


@pytest.mark.parametrize("patroni", [True, False])
def test_postgres_lets_the_network_in_by_tls_alone(patroni: bool) -> None:
    sets = list(rendering.render_inventory("local", ["postgres"], postgres_patroni_enabled=patroni))
    (stateful_set,) = manifests(sets, "StatefulSet")
    pod = pod_template(stateful_set.body)
    server, exporter = pod["spec"]["containers"]
    (files,) = [volume["secret"] for volume in pod["spec"]["volumes"] if volume["name"] == "tls"]
    assert files == {"secretName": "postgres-tls", "defaultMode": 0o440}
    (folder,) = [mount["mountPath"] for mount in server["volumeMounts"] if mount["name"] == "tls"]
    assert "tls" not in [mount["name"] for mount in exporter["volumeMounts"]]
    followed = "Secret/postgres-tls" in pod["metadata"]["annotations"]["citadelbuy.io/not-rolled-by"]
    environment = {item["name"]: item.get("value") for item in server["env"]}
    rules = {item.name: item.body["data"]["pg_hba.conf"].split("\n") for item in manifests(sets, "ConfigMap")}
    if patroni:
        assert followed
        assert environment["POSTGRES_CERTIFICATE"] == folder
        assert {server[f"{kind}Probe"]["httpGet"]["scheme"] for kind in ("startup", "readiness", "liveness")} == {
            "HTTPS"
        }
        assert not rules
    else:  # the official image reads a new certificate when it starts
        assert not followed
        assert {"ssl=on", f"ssl_cert_file={folder}/tls.crt", f"ssl_key_file={folder}/tls.key"} <= set(server["args"])
        assert [rule.split()[0] for rule in rules["postgres-access"] if rule] == ["local", "hostssl"]


def test_the_applications_know_the_datastores_by_their_authority() -> None:
    for manifest in manifests(list(rendering.render_inventory("local", ["applications"])), "Deployment", "Job"):
        pod = pod_template(manifest.body)["spec"]
        (container,) = pod["containers"]
        if container["name"] == "web":
            continue
        (volume,) = [item["secret"] for item in pod["volumes"] if item["name"] == "authority"]
        # The key alone: the certificate is renewed, and the key is none of theirs.
        assert volume == {"secretName": "postgres-tls", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
        (folder,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "authority"]
        environment = {item["name"]: item.get("value") for item in container["env"]}
        assert environment["NODE_EXTRA_CA_CERTS"] == environment["PGSSLROOTCERT"] == f"{folder}/ca.crt"
        assert environment["PGSSLMODE"] == "verify-full"


@pytest.mark.parametrize(
    ("size", "limit"),
    [("20Gi", "24Gi"), ("1Gi", "2Gi"), ("100Gi", "120Gi"), ("1.5Ti", "2Ti"), (32212254720, "38654705664")],
)
def test_a_verification_s_limit_follows_its_volume(size: str | int, limit: str) -> None:
    sets = list(rendering.render_inventory("local", ["postgres"], platform_backups=True, postgres_storage_size=size))
    (job,) = [pod_template(item.body)["spec"] for item in manifests(sets, "CronJob") if item.name == "postgres-verify"]
    assert job["containers"][0]["resources"]["limits"]["ephemeral-storage"] == limit
    assert [volume["emptyDir"] for volume in job["volumes"] if volume["name"] == "data"] == [{"sizeLimit": size}]


@pytest.mark.parametrize(
    ("replicas", "names", "seeds"),
    [
        (1, "elasticsearch-0", ""),
        (3, "elasticsearch-0, elasticsearch-1, elasticsearch-2", "elasticsearch-members"),
    ],
)
def test_elasticsearch_begins_one_cluster(replicas: int, names: str, seeds: str) -> None:
    sets = list(rendering.render_inventory("local", ["elasticsearch"], elasticsearch_replicas=replicas))
    (workload,) = manifests(sets, "StatefulSet")
    assert workload.body["spec"]["replicas"] == replicas
    pod = pod_template(workload.body)["spec"]
    (configuration,) = pod["initContainers"]
    script, *given = configuration["command"][2:]
    assert given == ["configuration", names, seeds]
    assert '[ "$HOSTNAME" = elasticsearch-0 ] && ! [ -e /usr/share/elasticsearch/data/citadelbuy-joined ]' in script
    server = pod["containers"][0]
    settings = {variable["name"]: variable.get("value") for variable in server["env"]}
    # They would begin a cluster, or look for one, each in its own way.
    assert not settings.keys() & {"discovery.type", "discovery.seed_hosts", "cluster.initial_master_nodes"}
    (mount,) = [item["mountPath"] for item in server["volumeMounts"] if item["name"] == "tls"]
    for port in ("http", "transport"):
        tls = f"xpack.security.{port}.ssl."
        assert settings[f"{tls}enabled"] == "true"
        for name, file in {"key": "tls.key", "certificate": "tls.crt"}.items():
            assert f"/usr/share/elasticsearch/config/{settings[tls + name]}" == f"{mount}/{file}"
    assert settings[f"{tls}verification_mode"] == "certificate"
    assert f"/usr/share/elasticsearch/config/{settings[f'{tls}certificate_authorities']}" == f"{mount}/ca.crt"


def test_clients_of_elasticsearch_have_its_authority_and_no_key() -> None:
    sets = list(rendering.render_inventory("local", platform_backups=True))
    (settings,) = [item.body["data"] for item in manifests(sets, "ConfigMap") if item.name == "citadelbuy-config"]
    assert settings["ELASTICSEARCH_URL"] == "https://elasticsearch:9200"
    clients = {
        ("citadelbuy-api", "api"): ("NODE_EXTRA_CA_CERTS", "postgres-tls"),
        ("elasticsearch", "exporter"): ("", "elasticsearch-tls"),
        ("elasticsearch-backup", "backup"): ("ELASTICSEARCH_CA_FILE", "elasticsearch-tls"),
    }
    for manifest in manifests(sets, *RUNNING):
        pod = pod_template(manifest.body)["spec"]
        for container in pod["containers"]:
            if (client := (manifest.name, container["name"])) not in clients:
                continue
            variable, secret = clients.pop(client)
            mounts = {item["name"]: item["mountPath"] for item in container["volumeMounts"]}
            assert "tls" not in mounts
            (volume,) = [item["secret"] for item in pod["volumes"] if item["name"] == "authority"]
            assert (volume["secretName"], [item["path"] for item in volume["items"]]) == (secret, ["ca.crt"])
            environment = {item["name"]: item.get("value") for item in container["env"]} if variable else {}
            assert environment.get(variable) == (f"{mounts['authority']}/ca.crt" if variable else None)
    assert clients == {}


# The numbers of the reference document.

PROD = {
    "postgres": ("20Gi", {"cpu": "500m", "memory": "512Mi"}, {"cpu": "2000m", "memory": "2Gi"}, 9187),
    "redis": ("10Gi", {"cpu": "250m", "memory": "512Mi"}, {"cpu": "1000m", "memory": "2Gi"}, 9121),
    "elasticsearch": ("30Gi", {"cpu": "1000m", "memory": "2Gi"}, {"cpu": "2000m", "memory": "4Gi"}, 9114),
    "prometheus": ("50Gi", {"cpu": "500m", "memory": "1Gi"}, {"cpu": "2000m", "memory": "4Gi"}, 9090),
    "citadelbuy-api": (None, {"cpu": "250m", "memory": "256Mi"}, {"cpu": "500m", "memory": "512Mi"}, 3000),
    "citadelbuy-web": (None, {"cpu": "200m", "memory": "256Mi"}, {"cpu": "400m", "memory": "512Mi"}, 3000),
    "grafana": ("10Gi", {"cpu": "100m", "memory": "128Mi"}, {"cpu": "500m", "memory": "512Mi"}, 3000),
}


@pytest.fixture(scope="module")
def prod() -> Sets:
    return list(rendering.render_inventory("prod"))


@pytest.mark.parametrize("name", PROD)
def test_production_sizes(prod: Sets, name: str) -> None:
    storage, requests, limits, metrics_port = PROD[name]
    (workload,) = [item for item in manifests(prod, "Deployment", "StatefulSet") if item.name == name]
    template = pod_template(workload.body)
    resources = template["spec"]["containers"][0]["resources"]
    # The document has none of these: they keep a pod from filling its node's disk.
    assert resources["requests"].pop("ephemeral-storage") == "64Mi"
    assert resources["limits"].pop("ephemeral-storage") in ("1Gi", "4Gi")
    assert resources == {"requests": requests, "limits": limits}
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(metrics_port)
    for claim in workload.body["spec"].get("volumeClaimTemplates") or []:
        assert claim["spec"]["resources"]["requests"]["storage"] == storage


def test_production_database(prod: Sets) -> None:
    given = rendering.render_inventory("prod", ["postgres"], postgres_parameters={"work_mem": "8MB", "jit": "off"})
    for sets, own in ((prod, {"work_mem=2621kB"}), (list(given), {"work_mem=8MB", "jit=off"})):
        (database,) = [item.body for item in manifests(sets, "StatefulSet") if item.name == "postgres"]
        _program, *arguments = database["spec"]["template"]["spec"]["containers"][0]["args"]
        assert set(arguments[::2]) == {"-c"}
        assert {"max_connections=200", "shared_buffers=512MB", "max_wal_size=2048MB"} | own <= set(arguments[1::2])
        assert {"log_min_duration_statement=1000", "log_parameter_max_length=0"} <= set(arguments[1::2])
        assert len({argument.partition("=")[0] for argument in arguments[1::2]}) == len(arguments[1::2])


def test_production_prometheus(prod: Sets) -> None:
    (server,) = [item.body for item in manifests(prod, "StatefulSet") if item.name == "prometheus"]
    assert server["spec"]["replicas"] == 2
    arguments = server["spec"]["template"]["spec"]["containers"][0]["args"]
    # 40 GiB of 50: the write-ahead log and merges need room beside the blocks.
    assert {"--storage.tsdb.retention.time=30d", "--storage.tsdb.retention.size=40960MB"} <= set(arguments)
    (config,) = [item.body["data"] for item in manifests(prod, "ConfigMap") if item.name == "prometheus"]
    assert yaml.safe_load(config["prometheus.yml"])["global"]["scrape_interval"] == "15s"


def test_pods_are_scraped_at_a_port_that_they_declare(inventory: Sets) -> None:
    for manifest in manifests(inventory, "Deployment", "StatefulSet"):
        template = pod_template(manifest.body)
        annotations = template["metadata"].get("annotations", {})
        ports = [
            port["containerPort"] for container in template["spec"]["containers"] for port in container.get("ports", [])
        ]
        if annotations.get("prometheus.io/scrape") == "true":
            assert int(annotations["prometheus.io/port"]) in ports, manifest
        else:
            # The Service of one is scraped, and the other has no metrics.
            assert manifest.name in ("kube-state-metrics", "object-store"), manifest


@pytest.mark.parametrize(("name", "most"), [("citadelbuy-api-hpa", 10), ("citadelbuy-web-hpa", 20)])
def test_production_autoscaling(prod: Sets, name: str, most: int) -> None:
    (scaler,) = [item.body["spec"] for item in manifests(prod, "HorizontalPodAutoscaler") if item.name == name]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, most)
    targets = {item["resource"]["name"]: item["resource"]["target"]["averageUtilization"] for item in scaler["metrics"]}
    assert targets == {"cpu": 70, "memory": 80}


def test_rate_limits(inventory: Sets) -> None:
    (config,) = [item.body["data"] for item in manifests(inventory, "ConfigMap") if item.name == "citadelbuy-config"]
    expected = {"TTL": 60000, "MAX_REQUESTS": 100, "PUBLIC_MAX": 300, "SEARCH_MAX": 200, "AUTH_MAX": 10}
    expected["PAYMENT_MAX"] = 20
    assert {key: value for key, value in config.items() if key.startswith("RATE_LIMIT_")} == {
        f"RATE_LIMIT_{key}": str(value) for key, value in expected.items()
    }


@pytest.mark.parametrize("key", ["GF_SECURITY_ADMIN_PASSWORD", "GF_AUTH_GOOGLE_CLIENT_SECRET"])
def test_grafana_takes_secrets_as_files_alone(key: str) -> None:
    with pytest.raises(EngineError, match=f"grafana_environment holds {key}, which anybody could read"):
        list(rendering.render_inventory("local", grafana_environment={key: "value"}))
    sets = list(rendering.render_inventory("local", grafana_environment={f"{key}__FILE": "/run/value"}))
    (workload,) = [item for item in manifests(sets, "StatefulSet") if item.name == "grafana"]
    environment = pod_template(workload.body)["spec"]["containers"][0]["env"]
    assert {"name": f"{key}__FILE", "value": "/run/value"} in environment


def test_grafana_is_closed(inventory: Sets) -> None:
    (workload,) = [item for item in manifests(inventory, "StatefulSet") if item.name == "grafana"]
    environment = {item["name"]: item["value"] for item in pod_template(workload.body)["spec"]["containers"][0]["env"]}
    off = (
        "AUTH_ANONYMOUS_ENABLED",
        "USERS_ALLOW_SIGN_UP",
        "ANALYTICS_REPORTING_ENABLED",
        "ANALYTICS_CHECK_FOR_UPDATES",
    )
    assert {environment[f"GF_{name}"] for name in off} == {"false"}
    if environment["GF_PLUGINS_PREINSTALL_DISABLED"] == "false":
        # That one, of that version, and none of those that Grafana would add.
        assert environment["GF_PLUGINS_PREINSTALL"] == "victoriametrics-logs-datasource@0.31.0"
        assert environment["GF_PLUGINS_PREINSTALL_ASYNC"] == "true"
        assert "grafana-lokiexplore-app" in environment["GF_PLUGINS_DISABLE_PLUGINS"]


@pytest.mark.parametrize("plugin", ["victoriametrics-logs-datasource", "a@latest", "a 1.0.0", "a@1.0.0,b"])
def test_a_plugin_of_grafana_has_a_version(plugin: str) -> None:
    with pytest.raises(EngineError, match=f"grafana_plugins holds {plugin}: write each as name@version"):
        list(rendering.render_inventory("local", ["grafana"], grafana_plugins=["b-panel@1.0.0", plugin]))


@pytest.mark.parametrize("logs", [False, True])
@pytest.mark.parametrize("traces", [False, True])
def test_grafana_has_logs_and_traces_where_they_are_kept(logs: bool, traces: bool) -> None:
    # As -e gives them.
    switches = {"platform_logs": str(logs).lower(), "platform_traces": str(traces).lower()}
    (rendered,) = rendering.render_inventory("local", ["grafana"], **switches)
    configs = {item.name: item.body["data"] for item in rendered.manifests if item.kind == "ConfigMap"}
    sources = {
        item["uid"]: item for item in yaml.safe_load(configs["grafana-datasources"]["prometheus.yaml"])["datasources"]
    }
    assert set(sources) == {"prometheus"} | ({"victoria-logs"} if logs else set()) | ({"jaeger"} if traces else set())
    assert ("grafana-dashboard-logs" in configs) is logs
    (workload,) = [item for item in rendered.manifests if item.kind == "StatefulSet"]
    mounted = {
        source["configMap"]["name"]
        for volume in pod_template(workload.body)["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
    }
    assert mounted == {name for name in configs if name.startswith("grafana-dashboard-")} - {
        "grafana-dashboard-provider"
    }
    # From a line to its trace and back, where both are there; two $ are one to Grafana.
    lines = sources.get("victoria-logs", {}).get("jsonData", {}).get("derivedFields", [])
    assert [(line["matcherRegex"], line["url"], line["datasourceUid"]) for line in lines] == (
        [("traceId", "$${__value.raw}", "jaeger")] if logs and traces else []
    )
    back = sources.get("jaeger", {}).get("jsonData", {}).get("tracesToLogsV2", {})
    assert back.get("query") == ('traceId:="$${__span.traceId}"' if logs and traces else None)


def test_redis_and_heap_settings_of_production(prod: Sets) -> None:
    (config,) = [item.body["data"]["redis.conf"] for item in manifests(prod, "ConfigMap") if item.name == "redis"]
    assert {"maxmemory 1gb", "maxmemory-policy allkeys-lru", "appendonly yes"} <= set(config.splitlines())
    options = [
        variable["value"]
        for _name, container in containers(prod)
        for variable in container.get("env", [])
        if variable["name"] == "ES_JAVA_OPTS"
    ]
    heaps = sorted(" ".join(option.split()[:2]) for option in options)
    assert heaps == ["-Xms1g -Xmx1g", "-Xms512m -Xmx512m"], "the server's, and that of its verification"


def test_namespaces_enforce_restricted(inventory: Sets) -> None:
    found = {item.name: item.body["metadata"]["labels"] for item in manifests(inventory, "Namespace")}
    assert set(found) - {"citadelbuy-nodes", "citadelbuy-restore"} == {"citadelbuy", "citadelbuy-monitoring"}
    for name, labels in found.items():
        level = "privileged" if name == "citadelbuy-nodes" else "restricted"
        assert all(labels[f"pod-security.kubernetes.io/{mode}"] == level for mode in ("enforce", "audit", "warn"))
