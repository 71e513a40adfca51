"""Sources of secrets: what a run makes of each, how it waits, and that a vaulted value never shows."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import ApiError, Cluster
from conftest import CHECKOUT, ApiServer

sys.path.insert(0, str(CHECKOUT / "tests/tools"))

from secret_search import Search

KEYS = ["DATABASE_PASSWORD", "REDIS_PASSWORD", "ELASTICSEARCH_PASSWORD", "JWT_SECRET", "SESSION_SECRET"]
LOGINS = ["DATABASE_USER", "ELASTICSEARCH_USERNAME"]
VALUE = "vaulted-9fK4x9QpLm2vR8sTzW7nB3cD5eG"
EXTERNAL = "apis/external-secrets.io/v1:externalsecrets/citadelbuy-secrets"
SEALED = "apis/bitnami.com/v1alpha1:sealedsecrets/citadelbuy-secrets"
MODULES = {
    "github.com/cert-manager/cert-manager@v1.19.1": "deploy/crds/cert-manager.io_certificates.yaml",
    "github.com/external-secrets/external-secrets@v1.3.2": "config/crds/bases/external-secrets.io_externalsecrets.yaml",
    "github.com/bitnami-labs/sealed-secrets@v0.32.2": "helm/sealed-secrets/crds/bitnami.com_sealedsecrets.yaml",
}
PLAYBOOK = """
- hosts: clusters
  gather_facts: false
  roles: [citadelbuy.platform.secrets]
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


def program(name: str) -> str:
    """A program of this environment."""
    return str(Path(sys.executable).with_name(name))


@pytest.fixture(scope="module")
def definitions(api_server: ApiServer) -> None:
    """The kinds of the controllers, as their releases define them."""
    cache = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
    go = next(iter(sorted(cache.glob("go-*/bin/go"))), None) or shutil.which("go")
    assert go, "there is no Go to read the modules with: run `make test`, or put one on the PATH"
    cluster = Cluster.from_kubeconfig("test", str(api_server.kubeconfig))
    for module, path in MODULES.items():
        told = subprocess.run([str(go), "mod", "download", "-json", module], capture_output=True, text=True, check=True)
        body = yaml.safe_load(Path(json.loads(told.stdout)["Dir"], path).read_text())
        # No webhook converts here; one version is enough.
        body["spec"].pop("conversion", None)
        cluster.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body)


@pytest.fixture
def run(api_server: ApiServer, namespace: str, tmp_path: Path) -> Run:
    """Run role secrets with these variables in the inventory's group_vars, as they are or as a file's text."""

    def play(*options: str, text: str = "", **variables: Any) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "group_vars/clusters"
        folder.mkdir(parents=True, exist_ok=True)
        names = ("platform_namespace", "platform_monitoring_namespace")
        common = {"cluster_kubeconfig": str(api_server.kubeconfig)} | dict.fromkeys(names, namespace)
        common["secrets_grafana_admin_password"] = "given-to-grafana-alone"
        (folder / "main.yml").write_text(json.dumps(common | {"platform_wait_timeout": 2} | variables))
        (folder / "secrets.yml").write_text(text or "{}")
        (tmp_path / "hosts.yml").write_text("clusters: {hosts: {test: {ansible_connection: local}}}")
        (tmp_path / "play.yml").write_text(PLAYBOOK)
        command = [program("ansible-playbook"), "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml"), *options]
        return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)

    return play


@pytest.fixture
def controller(cluster: Cluster, namespace: str, patch_status: Callable[..., None]) -> Callable[..., None]:
    """Do what a controller does: make the Secret with these keys, and say how it went."""

    def act(path: str, keys: list[str], **condition: str) -> None:
        body = {"metadata": {"name": "citadelbuy-secrets"}, "stringData": dict.fromkeys(keys, VALUE)}
        secrets = f"/api/v1/namespaces/{namespace}/secrets"
        try:
            cluster.request("POST", secrets, body)
        except ApiError:
            merge = "application/merge-patch+json"
            cluster.request("PATCH", f"{secrets}/citadelbuy-secrets", body, content=merge)
        patch_status(path, {"conditions": [condition], **({"observedGeneration": 1} if path == SEALED else {})})

    return act


def answer(result: subprocess.CompletedProcess[str]) -> str:
    """All that a run said, in one line."""
    return " ".join((result.stdout + result.stderr).split())


CASES = {
    EXTERNAL: (
        "ExternalSecret",
        "Ready",
        {
            "secrets_source": "external_secrets",
            "secrets_external_store": "vault",
            "secrets_external_path": "citadelbuy/prod",
            "secrets_external_references": {"STRIPE_SECRET_KEY": {"key": "stripe", "property": "live"}},
        },
    ),
    SEALED: (
        "SealedSecret",
        "Synced",
        {
            "secrets_source": "sealed_secrets",
            "secrets_sealed": dict.fromkeys([*KEYS, "STRIPE_SECRET_KEY"], "Ag" + "x9" * 200),
        },
    ),
}


@pytest.mark.usefixtures("definitions")
@pytest.mark.parametrize("path", CASES, ids=[case[0] for case in CASES.values()])
def test_a_controllers_secret_is_waited_for(path: str, run: Run, controller: Callable[..., None], live: Any) -> None:
    kind, condition, variables = CASES[path]
    said = answer(run(**variables))
    assert f"/citadelbuy-secrets lacks {', '.join(sorted([*KEYS, *LOGINS, 'STRIPE_SECRET_KEY']))} after 2 s." in said
    assert (
        f"{kind} {live(path)['metadata']['namespace']}/citadelbuy-secrets: it says nothing: is the controller" in said
    )

    controller(path, KEYS, type=condition, status="False", reason="StoreDown", message="no route to the store")
    said = answer(run(**variables))
    assert "lacks DATABASE_USER, ELASTICSEARCH_USERNAME, STRIPE_SECRET_KEY after 2 s." in said
    assert "it says StoreDown: no route to the store" in said

    controller(path, [*KEYS, *LOGINS, "STRIPE_SECRET_KEY"], type=condition, status="True")
    result = run(**variables)
    assert result.returncode == 0, answer(result)
    assert "changed=0" in result.stdout


