"""The deployer deploys, on a real API server that writes down what it asks for: that is what it may, and no more."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.citadelbuy.platform.plugins.module_utils import login
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.lease import Lease
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest, find_templates, render
from ansible_collections.citadelbuy.platform.plugins.module_utils.role_variables import Role
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import http_through_pod, run_in_pod
from conftest import CHECKOUT, ApiServer, Deployer, serve_snapshots
from test_wait import Kubelet

Body = dict[str, Any]
Right = tuple[str, str, str, str]  # namespace or "", API group, resource, verb

NAMESPACE, MONITORING, NODES = "citadelbuy", "citadelbuy-monitoring", "citadelbuy-nodes"
RESTORE = "citadelbuy-restore"
SNAPSHOTS = "snapshots"
USER = f"system:serviceaccount:{NAMESPACE}:citadelbuy-deployer"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
DELETE = {"dryRun": ["All"]}
SHORTEST = 10 / 60  # hours; the API server gives no fewer
BROKEN = "citadelbuy.local/web:broken"
POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    users: ["{user}"]
  - level: None
"""
# Granted, and not seen in use here.
REASONS = (
    {
        ("", "", "namespaces", "get"): "they are read so where they stand without this project's label",
        ("", "", "namespaces", "create"): "preflight asks, as site.yml makes them where an administrator runs it",
        (NAMESPACE, "", "pods/portforward", "create"): "asked beside get since Kubernetes 1.35; not audited",
        (
            MONITORING,
            "",
            "pods/log",
            "get",
        ): "what a pod said that crashes: as in the platform's namespace, where one does",
        (MONITORING, "apps", "daemonsets", "list"): "diagnose shows them",
        (NODES, "", "pods/log", "get"): "why a collector is not ready",
    }
    | {
        (RESTORE, group, kind, verb): "a verification out of its turn: verify_backup.yml"
        for group, kind, verbs in (
            ("batch", "jobs", ("get", "list", "watch", "create")),
            ("", "pods", ("list", "watch")),
            ("", "events", ("list", "watch")),
            ("", "pods/log", ("get",)),
        )
        for verb in verbs
    }
    | {
        (
            MONITORING,
            "",
            f"pods/{kind}",
            verb,
        ): "for an operator's amtool and promtool, and diagnose's look at Prometheus"
        for kind in ("exec", "portforward")
        for verb in ("get", "create")
    }
)
# Whom it gives rights: namespace or "", name of the role and of its binding.
GIVEN = [
    (NAMESPACE, "postgres"),
    (NAMESPACE, "postgres-backup"),
    (NAMESPACE, "volumes-backup"),
    *((namespace, name) for namespace in (NAMESPACE, MONITORING) for name in ("prometheus", "kube-state-metrics")),
    (NODES, "prometheus"),
    *(("", f"citadelbuy-{name}.{MONITORING}") for name in ("prometheus", "kube-state-metrics")),
]
# Every authenticated user has these.
EVERYBODY = {("authorization.k8s.io", "selfsubjectaccessreviews")}
ONE_OF_EACH = """
{% set pod %}
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: goes
          image: citadelbuy.local/goes:1
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
          resources: {requests: {cpu: 1m, memory: 1Mi}, limits: {cpu: 1m, memory: 1Mi}}
{% endset %}
apiVersion: v1
kind: ConfigMap
metadata: {name: stays, namespace: {{ ns }}}
{% if all %}
{% for kind in ["ConfigMap", "Secret", "ServiceAccount"] if ns != "citadelbuy-nodes" or kind != "Secret" %}
---
apiVersion: v1
kind: {{ kind }}
metadata: {name: goes, namespace: {{ ns }}}
{% endfor %}
{% if ns == "citadelbuy-restore" %}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: goes, namespace: {{ ns }}}
{% elif ns == "citadelbuy-nodes" %}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: goes, namespace: {{ ns }}}
spec:
  selector: {matchLabels: {app: goes}}
  template:
    metadata: {labels: {app: goes}}
    spec:
{{ pod }}
{% else %}
---
apiVersion: v1
kind: Service
metadata: {name: goes, namespace: {{ ns }}}
spec: {ports: [{port: 80}], selector: {app: goes}}
{% for kind in ["Deployment", "StatefulSet"] %}
---
apiVersion: apps/v1
kind: {{ kind }}
metadata: {name: goes, namespace: {{ ns }}}
spec:
  replicas: 0
  selector: {matchLabels: {app: goes}}
  template:
    metadata: {labels: {app: goes}}
    spec:
      restartPolicy: Always
{{ pod }}
{% endfor %}
{% if ns == "citadelbuy" %}
---
apiVersion: batch/v1
kind: Job
metadata: {name: goes, namespace: {{ ns }}}
spec:
  suspend: true
  template:
    spec:
      restartPolicy: Never
{{ pod }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: goes, namespace: {{ ns }}}
spec: {maxReplicas: 1, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: goes}}
{% endif %}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: goes, namespace: {{ ns }}}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: goes}}}
{% endif %}
{% if ns in ("citadelbuy", "citadelbuy-restore") %}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: goes, namespace: {{ ns }}}
spec:
  schedule: "@yearly"
  jobTemplate:
    spec:
      suspend: true
      template:
        spec:
          restartPolicy: Never
{{ pod | indent(4, first=true) }}
{% endif %}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: goes, namespace: {{ ns }}}
spec: {podSelector: {matchLabels: {app: goes}}}
{% if ns != "citadelbuy-restore" %}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: goes, namespace: {{ ns }}}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: goes, namespace: {{ ns }}}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: goes}
subjects: [{kind: ServiceAccount, name: goes, namespace: {{ ns }}}]
{% endif %}
{% endif %}
"""


