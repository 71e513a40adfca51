"""The deployer: enough rights to deploy the platform, and none beside."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def deployer(play, tmp_path_factory):
    """A kubeconfig of the deployer."""
    path = tmp_path_factory.mktemp("deployer") / "kubeconfig"
    done = play("deployer", "-e", f"deployer_kubeconfig={path}")
    assert done.rc == 0, done.stdout + done.stderr
    assert path.stat().st_mode & 0o077 == 0
    return path


def test_the_deployer_deploys(deployer, play, kubectl):
    """What is missing is made again, by the deployer alone."""
    kubectl("delete", "deployment", "citadelbuy-api", "--namespace", "citadelbuy")
    kubectl("delete", "statefulset", "redis", "--namespace", "citadelbuy")
    login = ("-e", f"cluster_kubeconfig={deployer}", "-e", "cluster_context=")
    done = play("site", *login)
    assert done.rc == 0, done.stdout + done.stderr
    done = play("site", *login)
    assert done.rc == 0, done.stdout + done.stderr
    assert "changed=0" in done.stdout


@pytest.mark.parametrize(
    "request_",
    [
        ("get", "secrets", "--namespace", "kube-system"),
        ("get", "secrets", "--namespace", "default"),
        ("get", "secrets", "--all-namespaces"),
        ("create", "clusterrolebinding", "mine", "--clusterrole=cluster-admin", "--user=me"),
        ("delete", "namespace", "kube-system"),
        ("get", "pods", "--namespace", "citadelbuy", "--as=system:admin"),
    ],
    ids=" ".join,
)
def test_the_deployer_may_not(deployer, kubectl, request_):
    assert "cannot" in kubectl(f"--kubeconfig={deployer}", *request_, fails=True)
