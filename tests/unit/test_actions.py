"""The actions as users meet them: ansible-playbook, a role, a real API server."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT, free_port

NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: '{{ demo_namespace }}'}\n"
SECRET = """
apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: "{{ demo_namespace }}", annotations: {citadelbuy.io/generate: generated}}
data: {password: "{{ demo_password | b64encode }}"}
"""
CONFIG = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: "{{ demo_namespace }}"}
data: {url: "https://{{ inventory_hostname }}/"}
"""
CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: "things.{{ demo_namespace }}.example.com"}
spec:
  group: "{{ demo_namespace }}.example.com"
  names: {kind: Thing, plural: things}
  scope: Cluster
  versions:
    - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
---
apiVersion: "{{ demo_namespace }}.example.com/v1"
kind: Thing
metadata: {name: first}
"""
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: "{{ demo_namespace }}"}
spec:
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec: {containers: [{name: api, image: "api:1", envFrom: [{secretRef: {name: keys}}]}]}
"""
PLAYBOOK = """
- hosts: clusters
  gather_facts: false
  tasks:
    - name: Foundation
      ansible.builtin.import_role: {name: foundation}
    - name: Demo
      ansible.builtin.import_role: {name: demo}
    - name: Gate
      citadelbuy.platform.ready: {roles: [foundation, demo], timeout: 1}
      when: demo_gate | default(false)
"""


class Project:
    """A small project of two roles: foundation and demo."""

    def __init__(self, folder: Path, kubeconfig: Path) -> None:
        self.folder = folder
        self.namespace = f"project-{os.urandom(4).hex()}"
        self.role("foundation", {"00-namespace": NAMESPACE, "10-secret": SECRET, "20-crd": CRD})
        self.role("demo", {"10-config": CONFIG, "20-deployment": DEPLOYMENT}, "{wait: false}")
        (folder / "site.yml").write_text(PLAYBOOK)
        self.variables = {
            "ansible_connection": "local",
            "cluster_kubeconfig": str(kubeconfig),
            "demo_namespace": self.namespace,
            "platform_namespace": self.namespace,
            "demo_password": "the-secret-password",
        }

    def role(self, name: str, templates: dict[str, str], arguments: str = "{}") -> None:
        for part in ("tasks", "templates"):
            (self.folder / "roles" / name / part).mkdir(parents=True)
        task = f"- name: Apply\n  citadelbuy.platform.manifests: {arguments}\n"
        (self.folder / "roles" / name / "tasks/main.yml").write_text(task)
        for template, text in templates.items():
            (self.folder / "roles" / name / "templates" / f"{template}.yaml.j2").write_text(text)

    def run(self, *arguments: str, **variables: object) -> subprocess.CompletedProcess[str]:
        """ansible-playbook; the log file and both outputs are joined in stdout."""
        inventory = {"clusters": {"hosts": {"east": None}, "vars": self.variables | variables}}
        (self.folder / "hosts.json").write_text(json.dumps(inventory))
        log = self.folder / "log"
        env = os.environ | {
            "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "collections"),
            "ANSIBLE_LOG_PATH": str(log),
            "ANSIBLE_LOCALHOST_WARNING": "false",
        }
        command = [Path(sys.executable).parent / "ansible-playbook", "-i", "hosts.json", "site.yml", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=env, text=True, capture_output=True, check=False)
        done.stdout += done.stderr + log.read_text()
        log.unlink()
        return done


@pytest.fixture
def project(tmp_path, api_server):
    return Project(tmp_path, api_server.kubeconfig)


def recap(done):
    """The counters of the play recap."""
    line = next(line for line in done.stdout.splitlines() if line.startswith("east ") and "ok=" in line)
    return dict(word.split("=") for word in line.split() if "=" in word)


