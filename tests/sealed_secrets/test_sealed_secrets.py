"""The platform's Secret handed to Sealed Secrets and back, on a running platform. `make drill-sealed-secrets` runs it.

The platform is the one that CITADELBUY_SEALED_CLUSTER names, an embedded cluster that make brings up. The tests share
it and run in order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
MODULE = "github.com/bitnami-labs/sealed-secrets"
NAME = os.environ.get("CITADELBUY_SEALED_CLUSTER", "")
PORT = os.environ.get("CITADELBUY_SEALED_PORT", "17444")
CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
CLUSTER = {"local_cluster_name": NAME, "local_cluster_api_port": PORT, "platform_wait_timeout": 60}
KUBECONFIG = f"/var/lib/citadelbuy/{NAME}/admin.conf"
LEAVE = "kubectl -n citadelbuy annotate secret citadelbuy-secrets sealedsecrets.bitnami.com/managed=true"

pytestmark = pytest.mark.skipif(not NAME, reason="make drill-sealed-secrets brings the cluster that this needs")


def run(*words: str, stdin: str = "", cwd: Path = ROOT) -> str:
    """Run a program; it must end well. Returns its standard output."""
    settings = os.environ | {"KUBECONFIG": KUBECONFIG, "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"}
    done = subprocess.run(words, cwd=cwd, env=settings, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words[:4]}: {done.stdout[-3000:]} {done.stderr[-2000:]}"
    return done.stdout


def kubectl(*arguments: str, stdin: str = "") -> str:
    """Run kubectl."""
    program = max((CACHE / "binaries").glob("*/kubectl"), key=lambda path: path.stat().st_mtime)
    return run(str(program), *arguments, stdin=stdin)


def kubeseal(*arguments: str, stdin: str = "") -> str:
    """Run kubeseal, of the same release as the controller."""
    return run("go", "tool", "kubeseal", *arguments, stdin=stdin, cwd=HERE / "images/sealed-secrets")


def secret() -> dict[str, Any]:
    """The platform's Secret."""
    return json.loads(kubectl("-n", "citadelbuy", "get", "secret", "citadelbuy-secrets", "-o", "json"))


def pods() -> dict[str, str]:
    """The platform's pods by uid, but for those that are ending."""
    found = json.loads(kubectl("-n", "citadelbuy", "get", "pods", "-o", "json"))["items"]
    return {
        item["metadata"]["uid"]: item["metadata"]["name"]
        for item in found
        if "job-name" not in str(item) and "deletionTimestamp" not in item["metadata"]
    }


def playbook(name: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run a playbook of this project."""
    words = [str(Path(sys.executable).with_name("ansible-playbook")), f"playbooks/{name}.yml"]
    words += ["-i", "inventories/local", "--extra-vars", json.dumps(CLUSTER | variables)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def site(**variables: object) -> str:
    """Run site.yml; it must end well."""
    done = playbook("site", **variables)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    return done.stdout


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The controller is installed; what it seals with."""
    folder = run("go", "list", "-m", "-f", "{{.Dir}}", MODULE, cwd=HERE / "images/sealed-secrets").strip()
    kubectl("apply", "-f", f"{folder}/helm/sealed-secrets/crds/bitnami.com_sealedsecrets.yaml")
    kubectl("apply", "-f", str(HERE / "controller.yaml"))
    kubectl("-n", "sealed-secrets", "rollout", "status", "deployment/sealed-secrets", "--timeout=120s")
    file = tmp_path_factory.mktemp("sealing") / "sealing.pem"
    where = ["--controller-namespace", "sealed-secrets", "--controller-name", "sealed-secrets"]
    file.write_text(kubeseal("--kubeconfig", KUBECONFIG, *where, "--fetch-cert"))
    return file


@pytest.fixture(scope="module")
def sealed(certificate: Path) -> dict[str, str]:
    """What the inventory holds then: the Secret as it is after a rotation, whose users are not the first ones."""
    rotated = playbook("rotate_secrets", rotate_secrets_names="all", rotate_secrets_token_lifetime=0)
    assert rotated.returncode == 0, rotated.stdout[-3000:]
    as_it_is = kubectl("-n", "citadelbuy", "get", "secret", "citadelbuy-secrets", "-o", "json")
    return json.loads(kubeseal("--cert", str(certificate), "--format", "json", stdin=as_it_is))["spec"]["encryptedData"]


def source(sealed: dict[str, str]) -> dict[str, object]:
    """The inventory's variables."""
    return {"secrets_source": "sealed_secrets", "secrets_generate": False, "secrets_sealed": sealed}


def test_without_leave_nothing_is_changed(sealed: dict[str, str]) -> None:
    """Sealed Secrets would refuse, and not look again at what it has refused once."""
    before = secret()
    done = playbook("site", **source(sealed))
    assert done.returncode != 0
    assert LEAVE in " ".join((done.stdout + done.stderr).split())
    assert secret() == before
    assert not kubectl("-n", "citadelbuy", "get", "sealedsecrets", "-o", "name")


def test_it_takes_over_and_nothing_is_restarted(sealed: dict[str, str]) -> None:
    before, running = secret(), pods()
    assert before["data"]["ELASTICSEARCH_USERNAME"] != "ZWxhc3RpYw==", "the rotation has left the first user"
    kubectl(*LEAVE.split()[1:])
    site(**source(sealed))
    after = secret()
    assert after["data"] == before["data"]
    assert [owner["kind"] for owner in after["metadata"]["ownerReferences"]] == ["SealedSecret"]
    assert pods() == running
    assert "changed=0 " in site(**source(sealed))


def test_a_new_key_reaches_the_applications(sealed: dict[str, str], certificate: Path) -> None:
    words = ["--raw", "--namespace", "citadelbuy", "--name", "citadelbuy-secrets", "--cert", str(certificate)]
    sealed["STRIPE_SECRET_KEY"] = kubeseal(*words, stdin="sk_live_of_the_drill")
    site(**source(sealed))
    read = ["exec", "deploy/citadelbuy-api", "--", "printenv", "STRIPE_SECRET_KEY"]
    assert kubectl("-n", "citadelbuy", *read).strip() == "sk_live_of_the_drill"


def test_what_was_sealed_for_another_is_told_and_changes_nothing(sealed: dict[str, str], certificate: Path) -> None:
    before, running = secret(), pods()
    words = ["--raw", "--namespace", "citadelbuy", "--name", "another", "--cert", str(certificate)]
    wrong = sealed | {"JWT_SECRET": kubeseal(*words, stdin="of another Secret, with another name")}
    done = playbook("site", **source(wrong))
    assert done.returncode != 0
    assert "no key could decrypt secret (JWT_SECRET)" in " ".join((done.stdout + done.stderr).split())
    assert secret() == before
    assert pods() == running
    site(**source(sealed))


def test_values_take_it_back(sealed: dict[str, str]) -> None:
    before, running = secret(), pods()
    site()
    after = secret()
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["data"] == before["data"]
    assert "ownerReferences" not in after["metadata"]
    assert pods() == running
    assert "changed=0 " in site()
    rotated = playbook("rotate_secrets", rotate_secrets_names="all", rotate_secrets_token_lifetime=0)
    assert rotated.returncode == 0, rotated.stdout[-3000:]
