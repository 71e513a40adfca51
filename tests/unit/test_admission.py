"""The admission policy against a real API server: what it takes, what it refuses and why, and whom it leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.citadelbuy.platform.plugins.module_utils import container_rules
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import ApiError, Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest, find_templates, render
from ansible_collections.citadelbuy.platform.plugins.module_utils.role_variables import Role
from conftest import CHECKOUT

Body = dict[str, Any]
PLACES = ["registry.example.com/shop/", "registry.example.com:5000/shop/", "redis", "oliver006/redis_exporter"]
GOOD = "registry.example.com/shop/api:1.0"
DIGEST = "sha256:" + "0" * 64
SIZES = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}}
API = {
    "Pod": "/api/v1/{}/pods",
    "ReplicationController": "/api/v1/{}/replicationcontrollers",
    "Deployment": "/apis/apps/v1/{}/deployments",
    "StatefulSet": "/apis/apps/v1/{}/statefulsets",
    "DaemonSet": "/apis/apps/v1/{}/daemonsets",
    "ReplicaSet": "/apis/apps/v1/{}/replicasets",
    "Job": "/apis/batch/v1/{}/jobs",
    "CronJob": "/apis/batch/v1/{}/cronjobs",
}
MERGE = "application/merge-patch+json"

# image, why it is refused ("" where it is taken)
IMAGES = [
    ("registry.example.com/shop/api:1.0", ""),
    ("registry.example.com/shop/deep/er/api:1.0", ""),
    ("registry.example.com:5000/shop/api:1.0", ""),
    (f"registry.example.com/shop/api@{DIGEST}", ""),
    (f"registry.example.com/shop/api:1.0@{DIGEST}", ""),
    (f"registry.example.com/shop/api:latest@{DIGEST}", ""),
    ("redis:7.0", ""),
    (f"redis@{DIGEST}", ""),
    ("oliver006/redis_exporter:v1.45.0", ""),
    ("registry.example.com/shop/api:latest-3", ""),
    ("registry.example.com/shop/api:latest", "latest"),
    ("registry.example.com/shop/api", "latest"),
    ("registry.example.com:5000/shop/api", "latest"),
    ("redis", "latest"),
    (f"redis@{DIGEST[:-1]}", "latest"),
    ("registry.example.com/shopping/api:1.0", "place"),
    ("registry.example.com/shop:1.0", "place"),
    ("registry.example.com.evil.org/shop/api:1.0", "place"),
    ("registry.example.com:5001/shop/api:1.0", "place"),
    ("evil.org/registry.example.com/shop/api:1.0", "place"),
    ("evil.org/redis:7.0", "place"),
    ("redis/redis-stack:7.0", "place"),
    ("redis:5000/evil:1.0", "place"),
    ("redis-evil:7.0", "place"),
    ("redis.evil.org/redis:7.0", "place"),
    ("docker.io/library/redis:7.0", "place"),
    ("oliver006/redis_exporter/evil:1.0", "place"),
    ("oliver006/redis_exporter2:1.0", "place"),
]
WORDS = {
    "latest": "give it a tag or a digest",
    "place": "not from an allowed place",
    "sizes": "set requests and limits",
}


def container(image: str = GOOD, name: str = "main", **fields: Any) -> Body:
    """A container that all rules take."""
    return {"name": name, "image": image, "resources": SIZES} | fields


def workload(kind: str, pod: Body) -> Body:
    """An object of a kind with this pod specification."""
    if kind == "Pod":
        return {"metadata": {"name": "test"}, "spec": pod}
    labels = {"app": "test"}
    template = {"metadata": {"labels": labels}, "spec": pod}
    if kind in ("Job", "CronJob"):
        job = {"template": template | {"spec": pod | {"restartPolicy": "Never"}}}
        spec = job if kind == "Job" else {"schedule": "0 0 * * *", "jobTemplate": {"spec": job}}
    else:
        selector = labels if kind == "ReplicationController" else {"matchLabels": labels}
        spec = {"selector": selector, "template": template} | ({"serviceName": "test"} if kind == "StatefulSet" else {})
    return {"metadata": {"name": "test"}, "spec": spec}


def policy(namespace: str, monitoring: str, places: list[str] | None = None, **more: Any) -> list[Manifest]:
    """The role's manifests."""
    loader = DataLoader()
    folder = CHECKOUT / "roles/admission"
    given = {"platform_namespace": namespace, "platform_monitoring_namespace": monitoring} | more
    variables = Role.load(folder, loader).scope(
        given | {"admission_allowed_images": PLACES if places is None else places}
    )
    return render(Templar(loader=loader, variables=variables), find_templates(["templates"], [folder]), variables)


