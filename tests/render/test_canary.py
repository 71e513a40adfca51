"""What a canary is made of: what the others are, told apart by labels that no selector of theirs takes."""

from __future__ import annotations

from typing import Any

import pytest
import rendering
from ansible_collections.citadelbuy.platform.plugins.module_utils.applyset import pod_template
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_network import policies_of, refusals

API, WEB = "citadelbuy.local/api:2.0.0", "citadelbuy.local/web:2.0.0"
BOTH = {"platform_canary_api_image": API, "platform_canary_web_image": WEB}
Body = dict[str, Any]


def rendered(*roles: str, **given: Any) -> dict[tuple[str, str, str], Body]:
    """Manifests of the local inventory by set, kind and name."""
    sets = rendering.render_inventory("local", roles or ("applications",), **given)
    return {(one.set_name, item.kind, item.name): item.body for one in sets for item in one.manifests}


def pod(bodies: dict[tuple[str, str, str], Body], name: str) -> Body:
    """A pod of a Deployment."""
    (body,) = [body for (_, kind, found), body in bodies.items() if (kind, found) == ("Deployment", name)]
    template = pod_template(body)
    return {"metadata": template["metadata"] | {"namespace": "citadelbuy", "name": name}, "spec": template["spec"]}


def without_canary(bodies: dict[tuple[str, str, str], Body]) -> dict[tuple[str, str, str], Body]:
    """The sets of the others."""
    return {key: body for key, body in bodies.items() if key[0] != "applications-canary"}


def test_the_others_are_what_they_are_without_it() -> None:
    alone = rendered()
    assert not [key for key in alone if key[0] == "applications-canary"]
    beside = without_canary(rendered(**BOTH, platform_canary_weight=20))
    jobs = [key for key in beside if key[1] == "Job" and key not in alone]
    assert len(jobs) == 1, "its migration"
    assert {key: body for key, body in beside.items() if key not in jobs} == alone


def test_it_is_made_of_the_same_template() -> None:
    bodies = rendered(**BOTH, platform_canary_weight=20, platform_traces=True)
    for part, image in (("api", API), ("web", WEB)):
        name, other = f"citadelbuy-{part}-canary", f"citadelbuy-{part}"
        canary, main = pod(bodies, name), pod(bodies, other)
        labels, others = canary["metadata"].pop("labels"), main["metadata"].pop("labels")
        version = {"app.kubernetes.io/version": "2.0.0", "app.kubernetes.io/name": name}
        assert labels == others | version | {"citadelbuy.io/track": "canary"}
        (container,) = canary["spec"]["containers"]
        assert container["image"] == image
        container["image"] = main["spec"]["containers"][0]["image"]
        assert rewritten(canary, name, other) == rewritten(main, name, other)


def rewritten(body: Any, name: str, other: str) -> Any:
    """An object in which a name is another one; the web's canary asks the API's."""
    if isinstance(body, dict):
        return {key: rewritten(value, name, other) for key, value in body.items()}
    if isinstance(body, list):
        return [rewritten(value, name, other) for value in body]
    return (
        body.replace(name, other).replace("citadelbuy-api-canary", "citadelbuy-api") if isinstance(body, str) else body
    )


@pytest.mark.parametrize("part", ["api", "web"])
def test_no_selector_takes_pods_of_the_other(part: str) -> None:
    bodies = rendered(**BOTH)
    for mine, theirs in (
        (f"citadelbuy-{part}", f"citadelbuy-{part}-canary"),
        (f"citadelbuy-{part}-canary", f"citadelbuy-{part}"),
    ):
        found = []
        for (_, kind, name), body in bodies.items():
            selector = (
                body["spec"].get("selector") if kind in ("Deployment", "Service", "PodDisruptionBudget") else None
            )
            if not selector or name != mine:
                continue
            found.append(kind)
            selector = selector.get("matchLabels", selector)
            assert selector.items() <= pod(bodies, mine)["metadata"]["labels"].items()
            assert not selector.items() <= pod(bodies, theirs)["metadata"]["labels"].items()
        assert sorted(found) == ["Deployment", "PodDisruptionBudget", "Service"]


