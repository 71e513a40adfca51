"""The report of a run, as text and as a file, and the line on the terminal: ansible-playbook, a real API server."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.citadelbuy.platform.plugins.callback.report import MANIFESTS, READY, CallbackModule, Entry
from conftest import CHECKOUT
from test_actions import Project

ANSIBLE_PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
CONFIG_MAPS = """
{% for number in range(demo_count | default(25)) %}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: "many-{{ number }}", namespace: "{{ demo_namespace }}"}
{% endfor %}
"""
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: "{{ demo_namespace }}"}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
"""


@pytest.fixture
def project(tmp_path, api_server, monkeypatch):
    monkeypatch.setenv("ANSIBLE_CALLBACKS_ENABLED", "citadelbuy.platform.report")
    return Project(tmp_path, api_server.kubeconfig)


@pytest.fixture
def file(project):
    """Where the runs of a test write their report."""
    project.variables["platform_report_file"] = str(project.folder / "report.json")
    return project.folder / "report.json"


def report(done, host="east"):
    """The printed lines about a cluster, without times and without waits, which are shown only where they took long."""
    lines = done.stdout.split("PLAY RECAP")[1].splitlines()
    begin = next((number for number, line in enumerate(lines) if line.startswith(f"{host}: ")), len(lines))
    found = lines[begin : begin + 1] + list(itertools.takewhile(lambda line: line[:2] == "  ", lines[begin + 1 :]))
    lines = [re.sub(r",? +(\d+ min )?[\d.]+ s$", "", line) for line in found]
    return [line for line in lines if not line.startswith("  waited for")]


def test_created_then_unchanged_then_changed(project, file):
    namespace = project.namespace
    first = project.run()
    assert report(first) == [
        "east: 6 created in 2 sets",
        "  foundation  4 created",
        f"    created  Namespace {namespace}",
        f"    created  Secret {namespace}/keys",
        f"    created  CustomResourceDefinition things.{namespace}.example.com",
        "    created  Thing first",
        "  demo        2 created",
        f"    created  ConfigMap {namespace}/settings",
        f"    created  Deployment {namespace}/api",
    ], first.stdout
    assert report(project.run()) == ["east: 6 objects in 2 sets unchanged"]
    assert report(project.run("--check")) == ["east: 6 objects in 2 sets would stay unchanged"]

    check = project.run("--check", demo_password="another-secret-password")
    assert report(check) == [
        "east: would change 2, 4 unchanged in 2 sets",
        "  foundation  would change 1, 3 unchanged",
        f"    would change  Secret {namespace}/keys",
        "  demo        would change 1, 1 unchanged",
        f"    would change  Deployment {namespace}/api",
    ]
    written = json.loads(file.read_text())
    assert written["check"] is True
    assert written["playbooks"] == ["site.yml"]
    assert (written["version"], written["result"], list(written["clusters"])) == (1, "ok", ["east"])
    assert set(written) == {"version", "started", "ended", "seconds", "check", "playbooks", "result", "clusters"}
    cluster = written["clusters"]["east"]
    assert (cluster["result"], cluster["waits"], cluster["failures"]) == ("ok", [], [])
    assert {
        (role, item["kind"], item["action"])
        for role, done in cluster["roles"].items()
        for item in done["objects"]
        if item["action"] != "unchanged"
    } == {("foundation", "Secret", "changed"), ("demo", "Deployment", "changed")}
    assert cluster["roles"]["demo"]["seconds"] > 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path for path in file.parent.iterdir() if path.name.startswith(".")] == [], "no temporary file is left"
    assert "another-secret-password" not in file.read_text()


def test_kept_objects_say_why_and_many_are_cut(project):
    many = project.folder / "roles/demo/templates/30-many.yaml.j2"
    claim = project.folder / "roles/demo/templates/40-claim.yaml.j2"
    many.write_text(CONFIG_MAPS)
    claim.write_text(CLAIM)
    lines = report(project.run())
    assert "  demo        28 created" in lines
    assert lines[-1] == "    and 8 more"
    claim.unlink()
    kept = report(project.run())
    assert kept[:1] == ["east: 1 kept, 31 unchanged in 2 sets"]
    assert kept[1].startswith(f"    kept  PersistentVolumeClaim {project.namespace}/data: ")
    assert all(len(line) <= 100 for line in kept if project.namespace not in line)
    assert "  demo        24 pruned, 1 kept, 3 unchanged" in report(project.run(demo_count=1))


