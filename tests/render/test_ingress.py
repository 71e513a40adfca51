"""The way in: what role ingress makes of each kind."""

from __future__ import annotations

from typing import Any

import pytest
import rendering
import yaml
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError

HOSTS = ["shop.example.com", "www.shop.example.com"]


def rendered(kind: str, **given: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """What the role makes for the local inventory, by kind and name."""
    variables = {"platform_ingress": kind, "ingress_hosts": HOSTS} | given
    (result,) = rendering.render_inventory("local", ["ingress"], **variables)
    return {(item.kind, item.name): item.body for item in result.manifests}


def backends(kind: str, firewall: bool) -> dict[str, str]:
    """Where each path goes, by the name of a Service and its port."""
    bodies = rendered(kind, platform_firewall=str(firewall).lower())
    if kind == "ingress":
        rules = bodies["Ingress", "citadelbuy"]["spec"]["rules"]
        assert [rule["host"] for rule in rules] == HOSTS
        assert all(rule["http"] == rules[0]["http"] for rule in rules)
        paths = [(path["path"], path["backend"]["service"]) for path in rules[0]["http"]["paths"]]
        return {path: f"{service['name']}:{service['port']['number']}" for path, service in paths}
    if kind == "gateway":
        spec = bodies["HTTPRoute", "citadelbuy"]["spec"]
        assert spec["hostnames"] == HOSTS
        return {
            rule["matches"][0]["path"]["value"]: "{name}:{port}".format(**rule["backendRefs"][0])
            for rule in spec["rules"]
        }
    services = yaml.safe_load(bodies["ConfigMap", "traefik"]["data"]["shop.yml"])["http"]["services"]
    names = {"firewall": "/", "api": "/api", "web": "/"}
    urls = {names[name]: service["loadBalancer"]["servers"][0]["url"] for name, service in services.items()}
    return {path: url.removeprefix("http://").replace(".citadelbuy.svc", "") for path, url in urls.items()}


@pytest.mark.parametrize("kind", ["traefik", "ingress", "gateway"])
def test_all_kinds_lead_to_the_same(kind: str) -> None:
    assert backends(kind, firewall=False) == {"/api": "citadelbuy-api:3000", "/": "citadelbuy-web:3000"}
    assert backends(kind, firewall=True) == {"/": "citadelbuy-firewall:8080"}


@pytest.fixture(autouse=True)
def gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTPRoutes have a Gateway, unless a test says otherwise."""
    real = rendering.render_inventory

    def with_gateway(inventory: str, *roles: Any, **given: Any) -> Any:
        return real(inventory, *roles, **{"ingress_gateway_name": "public"} | given)

    monkeypatch.setattr(rendering, "render_inventory", with_gateway)


def test_without_a_way_in_there_is_nothing() -> None:
    assert rendered("none", ingress_hosts=[]) == {}


@pytest.mark.parametrize(
    ("given", "secret", "annotations", "made"),
    [
        ({}, "ingress-tls", {}, ("Secret", "ingress-tls")),
        ({"ingress_tls_secret": "shop"}, "shop", {}, None),
        ({"ingress_tls_secret": "shop", "ingress_certificate_issuer": "acme"}, "shop", {}, None),
        ({"ingress_certificate_issuer": "acme"}, "ingress-tls", {"cert-manager.io/cluster-issuer": "acme"}, None),
        ({"platform_certificate_issuer": "company", "platform_certificate_issuer_kind": "Issuer"}, "ingress-tls",
         {"cert-manager.io/issuer": "company"}, None),
    ],
)  # fmt: skip
def test_the_certificate_of_an_ingress(given: Any, secret: str, annotations: Any, made: Any) -> None:
    bodies = rendered("ingress", **given)
    ingress = bodies.pop(("Ingress", "citadelbuy"))
    assert ingress["spec"]["tls"] == [{"hosts": HOSTS, "secretName": secret}]
    assert ingress["metadata"]["annotations"] == annotations
    assert set(bodies) == ({made} if made else set())


@pytest.mark.parametrize(
    ("given", "secret", "made"),
    [
        ({}, "ingress-tls", "Secret"),
        ({"ingress_tls_secret": "shop"}, "shop", None),
        ({"ingress_certificate_issuer": "acme"}, "ingress-tls", "Certificate"),
    ],
)
def test_the_certificate_of_traefik(given: Any, secret: str, made: str | None) -> None:
    bodies = rendered("traefik", **given)
    pod = bodies["Deployment", "traefik"]["spec"]["template"]
    (volume,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "dynamic"]
    assert [source["secret"]["name"] for source in volume["projected"]["sources"] if "secret" in source] == [secret]
    # Read again, and not rolled by: else every renewal would replace the pods.
    assert pod["metadata"]["annotations"]["citadelbuy.io/not-rolled-by"] == f"Secret/{secret}"
    found = [kind for kind in ("Secret", "Certificate") if (kind, "ingress-tls") in bodies]
    assert found == ([made] if made else [])
    if made == "Secret":
        annotations = bodies["Secret", "ingress-tls"]["metadata"]["annotations"]
        assert annotations["citadelbuy.io/certificate"] == ",".join(HOSTS)
    if made == "Certificate":
        assert bodies["Certificate", "ingress-tls"]["spec"]["dnsNames"] == HOSTS


def test_traefik_has_no_rights_in_the_cluster() -> None:
    bodies = rendered("traefik")
    assert {kind for kind, _name in bodies} == {
        "ConfigMap", "Deployment", "PodDisruptionBudget", "Secret", "Service", "ServiceAccount",
    }  # fmt: skip
    assert list(yaml.safe_load(bodies["ConfigMap", "traefik"]["data"]["traefik.yml"])["providers"]) == ["file"]


def test_a_pod_of_traefik_may_end_what_it_has_begun() -> None:
    bodies = rendered("traefik", ingress_traefik_drain_time=20, ingress_answer_timeout=30)
    spec = bodies["Deployment", "traefik"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > 20 + 30
    points = yaml.safe_load(bodies["ConfigMap", "traefik"]["data"]["traefik.yml"])["entryPoints"]
    for point in points.values():  # and its probes are answered for as long
        assert point["transport"]["lifeCycle"] == {"requestAcceptGraceTimeout": "20s", "graceTimeOut": "30s"}


@pytest.mark.parametrize(
    ("given", "ports", "policy"),
    [
        ({"ingress_traefik_service_type": "NodePort"}, [30080, 30443], "Local"),
        ({"ingress_traefik_service_type": "LoadBalancer", "ingress_traefik_http_port": 80}, [None, None], "Local"),
        ({"ingress_traefik_service_type": "ClusterIP"}, [None, None], None),
    ],
)
def test_the_service_of_traefik(given: Any, ports: list[int | None], policy: str | None) -> None:
    spec = rendered("traefik", **given)["Service", "traefik"]["spec"]
    assert [port.get("nodePort") for port in spec["ports"]] == ports
    assert spec.get("externalTrafficPolicy") == policy


def test_annotations_go_where_dns_is_told() -> None:
    given = {"external-dns.alpha.kubernetes.io/hostname": "shop.example.com"}
    for kind, place in (("traefik", "Service"), ("ingress", "Ingress"), ("gateway", "HTTPRoute")):
        bodies = rendered(kind, ingress_annotations=given)
        found = [body for (made, _name), body in bodies.items() if made == place]
        assert found
        assert all(body["metadata"]["annotations"] == given for body in found), kind


def test_a_gateway_without_plain_http() -> None:
    assert ("HTTPRoute", "citadelbuy-to-https") in rendered("gateway")
    assert ("HTTPRoute", "citadelbuy-to-https") not in rendered("gateway", ingress_gateway_http_listener="")


@pytest.mark.parametrize("host", ["", "https://shop.example.com", "shop.example.com/", "Shop.example.com", "a`) || b"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(EngineError, match="is not the name of a host"):
        rendered("traefik", ingress_hosts=["shop.example.com", host])


def test_production_has_an_ingress_of_the_cluster_s_controller() -> None:
    (result,) = rendering.render_inventory("prod", ["ingress"])
    (ingress,) = result.manifests
    assert ingress.body["spec"]["ingressClassName"] == "nginx"
    assert ingress.body["metadata"]["annotations"]["cert-manager.io/cluster-issuer"] == "letsencrypt"