def test_check_then_run_then_run_again(project, cluster):
    check = project.run("--check", "--diff", "-vvv")
    assert recap(check)["failed"] == "0", check.stdout
    assert recap(check)["changed"] == "2"
    assert "+kind: Namespace" in check.stdout
    with pytest.raises(Exception, match="not found"):
        cluster.request("GET", f"/api/v1/namespaces/{project.namespace}")

    first = project.run("--diff", "-vvv")
    assert recap(first)["changed"] == "2", first.stdout
    generated = cluster.request("GET", f"/api/v1/namespaces/{project.namespace}/secrets/keys")[1]["data"]["generated"]
    again = project.run("-v")
    assert recap(again)["changed"] == "0", again.stdout
    assert recap(project.run("--check"))["changed"] == "0"

    change = project.run("--check", "--diff", demo_password="another-secret-password")
    assert recap(change)["changed"] == "2", "the Secret, and the Deployment that uses it"
    assert "password: '***** (changed)'" in change.stdout
    secret = [b"the-secret-password", b"another-secret-password", base64.b64decode(generated)]
    for done in (check, first, again, change):
        for value in secret:
            assert value.decode() not in done.stdout
            assert base64.b64encode(value).decode() not in done.stdout


def test_a_template_error_comes_before_anything_is_applied(project, cluster):
    template = project.folder / "roles/foundation/templates/99-late.yaml.j2"
    template.write_text(CONFIG.replace("inventory_hostname", "demo_hostnam"))
    done = project.run()
    assert done.returncode == 2
    assert "99-late.yaml.j2:5: 'demo_hostnam' is undefined." in done.stdout
    with pytest.raises(Exception, match="not found"):
        cluster.request("GET", f"/api/v1/namespaces/{project.namespace}")


def test_an_unreachable_cluster_and_a_wrong_context_are_one_line(project):
    kubeconfig = project.folder / "kubeconfig"
    port = free_port()
    text = Path(project.variables["cluster_kubeconfig"]).read_text()
    kubeconfig.write_text(
        "\n".join(f"    server: https://127.0.0.1:{port}" if "server:" in line else line for line in text.splitlines())
    )
    done = project.run(cluster_kubeconfig=str(kubeconfig))
    assert f"cluster east: cannot reach https://127.0.0.1:{port}: Connection refused." in done.stdout
    assert "Traceback" not in done.stdout
    done = project.run(cluster_context="prod")
    assert "has no context 'prod' (variable cluster_context); it has: admin, nobody." in done.stdout


def test_the_gate_waits_for_what_the_roles_applied(project):
    done = project.run(demo_gate=True)
    assert done.returncode == 2
    assert f"Deployment {project.namespace}/api: not ready after 1 s (1 of 1 updated, 0 available)" in done.stdout
    assert recap(project.run("--check", demo_gate=True))["failed"] == "0"


def test_a_wrong_argument_is_named(project):
    (project.folder / "roles/demo/tasks/main.yml").write_text(
        "- name: Apply\n  citadelbuy.platform.manifests: {templats: [x]}\n"
    )
    assert "templats" in project.run().stdout


SPECIFICATION = """
argument_specs:
  main:
    short_description: A demo
    options:
      demo_fast: {type: bool, description: A flag}
      demo_size: {type: int, description: A number}
"""


def test_a_role_s_variables_are_judged_and_typed_by_the_action(project, cluster):
    (project.folder / "roles/demo/meta").mkdir()
    (project.folder / "roles/demo/meta/argument_specs.yml").write_text(SPECIFICATION)
    template = project.folder / "roles/demo/templates/10-config.yaml.j2"
    template.write_text(CONFIG.replace("\ndata: {", "\ndata: {fast: '{{ 1 if demo_fast else 0 }}', "))
    play = project.folder / "site.yml"
    play.write_text(play.read_text().replace("name: demo}", "name: demo, rolespec_validate: false}"))
    assert "variable demo_size" in project.run(demo_size="many", demo_fast="no").stdout
    done = project.run(demo_size="2", demo_fast="no")
    assert done.returncode == 0, done.stdout
    live = cluster.request("GET", f"/api/v1/namespaces/{project.namespace}/configmaps/settings")[1]
    assert live["data"]["fast"] == "0"