class Guarded:
    """The namespaces of a platform, with the policy in force."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def path(self, kind: str, name: str = "") -> str:
        return API[kind].format(f"namespaces/{self.namespace}") + (f"/{name}" if name else "")

    def create(self, kind: str, pod: Body, namespace: str = "", dry: bool = True) -> str:
        """Create an object; returns the server's refusal, or nothing."""
        path = self.path(kind).replace(self.namespace, namespace or self.namespace)
        return self._send("POST", path, workload(kind, pod), {"dryRun": "All"} if dry else None)

    def patch(self, kind: str, body: Body, subresource: str = "", content: str = MERGE) -> str:
        return self._send("PATCH", self.path(kind, "test") + subresource, body, None, content)

    def _send(self, *arguments: Any) -> str:
        try:
            self.cluster.request(*arguments)
        except ApiError as error:
            if error.status not in (403, 422):
                raise
            return str(error)
        return ""


@pytest.fixture
def guarded(cluster: Cluster, namespace: str, eventually: Callable[..., None]) -> Any:
    """Apply the policy to a fresh namespace, or anew with other places."""
    applied: list[Manifest] = []

    def apply(places: list[str] | None = None, **more: Any) -> Guarded:
        manifests = policy(namespace, namespace, places, **more)
        for manifest in manifests:
            resource = cluster.resource(manifest.api_version, manifest.kind)
            query = {"fieldManager": "test", "force": "true"}
            cluster.request(
                "PATCH", resource.path(None, manifest.name), manifest.body, query, "application/apply-patch+yaml"
            )
        applied[:] = manifests
        place = Guarded(cluster, namespace)
        # It is in force when its refusal tells exactly these places.
        wanted = ", ".join(PLACES if places is None else places)
        eventually(lambda: f"({wanted})" in place.create("Pod", {"containers": [container("probe.invalid/p:1")]}))
        return place

    yield apply
    for manifest in reversed(applied):
        resource = cluster.resource(manifest.api_version, manifest.kind)
        cluster.request("DELETE", resource.path(None, manifest.name))


def test_images(guarded: Any) -> None:
    place = guarded()
    for image, why in IMAGES:
        answer = place.create("Pod", {"containers": [container(image)]})
        assert (WORDS[why] in answer and f"container main: image {image}" in answer) if why else not answer, image
        assert container_rules.is_allowed(image, PLACES) == (why != "place"), image
        assert container_rules.is_pinned(image) == (why != "latest"), image


@pytest.mark.parametrize("missing", ["requests.cpu", "requests.memory", "limits.cpu", "limits.memory"])
def test_sizes(guarded: Any, missing: str) -> None:
    part, name = missing.split(".")
    sizes = copy.deepcopy(SIZES)
    del sizes[part][name]
    # Of a pod, Kubernetes takes missing requests from the limits before the policy looks; of a template it does not.
    answer = guarded().create("Deployment", {"containers": [container(resources=sizes)]})
    assert f"container main: image {GOOD} lacks {missing}: {WORDS['sizes']}" in answer


def test_no_sizes_at_all_and_each_container_is_named(guarded: Any) -> None:
    bare = {"name": "bare", "image": GOOD}
    answer = guarded().create("Pod", {"containers": [container(), bare], "initContainers": [container(name="first")]})
    assert "lacks requests.cpu, requests.memory, limits.cpu, limits.memory" in answer
    assert "container bare" in answer
    assert "container main" not in answer
    assert "container first" not in answer


@pytest.mark.parametrize("kind", API)
def test_every_kind_of_workload(guarded: Any, kind: str) -> None:
    place = guarded()
    assert not place.create(kind, {"containers": [container()]})
    assert WORDS["place"] in place.create(kind, {"containers": [container("evil.org/api:1")]})
    assert WORDS["latest"] in place.create(kind, {"containers": [container("redis")]})
    assert WORDS["sizes"] in place.create(kind, {"containers": [container(resources={})]})


def test_init_containers_and_image_volumes(guarded: Any) -> None:
    place = guarded()
    first = container("evil.org/init:1", name="first")
    answer = place.create("Pod", {"containers": [container()], "initContainers": [first]})
    assert "container first: image evil.org/init:1: not from an allowed place" in answer
    volume = {"name": "extra", "image": {"reference": "evil.org/files:1"}}
    answer = place.create("Pod", {"containers": [container()], "volumes": [volume]})
    assert "volume extra: image evil.org/files:1: not from an allowed place" in answer


def test_ephemeral_containers(guarded: Any) -> None:
    place = guarded()
    assert not place.create("Pod", {"containers": [container()]}, dry=False)

    def debug(image: str) -> str:
        body = {"spec": {"ephemeralContainers": [{"name": "debug", "image": image}]}}
        return place.patch("Pod", body, "/ephemeralcontainers", "application/strategic-merge-patch+json")

    assert "container debug: image evil.org/shell:1: not from an allowed place" in debug("evil.org/shell:1")
    assert WORDS["latest"] in debug("redis:latest")
    assert not debug("redis:7.0")


def test_what_runs_already_is_judged_when_its_containers_change(guarded: Any) -> None:
    place = guarded()
    for kind in ("Pod", "Deployment", "CronJob"):
        assert not place.create(kind, {"containers": [container()]}, dry=False)
    place = guarded(["redis"])
    assert not place.patch("Pod", {"metadata": {"labels": {"role": "primary"}}})
    assert not place.patch("Deployment", {"spec": {"replicas": 3}})
    assert not place.patch("CronJob", {"spec": {"suspend": True}})
    change = {"spec": {"containers": [container("registry.example.com/shop/api:2.0")]}}
    assert WORDS["place"] in place.patch("Deployment", {"spec": {"template": change}})
    assert WORDS["place"] in place.patch("CronJob", {"spec": {"jobTemplate": {"spec": {"template": change}}}})
    assert WORDS["place"] in place.patch("Pod", change, content="application/strategic-merge-patch+json")