def test_the_web_s_canary_asks_that_of_the_api() -> None:
    def asked(**given: Any) -> str:
        environment = pod(rendered(**given), "citadelbuy-web-canary")["spec"]["containers"][0]["env"]
        return next(item["value"] for item in environment if item["name"] == "API_URL")

    assert asked(**BOTH) == "http://citadelbuy-api-canary:3000"
    assert asked(platform_canary_web_image=WEB) == "http://citadelbuy-api:3000"


@pytest.mark.parametrize("firewall", [False, True])
def test_it_may_talk_to_whom_the_others_may(firewall: bool) -> None:
    given = {"platform_firewall": firewall, "platform_ingress": "traefik", "ingress_hosts": ["shop.example.com"]}
    given |= BOTH | {"platform_canary_weight": 20}
    roles = ("network_policies", "applications", "firewall", "ingress", "postgres", "redis", "elasticsearch")
    bodies = rendered(*roles, **given)
    policies = [body for (_, kind, _name), body in bodies.items() if kind == "NetworkPolicy"]
    pods = {name: pod(bodies, name) for (_, kind, name) in bodies if kind == "Deployment"}
    for (_, kind, name), body in bodies.items():
        if kind == "StatefulSet":
            template = pod_template(body)
            metadata = template["metadata"] | {"namespace": "citadelbuy", "name": name}
            pods[name] = {"metadata": metadata, "spec": template["spec"]}
    spaces = {"citadelbuy": {"kubernetes.io/metadata.name": "citadelbuy"}}

    def allowed(source: str, target: str, port: int) -> bool:
        return not refusals(pods[source], pods[target], port, policies, spaces)

    ports = {"postgres": 5432, "redis": 6379, "elasticsearch": 9200}
    for name in pods:
        for part in ("api", "web"):
            main, canary = f"citadelbuy-{part}", f"citadelbuy-{part}-canary"
            assert allowed(main, name, ports.get(name, 3000)) == allowed(canary, name, ports.get(name, 3000)), name
            assert allowed(name, main, 3000) == allowed(name, canary, 3000), name
    assert allowed("citadelbuy-web-canary", "citadelbuy-api-canary", 3000)
    assert allowed("citadelbuy-firewall" if firewall else "traefik", "citadelbuy-web-canary", 3000)
    assert not allowed("citadelbuy-web-canary", "postgres", 5432)
    for part in ("api", "web"):
        assert [item["metadata"]["name"] for item in policies_of(pods[f"citadelbuy-{part}-canary"], policies)] == [part]


def test_each_version_is_migrated_once() -> None:
    def jobs(**given: Any) -> list[tuple[str, str]]:
        found = [(name, body) for (_, kind, name), body in rendered(**given).items() if kind == "Job"]
        return [(name, body["spec"]["template"]["spec"]["containers"][0]["image"]) for name, body in found]

    (before,) = jobs()
    both = jobs(platform_canary_api_image=API)
    assert both[0] == before
    assert [image for _, image in both[1:]] == [API]
    assert jobs(platform_canary_web_image=WEB) == [before]
    # Promoted, it is the same Job.
    assert jobs(applications_api_image=API) == both[1:]
    assert jobs(applications_api_image=API, platform_canary_api_image=API) == both[1:]


@pytest.mark.parametrize(
    ("weight", "replicas", "enough"),
    [(0, 1, True), (33, 1, True), (34, 1, False), (34, 2, True), (67, 2, False), (100, 3, True)],
)
def test_it_has_pods_for_its_share(weight: int, replicas: int, enough: bool) -> None:
    """Of those that API and web have at rest."""
    given = BOTH | {"applications_api_min_replicas": 3, "applications_web_min_replicas": 1}
    given |= {"platform_canary_weight": weight, "applications_canary_replicas": replicas}
    if enough:
        bodies = rendered(**given)
        for name in ("citadelbuy-api-canary", "citadelbuy-web-canary"):
            assert bodies["applications-canary", "Deployment", name]["spec"]["replicas"] == replicas
        return
    with pytest.raises(
        EngineError, match=rf"applications_canary_replicas: .* of {weight}, .* write {replicas + 1} or more"
    ):
        rendered(**given)


@pytest.mark.parametrize("weight", [-1, 101, "20%", 2.5, "", True])
def test_what_is_no_share_is_refused(weight: Any) -> None:
    with pytest.raises(EngineError, match=r"platform_canary_weight: '.*' is no share"):
        rendered(**BOTH, platform_canary_weight=weight)
