"""The commands that are compared: this project's playbooks, kubectl, Helm, and kubernetes.core in two ways."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from go_programs import go_program
from pairing import CACHE, BenchmarkError, run
from platform_objects import KUBECONFIG, MANAGER, Body, masker

LOCAL = "inventories/local"


def program(name: str) -> Path:
    """A Kubernetes program of the cache.

    :raises BenchmarkError: when none was built.
    """
    named = os.environ.get("CITADELBUY_BINARIES")
    found = [Path(named, name)] if named else list(CACHE.glob(f"binaries/*/{name}"))
    found = sorted((file for file in found if file.exists()), key=lambda file: file.stat().st_mtime)
    if not found:
        raise BenchmarkError(f"no {name} in {named or CACHE / 'binaries'}: `make up` first.")
    return found[-1]


def playbook(*arguments: str | Path) -> str:
    """Run ansible-playbook and return what it prints."""
    return run([Path(sys.executable).parent / "ansible-playbook", *arguments], {"ANSIBLE_NOCOLOR": "1"})


def unchanged(output: str) -> None:
    """Check the recap of a run that must not change anything.

    :raises BenchmarkError: when it did, or when there is no recap.
    """
    counts = [int(count) for count in re.findall(r"\bchanged=(\d+)", output)]
    if not counts or any(counts):
        raise BenchmarkError("the run was to change nothing and did: `make up` first, and nobody else on the cluster.")


class Rivals:
    """Ways of others to apply the very same manifests. Each is a function to be timed; all leave nothing changed."""

    def __init__(self, bodies: Sequence[Body], folder: Path, kubeconfig: Path = KUBECONFIG) -> None:
        """Write the manifests, one file each, into a folder that only this user can read."""
        self.bodies, self.folder, self.kubeconfig = list(bodies), folder, kubeconfig
        folder.mkdir(mode=0o700, parents=True)
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        for number, body in enumerate(self.bodies):
            name = f"{number:04}-{body['kind'].lower()}-{body['metadata']['name']}.yaml"
            (self.manifests / name).write_text(_text([body]), encoding="utf-8")
        self.all_in_one = folder / "all.yaml"
        self.all_in_one.write_text(_text(self.bodies), encoding="utf-8")
        self._hidden = masker(self.bodies)

    def _run(self, *command: str | Path, **env: str) -> str:
        return run(command, {"KUBECONFIG": str(self.kubeconfig)} | env, hidden=self._hidden)

    def kubectl(self, *arguments: str | Path) -> str:
        """Run kubectl."""
        return self._run(program("kubectl"), *arguments)

    def kubectl_apply(self) -> None:
        """`kubectl apply --server-side`, as the engine's own field manager: nothing changes hands."""
        self.kubectl("apply", "--server-side", f"--field-manager={MANAGER}", "-f", self.manifests)

    def core_task_an_object(self) -> Callable[[], None]:
        """kubernetes.core.k8s as its documentation shows it: a task an object, each with wait."""
        tasks = [self._core_task(file.name, file) for file in sorted(self.manifests.iterdir())]
        return self._core_play("task-an-object", tasks)

    def core_list(self) -> Callable[[], None]:
        """kubernetes.core.k8s, one task with all objects, then its wait."""
        return self._core_play("list", [self._core_task("all objects", self.all_in_one)])

    def _core_task(self, name: str, source: Path) -> dict[str, Any]:
        return {
            "name": f"Apply {name}",
            "kubernetes.core.k8s": {
                "state": "present",
                "src": str(source),
                "apply": True,
                "server_side_apply": {"field_manager": MANAGER},
                "wait": True,
                "kubeconfig": str(self.kubeconfig),
            },
        }

    def _core_play(self, name: str, tasks: list[dict[str, Any]]) -> Callable[[], None]:
        file = self.folder / f"{name}.yml"
        play = {"name": name, "hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
        play["vars"] = {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        file.write_text(yaml.safe_dump([play], sort_keys=False), encoding="utf-8")
        executable = Path(sys.executable).parent / "ansible-playbook"
        return lambda: unchanged(self._run(executable, file, "-i", "localhost,", ANSIBLE_NOCOLOR="1"))

    def helm(self, release: str, *arguments: str) -> Callable[[], None]:
        """`helm upgrade --install` of the manifests as a chart; the release is kept in namespace default."""
        chart = self.folder / f"chart-{release}"
        (chart / "templates").mkdir(parents=True)
        about = {"apiVersion": "v2", "name": release, "version": "1.0.0"}
        (chart / "Chart.yaml").write_text(yaml.safe_dump(about), encoding="utf-8")
        for file in self.manifests.iterdir():
            text = file.read_text(encoding="utf-8").replace("{{", '{{ "{{" }}')
            (chart / "templates" / file.name).write_text(text, encoding="utf-8")
        return lambda: self._helm("upgrade", "--install", release, chart, *arguments) and None

    def helm_uninstall(self, release: str) -> None:
        """Remove a release and its objects, if it is there."""
        self._helm("uninstall", release, "--ignore-not-found", "--wait")

    def _helm(self, *arguments: str | Path) -> str:
        homes = {f"HELM_{kind}_HOME": str(self.folder / "helm") for kind in ("CACHE", "CONFIG", "DATA")}
        return self._run(helm_program(), *arguments, "--namespace", "default", **homes)

    def delete_namespaces(self, names: Iterable[str]) -> None:
        """Delete namespaces and wait until they are gone."""
        self.kubectl("delete", "namespace", "--ignore-not-found", "--wait", "--timeout=300s", *names)


def _text(bodies: Iterable[Body]) -> str:
    # JSON is YAML, and nothing in it is mistaken for a date, a number or an anchor.
    return "".join(f"---\n{json.dumps(body, indent=1)}\n" for body in bodies)


def helm_program() -> Path:
    """Helm, as tests/benchmarks/helm pins it."""
    return go_program("helm")