def test_other_namespaces_are_left_alone_and_two_platforms_do_not_meet(guarded: Any, cluster: Cluster) -> None:
    assert not guarded().create("Pod", {"containers": [{"name": "a", "image": "evil.org/api"}]}, namespace="default")
    ours, theirs = (policy(name, f"{name}-monitoring") for name in ("shop", "shop-two"))
    assert not {manifest.key for manifest in ours} & {manifest.key for manifest in theirs}


def test_it_is_small_enough_for_the_api_server_to_judge_the_largest_pod(guarded: Any) -> None:
    many = [container(name=f"c{number}") for number in range(100)]
    place = guarded()
    assert not place.create("Deployment", {"containers": many})
    answer = place.create("Deployment", {"containers": [item | {"image": "evil.org/api:1"} for item in many]})
    assert WORDS["place"] in answer or "container" in answer


@pytest.mark.parametrize(
    "place", ["", "/", "redis:7.0", "redis@sha256:00", "https://registry.example.com/", "Redis", "a b"]
)
def test_a_place_that_is_none_is_refused_by_name(place: str) -> None:
    with pytest.raises(EngineError, match="admission_allowed_images"):
        policy("shop", "shop", [place])


def test_no_place_at_all_is_refused() -> None:
    with pytest.raises(EngineError, match="admission_allowed_images is empty"):
        policy("shop", "shop", [])


def test_switched_off_it_renders_nothing(tmp_path: Path) -> None:
    loader, folder = DataLoader(), CHECKOUT / "roles/admission"
    variables = Role.load(folder, loader).scope({"admission_enabled": False})
    assert not render(Templar(loader=loader, variables=variables), find_templates(["templates"], [folder]), variables)


COLLECTOR = {
    "securityContext": {"runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}},
    "volumes": [
        {"name": "logs", "hostPath": {"path": "/var/log/pods"}},
        {"name": "state", "hostPath": {"path": "/var/lib/citadelbuy-collector"}},
    ],
    "containers": [
        container(
            securityContext={
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            volumeMounts=[
                {"name": "logs", "mountPath": "/var/log/pods", "readOnly": True},
                {"name": "state", "mountPath": "/state"},
            ],
        )
    ],
}


def changed(pod: Body, *steps: Any, to: Any) -> Body:
    """A copy with one value set."""
    pod = copy.deepcopy(pod)
    place: Any = pod
    for step in steps[:-1]:
        place = place[step]
    place[steps[-1]] = to
    return pod


def test_what_pods_may_see_of_their_node(
    guarded: Any, cluster: Cluster, namespace: str, eventually: Callable[..., None]
) -> None:
    nodes = f"{namespace}-nodes"
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": nodes}})
    try:
        place = guarded(platform_nodes_namespace=nodes, platform_logs=True)
        main = ("containers", 0)
        refused = [
            ("volume logs: /etc:", changed(COLLECTOR, "volumes", 0, "hostPath", "path", to="/etc")),
            ("volume logs: /var/log:", changed(COLLECTOR, "volumes", 0, "hostPath", "path", to="/var/log")),
            ("mount it readOnly", changed(COLLECTOR, *main, "volumeMounts", 0, "readOnly", to=False)),
            ("capabilities drop ALL", changed(COLLECTOR, *main, "securityContext", "capabilities", to={})),
            ("add none", changed(COLLECTOR, *main, "securityContext", "capabilities", "add", to=["SYS_ADMIN"])),
            (
                "allowPrivilegeEscalation",
                changed(COLLECTOR, *main, "securityContext", "allowPrivilegeEscalation", to=True),
            ),
            (
                "readOnlyRootFilesystem",
                changed(COLLECTOR, *main, "securityContext", "readOnlyRootFilesystem", to=False),
            ),
            ("no hostPort", changed(COLLECTOR, *main, "ports", to=[{"containerPort": 1, "hostPort": 1}])),
            ("container first", changed(COLLECTOR, "initContainers", to=[container(name="first")])),
            ("its own network", changed(COLLECTOR, "hostPID", to=True)),
            ("RuntimeDefault", changed(COLLECTOR, "securityContext", to={})),
            ("not from an allowed place", changed(COLLECTOR, *main, "image", to="evil.org/api:1")),
        ]
        eventually(lambda: "of its node" in place.create("Pod", refused[0][1], nodes))
        assert not place.create("Pod", COLLECTOR, nodes)
        for why, pod in refused:
            assert why in place.create("Pod", pod, nodes), why
        assert not place.create("Pod", refused[0][1])  # other namespaces are Pod Security's
    finally:
        cluster.request("DELETE", f"/api/v1/namespaces/{nodes}")