def test_a_failure_is_told_in_its_first_line_and_written_whole(project, file):
    done = project.run(demo_gate=True)
    lines = report(done)
    assert lines[0] == "east: failed, 6 created in 2 sets"
    first = f"Deployment {project.namespace}/api: not ready after 1 s (1 of 1 updated, 0 available)"
    assert lines[-1] == f"  failed  Gate: {first}"
    written = json.loads(file.read_text())
    assert (written["result"], written["clusters"]["east"]["result"]) == ("failed", "failed")
    [failure] = written["clusters"]["east"]["failures"]
    assert (failure["task"], failure["role"]) == ("Gate", None)
    head, *rest = failure["message"].splitlines()
    assert head == first
    assert rest, "why it is not ready"
    assert all(line in done.stdout for line in rest), "as it was printed"


def test_a_file_for_each_cluster_and_one_that_cannot_be_written(project):
    (project.folder / "west.json").write_text(json.dumps({"clusters": {"hosts": {"west": None}}}))
    done = project.run(
        "-i", "west.json", "-f2", "--check", platform_report_file="{{ playbook_dir }}/{{ inventory_hostname }}.report"
    )
    for name in ("east", "west"):
        assert list(json.loads((project.folder / f"{name}.report").read_text())["clusters"]) == [name]
        assert report(done, name)[0] == f"{name}: would create 6 in 2 sets"
    done = project.run("--check", platform_report_file="missing/report.json")
    assert done.returncode == 0
    path = project.folder / "missing/report.json"
    assert done.stderr.count(f"platform_report_file: {path} cannot be written: No such file or directory.") == 1