@pytest.mark.usefixtures("definitions")
def test_an_external_secret_asks_for_every_key_and_leaves_the_secret_behind(run: Run, live: Any) -> None:
    run(**CASES[EXTERNAL][2])
    spec = live(EXTERNAL)["spec"]
    asked = {item["secretKey"]: (item["remoteRef"]["key"], item["remoteRef"]["property"]) for item in spec["data"]}
    assert asked == {key: ("citadelbuy/prod", key) for key in KEYS} | {"STRIPE_SECRET_KEY": ("stripe", "live")}
    assert spec["target"]["template"]["data"].keys() == set(LOGINS)
    assert spec["target"]["template"]["mergePolicy"] == "Merge"
    assert (spec["target"]["creationPolicy"], spec["target"]["deletionPolicy"]) == ("Orphan", "Retain")


@pytest.mark.usefixtures("definitions")
def test_a_source_that_has_the_users_is_asked_for_them(run: Run, live: Any) -> None:
    """After a rotation they are not the first ones."""
    external = CASES[EXTERNAL][2] | {"secrets_external_references": {"DATABASE_USER": {"key": "users"}}}
    run(**external)
    assert live(EXTERNAL)["spec"]["target"]["template"]["data"] == {"ELASTICSEARCH_USERNAME": "elastic"}
    run(**CASES[SEALED][2] | {"secrets_sealed": dict.fromkeys([*KEYS, *LOGINS], "Ag" + "x9" * 200)})
    assert live(SEALED)["spec"]["template"].get("data") in ({}, None)


@pytest.mark.usefixtures("definitions")
def test_another_source_leaves_the_secret_in_place_until_it_has_its_own(run: Run, live: Any) -> None:
    given = {f"secrets_{key.lower()}": f"{VALUE}{key}" for key in KEYS}
    result = run(**given)
    assert result.returncode == 0, answer(result)
    before = live("secrets/citadelbuy-secrets")["data"]
    assert run(**CASES[EXTERNAL][2]).returncode != 0  # there is no controller
    assert live("secrets/citadelbuy-secrets")["data"] == before


def test_a_vaulted_value_is_deployed_and_never_shown(run: Run, live: Any, tmp_path: Path) -> None:
    word = tmp_path / "word"
    word.write_text("the vault's own word")
    values = {f"secrets_{key.lower()}": f"{VALUE}-{key}" for key in KEYS}
    plain = tmp_path / "plain.yml"
    plain.write_text(json.dumps(values | {"secrets_third_party": {"STRIPE_SECRET_KEY": f"{VALUE}-stripe"}}))
    vault = [program("ansible-vault"), "encrypt", "--vault-password-file", str(word), "--output", "-", str(plain)]
    text = subprocess.run(vault, capture_output=True, text=True, check=True).stdout
    assert text.startswith("$ANSIBLE_VAULT")
    assert VALUE not in text
    options = ["--vault-password-file", str(word), "--diff", "-vvvv"]
    results = [run("--check", *options, text=text), run(*options, text=text)]
    plain.write_text(json.dumps(values | {"secrets_third_party": {"STRIPE_SECRET_KEY": f"{VALUE}-changed"}}))
    text = subprocess.run(vault, capture_output=True, text=True, check=True).stdout
    results.append(run(*options, text=text))
    search = Search({"VALUE": VALUE})
    for result in results:
        assert result.returncode == 0, answer(result)
        search.text("output", result.stdout + result.stderr)
    assert not search.found
    deployed = live("secrets/citadelbuy-secrets")["data"]
    assert base64.b64decode(deployed["REDIS_PASSWORD"]).decode() == f"{VALUE}-REDIS_PASSWORD"
    assert base64.b64decode(deployed["STRIPE_SECRET_KEY"]).decode() == f"{VALUE}-changed"
    refused = run(text=text)
    assert "Attempting to decrypt but no vault secrets found" in answer(refused)


@pytest.mark.usefixtures("definitions")
def test_certificates_are_asked_of_cert_manager(run: Run, cluster: Cluster, namespace: str) -> None:
    done = run(secrets_generate=True, secrets_certificate_issuer="company", secrets_certificate_issuer_kind="Issuer")
    assert done.returncode == 0, answer(done)
    place = f"namespaces/{namespace}"
    made = cluster.request("GET", f"/apis/cert-manager.io/v1/{place}/certificates")[1]["items"]
    assert {item["spec"]["secretName"] for item in made} == {"elasticsearch-tls", "postgres-tls", "redis-tls"}
    for item in made:
        assert item["spec"]["issuerRef"] == {"group": "cert-manager.io", "kind": "Issuer", "name": "company"}
        store = item["spec"]["secretName"].removesuffix("-tls")
        assert {store, f"{store}.{namespace}.svc", "localhost"} <= set(item["spec"]["dnsNames"])
    secrets = {item["metadata"]["name"] for item in cluster.request("GET", f"/api/v1/{place}/secrets")[1]["items"]}
    assert not secrets & {"citadelbuy-authority", "elasticsearch-tls", "postgres-tls", "redis-tls"}
    again = run(secrets_generate=True, secrets_certificate_issuer="company", secrets_certificate_issuer_kind="Issuer")
    assert "changed=0" in answer(again)