class Site:
    """A control plane that audits, and the playbooks against it."""

    def __init__(self, folder: Path, server: ApiServer) -> None:
        self.folder, self.server = folder, server
        self.login = folder / "deployer"
        self.admin = Cluster.from_kubeconfig("test", str(server.kubeconfig))
        self.runs: dict[str, subprocess.CompletedProcess[str]] = {}
        endpoints = self.admin.request("GET", "/api/v1/namespaces/default/endpoints/kubernetes")[1]
        self.addresses = [f"{item['ip']}/32" for subset in endpoints["subsets"] for item in subset["addresses"]]

    def play(self, title: str, playbook: str, *arguments: str, as_deployer: bool = True) -> int:
        """Run a playbook of the project with inventories/local; remembered by its title."""
        kubeconfig = self.login if as_deployer else self.server.kubeconfig
        program = Path(sys.executable).parent / "ansible-playbook"
        reach = {
            "network_policies_api_server_cidrs": self.addresses,
            "network_policies_api_server_ports": [f"{self.server.port}/TCP"],
            "platform_logs": True,
            "platform_traces": True,
            "platform_backups": True,
            "redis_replicas": 3,
            "platform_snapshot_class": SNAPSHOTS,
        }
        command = [
            program,
            f"playbooks/{playbook}.yml",
            "-i",
            "inventories/local",
            "-e",
            f"cluster_kubeconfig={kubeconfig}",
        ]
        env = os.environ | {"ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(
            [*command, "-e", json.dumps(reach), *arguments],
            cwd=CHECKOUT,
            env=env,
            text=True,
            capture_output=True,
            check=False,
        )
        done.stdout += done.stderr
        self.runs[title] = done
        return done.returncode

    @property
    def deployer(self) -> Cluster:
        """The cluster as the deployer."""
        return Cluster.from_kubeconfig("test", str(self.login))

    def events(self) -> list[Body]:
        """What the deployer asked for so far."""
        lines = (self.folder / "audit.log").read_text().rpartition("\n")[0].splitlines()
        return [event for event in map(json.loads, lines) if event["user"]["username"] == USER]


WATCHED = {"ReplicaSet": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets", "Job": "jobs"}


def status_of(site: Site, pod: Body) -> Body | None:
    """What a kubelet would say of a pod: it runs, it has done its job, or, of one image, it crashes.

    Nothing before the deployer watches its kind there: a wait that has nothing to wait for would need no watch.
    """
    watched = {
        event["objectRef"]["resource"]
        for event in site.events()
        if event["verb"] == "watch" and event["objectRef"].get("namespace") == pod["metadata"]["namespace"]
    }
    owner = (pod["metadata"].get("ownerReferences") or [{}])[0].get("kind")
    if owner in WATCHED and WATCHED[owner] not in watched:
        return None
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    containers = pod["spec"]["containers"]
    if owner == "Job":
        states, phase, ready = {"terminated": {"exitCode": 0}}, "Succeeded", False
    elif any(container["image"] == BROKEN for container in containers):
        states, phase, ready = {"waiting": {"reason": "CrashLoopBackOff"}}, "Running", False
    else:
        states, phase, ready = {"running": {}}, "Running", True
    return {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": now}],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": ready,
                "restartCount": 9 if "waiting" in states else 0,
                "state": states,
            }
            for container in containers
        ],
    }