def test_an_interrupted_run_leaves_its_report(project, file, eventually):
    project.run("--check")  # writes the inventory, and the report of an earlier run
    late = project.folder / "roles/demo/templates/99-late.yaml.j2"
    late.write_text("{{ lookup('pipe', 'touch " + str(project.folder / "begun") + "; sleep 60') }}")
    with subprocess.Popen(
        [ANSIBLE_PLAYBOOK, "-i", "hosts.json", "site.yml"],
        cwd=project.folder,
        env=os.environ | {"ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "collections")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        eventually((project.folder / "begun").exists)
        unfinished = json.loads(file.read_text())
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
    assert process.returncode == 99, output
    assert unfinished["result"] == "unfinished", "not what the earlier run left"
    assert "east: interrupted, 4 created in 1 set" in output
    assert f"    created  Namespace {project.namespace}\n" in output
    assert "  failed  demo: interrupted" in output
    written = json.loads(file.read_text())
    assert (written["result"], written["clusters"]["east"]["result"]) == ("unfinished", "failed")
    assert written["clusters"]["east"]["failures"] == [{"task": "Apply", "role": "demo", "message": "interrupted"}]
    assert len(written["clusters"]["east"]["roles"]["foundation"]["objects"]) == 4


def test_silent_where_the_engine_did_nothing(project):
    play = "- hosts: clusters\n  gather_facts: false\n  tasks: [{name: Other, ansible.builtin.fail: {msg: no}}]\n"
    (project.folder / "site.yml").write_text(play)
    assert report(project.run()) == []


RESCUE = """
- hosts: clusters
  gather_facts: false
  tasks:
    - name: Try
      block: [{name: Apply, citadelbuy.platform.manifests: {templates: [missing]}}]
      rescue: [{name: Go on, ansible.builtin.debug: {msg: on}}]
"""


def test_a_rescued_failure_is_no_failed_run(project, file):
    (project.folder / "site.yml").write_text(RESCUE)
    done = project.run()
    assert done.returncode == 0
    assert report(done) == [
        "east: nothing applied",
        "  failed, rescued  Apply: manifests: outside a role the argument `name` (the set's name) is needed.",
    ]
    written = json.loads(file.read_text())
    assert (written["result"], written["clusters"]["east"]["result"]) == ("ok", "ok")
    assert len(written["clusters"]["east"]["failures"]) == 1


def test_the_slowest_waits_are_shown():
    """Of tasks that wait themselves and of gates; objects that were ready at once are none."""

    def workload(name, **more):
        return {"kind": "StatefulSet", "namespace": "shop", "name": name} | more

    own = [workload("a", action="created", ready_after=3.14), workload("b", action="created")]
    gate = [
        workload("c", seconds=0.0),
        workload("d", seconds=150.2),
        workload("e", seconds=9.0),
        workload("f", seconds=1),
    ]
    entries = [Entry("Apply", "demo", MANIFESTS, 3.2, own), Entry("Wait for all", None, READY, 150.3, gate)]
    assert [(wait["task"], wait["name"]) for entry in entries for wait in entry.waits] == [
        ("Apply", "a"),
        ("Wait for all", "d"),
        ("Wait for all", "e"),
        ("Wait for all", "f"),
    ]
    callback = CallbackModule()
    assert callback._text("east", entries) == [
        "east: 2 created in 1 set, 2 min 34 s",
        "  demo          2 created       3.2 s",
        "    created  StatefulSet shop/a",
        "    created  StatefulSet shop/b",
        "  Wait for all  4 ready    2 min 30 s",
        "  waited for  StatefulSet shop/d  2 min 30 s",
        "  waited for  StatefulSet shop/e       9.0 s",
        "  waited for  StatefulSet shop/a       3.1 s",
    ]


ACTION = """
from ansible.plugins.action import ActionBase
from ansible_collections.citadelbuy.platform.plugins.module_utils.progress import progress_line

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        host = task_vars["inventory_hostname"]
        show = progress_line(host)
        if show:
            for number in range(self._task.args["times"]):
                show(f"waiting {number} s: " + "StatefulSet citadelbuy/postgres " * 9)
            if host != "east":
                show("")
        return super().run(tmp, task_vars) | {"msg": f"line: {show is not None}", "warnings": [f"from {host}"]}
"""
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - {name: Wait, wait: {times: 200}}
    - {name: After, ansible.builtin.debug: {msg: after}}
"""


def screen(text, columns):
    """What a terminal shows at last; a line that is too long wraps."""
    lines, column = [""], 0
    for part in re.findall(r"\x1b\[[\d;]*[A-Za-z]|.|\n", text, re.DOTALL):
        if part == "\n":
            lines.append("")
            column = 0
        elif part == "\r":
            column = 0
        elif part == "\x1b[K":
            lines[-1] = lines[-1][:column]
        elif part[0] != "\x1b":
            if column == columns:
                lines.append("")
                column = 0
            lines[-1] = lines[-1][:column].ljust(column) + part + lines[-1][column + 1 :]
            column += 1
    return lines


@pytest.mark.parametrize("terminal", ["xterm", "dumb"])
def test_the_line_on_a_terminal_disturbs_nothing(tmp_path, terminal):
    (tmp_path / "action_plugins").mkdir()
    (tmp_path / "action_plugins/wait.py").write_text(ACTION)
    (tmp_path / "play.yml").write_text(PLAY)
    env = os.environ | {
        "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "collections"),
        "ANSIBLE_CALLBACKS_ENABLED": "citadelbuy.platform.report",
        "ANSIBLE_LOG_PATH": str(tmp_path / "log"),
        "TERM": terminal,
        "COLUMNS": "100",
    }
    ours, theirs = pty.openpty()
    command = [ANSIBLE_PLAYBOOK, "-i", "east,west,north,", "-c", "local", "play.yml", "-v"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                written += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    text = written.decode()
    lines = screen(text, 100)
    assert process.returncode == 0, text
    assert ("waiting 9 s" in text) == (terminal == "xterm")
    assert not any("waiting" in line for line in lines), "\n".join(lines)
    assert "waiting" not in (tmp_path / "log").read_text()
    for host in ("east", "west", "north"):
        begun = [line for line in lines if line.startswith((f"ok: [{host}]", f"[WARNING]: from {host}"))]
        assert len(begun) == 3, "\n".join(lines)
    assert sum(f'"msg": "line: {terminal == "xterm"}"' in line for line in lines) == 3