def furnish(cluster: Cluster) -> None:
    """Two nodes with room, a default StorageClass whose volumes grow, and a class of snapshots."""
    for name in ("a", "b"):
        cluster.request("POST", "/api/v1/nodes", {"metadata": {"name": name}})
        status = {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        merge = "application/merge-patch+json"
        cluster.request("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, content=merge)
    storage = {
        "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "example.com/none",
        "allowVolumeExpansion": True,
    }
    cluster.request("POST", "/apis/storage.k8s.io/v1/storageclasses", storage)
    serve_snapshots(cluster, SNAPSHOTS)


def bind_volumes(cluster: Cluster) -> None:
    """Say of all claims that they are bound, as only such can grow."""
    for claim in cluster.request("GET", "/api/v1/persistentvolumeclaims")[1]["items"]:
        path = f"/api/v1/namespaces/{claim['metadata']['namespace']}/persistentvolumeclaims"
        status = {"phase": "Bound", "capacity": claim["spec"]["resources"]["requests"]}
        body = {"spec": {"volumeName": f"volume-{claim['metadata']['name']}"}}
        merge = "application/merge-patch+json"
        cluster.request("PATCH", f"{path}/{claim['metadata']['name']}", body, content=merge)
        cluster.request("PATCH", f"{path}/{claim['metadata']['name']}/status", {"status": status}, content=merge)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """All that an operator does, done by the deployer."""
    folder = tmp_path_factory.mktemp("audited")
    (folder / "policy.yaml").write_text(POLICY.format(user=USER))
    audit = (f"--audit-policy-file={folder}/policy.yaml", f"--audit-log-path={folder}/audit.log")
    server = ApiServer(folder, *audit)
    kubelets = []
    try:
        server.start()
        site = Site(folder, server)
        furnish(site.admin)
        token = ("-e", f"deployer_kubeconfig={site.login}")
        site.play("prepare", "deployer", *token, as_deployer=False)
        site.play("prepare again", "deployer", *token, as_deployer=False)
        for namespace in (NAMESPACE, MONITORING, NODES):
            kubelets.append(Kubelet(site.admin, namespace, lambda pod: status_of(site, pod)))
            kubelets[-1].start()
        quick = ("--skip-tags", "verify")
        site.play("check", "site", "--check", *quick)
        site.play("deploy", "site", *quick)
        site.play("deploy again", "site", *quick)
        site.play("check again", "site", "--check", *quick)
        site.play("break", "site", "--tags", "applications", "-e", f"applications_web_image={BROKEN}")
        site.play("show", "rollback", "-e", "rollback_show=true")
        site.play("roll back", "rollback")
        site.play("show pods", "scale")
        site.play("scale", "scale", "-e", "scale_application=citadelbuy-api", "-e", "scale_replicas=1")
        site.play("restart", "restart", "-e", "restart_application=citadelbuy-api,redis", "-e", "restart_confirm=true")
        site.play("migrate again", "migrate")
        site.play("without policy", "site", "--tags", "admission", "-e", "admission_enabled=false")
        roles = ("postgres", "redis", "elasticsearch", "object_store", "applications")
        none = {"namespaces_priority_classes": False} | dict.fromkeys((f"{role}_priority_class" for role in roles), "")
        site.play("without classes", "site", "--tags", "namespaces", "-e", json.dumps(none))
        site.play("with classes", "site", "--tags", "namespaces")
        bind_volumes(site.admin)
        sizes = ("-e", "redis_storage_size=2Gi", "-e", "prometheus_storage_size=2Gi")
        site.play("grow", "site", "--tags", "redis,prometheus", *sizes)
        site.play("verify", "verify")
        yield site
    finally:
        for kubelet in kubelets:
            kubelet.stopped.set()
            kubelet.join()
        server.stop()


def recap(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The counters of the play recap."""
    line = next(line for line in done.stdout.splitlines() if line.startswith("local ") and "ok=" in line)
    return dict(word.split("=") for word in line.split() if "=" in word)


def test_what_an_operator_does_works_as_the_deployer(site: Site) -> None:
    changed = {"prepare again", "deploy again", "check again"}
    failing = {
        "break": "CrashLoopBackOff",
        "verify": "a product is created",  # there are no pods, only their statuses
    }
    for title, done in site.runs.items():
        if title in failing:
            assert done.returncode == 2, title
            assert failing[title] in done.stdout, done.stdout
        else:
            assert done.returncode == 0, f"{title}: {done.stdout}"
            if title in changed:
                assert recap(done)["changed"] == "0", f"{title}: {done.stdout}"
            # What may not be read, preflight says as a warning.
            assert "could not be checked" not in done.stdout, title
    assert int(recap(site.runs["deploy"])["changed"]) > 5
    assert int(recap(site.runs["roll back"])["changed"]) == 1
    assert "2 pruned" in site.runs["without classes"].stdout
    assert "2 created" in site.runs["with classes"].stdout


def granted(cluster: Cluster) -> set[Right]:
    """What the live roles of the deployer grant, names aside."""
    found = set()
    roles = [("", body) for body in cluster.request("GET", f"{RBAC}/clusterroles")[1]["items"]]
    roles += [(body["metadata"]["namespace"], body) for body in cluster.request("GET", f"{RBAC}/roles")[1]["items"]]
    for namespace, body in roles:
        if body["metadata"]["name"].startswith("citadelbuy-deployer"):
            found |= expand(namespace, body["rules"])
    return found


def expand(namespace: str, rules: list[Body]) -> set[Right]:
    """The rights of a role's rules, one by one; a URL is a resource of no group."""
    return {
        (namespace, group, resource, verb)
        for rule in rules
        for group in rule.get("apiGroups", [""])
        for resource in rule.get("resources") or rule["nonResourceURLs"]
        for verb in rule["verbs"]
    }


def used(events: list[Body]) -> set[Right]:
    """What these requests needed. Applying what does not exist is a patch that creates."""
    found = set()
    for event in events:
        reference = event.get("objectRef")
        if not reference or "resource" not in reference:
            continue  # discovery
        group, resource = reference.get("apiGroup", ""), reference["resource"]
        if (group, resource) in EVERYBODY:
            continue
        namespace = "" if resource == "namespaces" else reference.get("namespace", "")
        resource += f"/{reference['subresource']}" if "subresource" in reference else ""
        found.add((namespace, group, resource, event["verb"]))
        if event["verb"] == "patch" and event["responseStatus"].get("code") == 201:
            found.add((namespace, group, resource, "create"))
    return found


def rbac(kind: str, namespace: str, name: str) -> str:
    """The path of a Role or RoleBinding, or without a namespace of the cluster's."""
    return f"{RBAC}/namespaces/{namespace}/{kind}s/{name}" if namespace else f"{RBAC}/cluster{kind}s/{name}"


def test_what_it_may_is_what_it_uses(site: Site, tmp_path: Path) -> None:
    for namespace in (NAMESPACE, MONITORING, NODES, RESTORE):
        (tmp_path / namespace).mkdir()
        engine = Deployer(site.deployer, tmp_path / namespace, namespace)
        for everything in (True, False):
            assert engine(ONE_OF_EACH, prune=True, all=everything).errors == []
    for namespace, name in GIVEN:
        for kind in ("role", "rolebinding"):
            site.deployer.request("DELETE", rbac(kind, namespace, name), DELETE)
    # With one member there is none.
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
    site.deployer.request("DELETE", f"{slices}/redis", DELETE)
    for stream in (
        lambda: run_in_pod(site.deployer, NAMESPACE, "postgres-0", "postgres", ["true"]),
        lambda: http_through_pod(site.deployer, NAMESPACE, "redis-0", 9121, "GET", "/metrics"),
    ):
        with pytest.raises(EngineError):  # there is no kubelet to answer
            stream()
    with Lease(site.deployer, NAMESPACE, "goes", "A test") as lease:
        with pytest.raises(EngineError, match="is under way"), Lease(site.deployer, NAMESPACE, "goes", "A test"):
            pass
        lease.check()
    events = site.events()
    refused = {
        f"{event['verb']} {event['requestURI'].partition('?')[0]}"
        for event in events
        if event["responseStatus"].get("code") == 403
    }
    assert refused == set()
    needed = used(events)
    # RBAC lets nobody give what he does not hold: these rights are used by giving them.
    for namespace, name in GIVEN:
        needed |= expand(namespace, site.admin.request("GET", rbac("role", namespace, name))[1]["rules"])
    may = granted(site.admin)
    assert sorted(needed - may) == []
    unused = sorted(may - needed - set(REASONS))
    assert unused == [], f"granted, and not used: {unused}"
    assert sorted(set(REASONS) & needed) == [], "used after all: it needs no reason"
    assert set(REASONS) <= may


ROLE = {"metadata": {"name": "more"}, "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]}
ADMIN = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
SELF = [{"kind": "ServiceAccount", "name": "citadelbuy-deployer", "namespace": NAMESPACE}]
BINDING = {"metadata": {"name": "more"}, "roleRef": ADMIN, "subjects": SELF}
OWN = "citadelbuy-deployer.citadelbuy"
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
FORBIDDEN: list[tuple[str, str, Any]] = [
    ("GET", "/api/v1/namespaces/stranger/secrets/theirs", None),
    ("GET", "/api/v1/namespaces/stranger/secrets", None),
    ("GET", "/api/v1/secrets", None),
    ("GET", "/api/v1/configmaps", None),
    ("GET", "/api/v1/namespaces/kube-system/secrets", None),
    ("GET", "/api/v1/namespaces/stranger/pods/any/log", None),
    ("POST", "/api/v1/namespaces/stranger/pods/any/exec?command=true", None),
    ("POST", "/api/v1/namespaces", {"metadata": {"name": "another"}}),
    ("DELETE", "/api/v1/namespaces/citadelbuy", DELETE),
    ("DELETE", "/api/v1/namespaces/stranger", DELETE),
    ("PATCH", "/api/v1/namespaces/stranger", {"metadata": {"labels": {"a": "b"}}}),
    ("PATCH", "/api/v1/nodes/a", {"metadata": {"labels": {"a": "b"}}}),
    ("POST", f"{RBAC}/clusterrolebindings", BINDING),
    ("POST", f"{RBAC}/clusterroles", ROLE),
    ("PATCH", f"{RBAC}/clusterroles/{OWN}", {"rules": ROLE["rules"]}),
    ("POST", f"{RBAC}/namespaces/{NAMESPACE}/roles", ROLE),
    ("PATCH", f"{RBAC}/namespaces/{NAMESPACE}/roles/citadelbuy-deployer", {"rules": ROLE["rules"]}),
    ("POST", f"{RBAC}/namespaces/{NAMESPACE}/rolebindings", BINDING),
    ("POST", f"{RBAC}/namespaces/{MONITORING}/rolebindings", BINDING),
    ("POST", f"{RBAC}/namespaces/kube-system/rolebindings", BINDING),
    ("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/citadelbuy-deployer/token", {"spec": {}}),
    ("GET", "/api/v1/namespaces/default/configmaps", None),
    ("GET", "/api/v1/namespaces/default/services", None),
    ("POST", f"{RBAC}/namespaces/default/roles", ROLE),
    ("PATCH", f"{RBAC}/clusterroles/citadelbuy-prometheus.{MONITORING}", {"rules": ROLE["rules"]}),
    ("GET", "/api/v1/namespaces/kube-system/services", None),
    ("PATCH", f"{POLICIES}/another", {"spec": {}}),
    ("POST", POLICIES, {"metadata": {"name": "another"}}),
    ("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", {"metadata": {"name": "another"}, "value": 1}),
    ("DELETE", "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical", DELETE),
]


@pytest.fixture(scope="module")
def stranger(site: Site) -> None:
    """Another tenant's namespace, with a Secret."""
    site.admin.request("POST", "/api/v1/namespaces", {"metadata": {"name": "stranger"}})
    body = {"metadata": {"name": "theirs"}, "stringData": {"password": "theirs"}}
    site.admin.request("POST", "/api/v1/namespaces/stranger/secrets", body)


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize(
    ("method", "path", "body"), FORBIDDEN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_it_may_not(site: Site, method: str, path: str, body: Any) -> None:
    content = "application/merge-patch+json" if method == "PATCH" else "application/json"
    with pytest.raises(ApiError) as caught:
        site.deployer.request(method, path, body, None, content)
    assert caught.value.status == 403, caught.value


def test_it_is_nobody_else(site: Site) -> None:
    deployer = site.deployer
    deployer._credentials.headers["Impersonate-User"] = "admin"
    with pytest.raises(ApiError, match="cannot impersonate"):
        deployer.request("GET", "/api/v1/namespaces")


def test_what_it_may_in_its_namespace(site: Site) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}/secrets/citadelbuy-secrets"
    assert site.deployer.request("GET", path)[1]["data"]


# The login.

ACCOUNT = Resource("v1", "ServiceAccount", "serviceaccounts", True)


def test_the_file_is_its_owners_and_the_token_ends(site: Site) -> None:
    assert stat.S_IMODE(site.login.stat().st_mode) == 0o600
    assert [path.name for path in site.login.parent.glob(".deployer*")] == []
    user = yaml.safe_load(site.login.read_text())["users"][0]["user"]
    assert list(user) == ["token"]
    token = user["token"]
    assert all(token not in done.stdout for done in site.runs.values())
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
    status = site.admin.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)[1]["status"]
    assert status["authenticated"]
    assert status["user"]["username"] == USER


def test_a_new_token_is_made_when_half_of_the_old_ones_hours_are_over(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = site.admin.get(ACCOUNT, NAMESPACE, "citadelbuy-deployer")
    assert account
    uid, target = account["metadata"]["uid"], login.cluster_of(str(site.server.kubeconfig), None)
    token, expires = login.request_token(site.admin, NAMESPACE, "citadelbuy-deployer", SHORTEST)
    file = tmp_path / "folder/login"
    login.write(file, login.kubeconfig(target, NAMESPACE, "citadelbuy-deployer", token))
    assert login.is_good(file, target, uid)
    assert expires.endswith("Z")
    assert not login.is_good(file, target, "of an account before")
    assert not login.is_good(file, target | {"server": "https://another"}, uid)
    assert not login.is_good(tmp_path / "none", target, uid)
    file.chmod(0o640)
    assert not login.is_good(file, target, uid)
    file.chmod(0o600)
    later = time.time() + SHORTEST * 3600 * 0.6
    monkeypatch.setattr(login.time, "time", lambda: later)
    assert not login.is_good(file, target, uid)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"cannot write kubeconfig .*deployer_kubeconfig"):
        login.write(tmp_path / "file/login", {})


# The templates.


@pytest.fixture
def rendered() -> Callable[..., list[Manifest]]:
    """The role's manifests with some variables."""
    loader, folder = DataLoader(), CHECKOUT / "roles/deployer"

    def run(**variables: Any) -> list[Manifest]:
        scope = Role.load(folder, loader).scope(variables)
        return render(Templar(loader=loader, variables=scope), find_templates(["templates"], [folder]), scope)

    return run


def test_users_and_groups_hold_the_rights_with_or_without_an_account(rendered: Callable[..., list[Manifest]]) -> None:
    group = {"kind": "Group", "name": "platform: operators"}
    for account in ("", "citadelbuy-deployer"):
        manifests = rendered(deployer_subjects=[group], deployer_service_account=account)
        for binding in [item.body for item in manifests if item.kind.endswith("Binding")]:
            assert group | {"apiGroup": "rbac.authorization.k8s.io"} in binding["subjects"]
            assert len(binding["subjects"]) == (2 if account else 1)
        assert any(item.kind == "ServiceAccount" for item in manifests) is bool(account)


def test_the_objects_that_secrets_are_made_from_are_the_deployers_where_there_are_any(
    rendered: Callable[..., list[Manifest]],
) -> None:
    def granted(**variables: Any) -> set[tuple[str, str]]:
        rules = [rule for item in rendered(**variables) if item.kind == "Role" for rule in item.body["rules"]]
        return {(group, resource) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"]}

    usual = granted()
    assert granted(deployer_secrets_source="external_secrets") - usual == {("external-secrets.io", "externalsecrets")}
    assert granted(deployer_certificates_enabled=True) - usual == {("cert-manager.io", "certificates")}
    assert granted(deployer_secrets_source="sealed_secrets") - usual == {("bitnami.com", "sealedsecrets")}


def test_nobody_is_no_deployer(rendered: Callable[..., list[Manifest]]) -> None:
    with pytest.raises(EngineError, match="name who deploys"):
        rendered(deployer_service_account="")


def test_one_namespace_for_both_and_two_platforms_in_a_cluster(rendered: Callable[..., list[Manifest]]) -> None:
    rendered(platform_namespace="shop", platform_monitoring_namespace="shop")  # nothing twice
    ours, theirs = (
        {item.key for item in rendered(platform_namespace=name, platform_monitoring_namespace=f"{name}-monitoring")}
        for name in ("shop", "shop-two")
    )
    assert not ours & theirs
