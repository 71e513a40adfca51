"""Backups out of their turn, and what cron gets to read: ansible-playbook on a real API server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import cronjob_run
from ansible_collections.citadelbuy.platform.plugins.module_utils.cronjob_run import run_once
from ansible_collections.citadelbuy.platform.plugins.module_utils.lease import Lease
from conftest import CHECKOUT
from test_wait import Kubelet

CRON_JOB = """
apiVersion: batch/v1
kind: CronJob
metadata: {name: "{{ store }}-backup", namespace: "{{ ns }}"}
spec:
  schedule: "@yearly"
  jobTemplate:
    metadata: {labels: {tier: backup}}
    spec:
      backoffLimit: 0
      template:
        spec:
          restartPolicy: Never
          containers: [{name: main, image: "{{ store }}:1"}]
"""


class Calls:
    """playbooks/backup.yml in a namespace."""

    def __init__(self, folder: Path, kubeconfig: Path, namespace: str) -> None:
        self.folder, self.namespace = folder, namespace
        variables = {"cluster_kubeconfig": str(kubeconfig), "platform_namespace": namespace}
        inventory = {"clusters": {"hosts": {"east": None}, "vars": variables | {"ansible_connection": "local"}}}
        (folder / "hosts.json").write_text(json.dumps(inventory))

    def command(self, *arguments: str) -> list[str]:
        """The words of a call."""
        program = str(Path(sys.executable).parent / "ansible-playbook")
        return [program, f"{CHECKOUT}/playbooks/backup.yml", "-i", str(self.folder / "hosts.json"), *arguments]

    def __call__(self, *arguments: str, quiet: bool = True) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "collections"), "ANSIBLE_NOCOLOR": "1"}
        env |= {"ANSIBLE_STDOUT_CALLBACK": "citadelbuy.platform.quiet"} if quiet else {}
        command = self.command(*arguments)
        return subprocess.run(command, cwd=self.folder, env=env, text=True, capture_output=True, check=False)


@pytest.fixture
def back_up(tmp_path, api_server, namespace):
    return Calls(tmp_path, api_server.kubeconfig, namespace)


@pytest.fixture
def kubelet(cluster, namespace):
    """Ends each pod as its image says, once it may."""
    allowed = threading.Event()
    allowed.set()

    def status(pod):
        if not allowed.is_set():
            return None
        failed = pod["spec"]["containers"][0]["image"].startswith("redis")
        state = {"terminated": {"exitCode": int(failed)}}
        containers = [{"name": "main", "image": "a", "imageID": "", "ready": False, "restartCount": 0, "state": state}]
        return {"phase": "Failed" if failed else "Succeeded", "containerStatuses": containers}

    running = Kubelet(cluster, namespace, status)
    running.allowed = allowed
    running.start()
    yield running
    running.stopped.set()
    running.join()


def jobs(cluster, namespace):
    return cluster.request("GET", f"/apis/batch/v1/namespaces/{namespace}/jobs")[1]["items"]


def test_nothing_is_said_of_success_and_the_job_is_the_cronjob_s(back_up, deploy, cluster, namespace, kubelet, live):
    deploy(CRON_JOB, store="postgres")
    done = back_up()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    [job] = jobs(cluster, namespace)
    assert job["metadata"]["labels"]["tier"] == "backup"
    [owner] = job["metadata"]["ownerReferences"]
    assert owner["uid"] == live("apis/batch/v1:cronjobs/postgres-backup")["metadata"]["uid"]
    done = back_up("--check")
    assert (done.returncode, done.stdout, len(jobs(cluster, namespace))) == (0, "", 1)
    done = back_up(quiet=False)
    assert "PLAY RECAP" in done.stdout


def test_one_line_of_a_failure_and_the_others_have_theirs(back_up, deploy, cluster, namespace, kubelet):
    for store in ("postgres", "redis", "elasticsearch", "kubernetes", "volumes"):
        deploy(CRON_JOB, store=store, prune=False)
    done = back_up()
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(f"east: Make backups failed: redis: Job {namespace}/redis-backup-")
    for store in ("postgres", "elasticsearch", "kubernetes", "volumes"):
        assert f"; {store}: " in line
    assert line.count("(this one is good)") == 4
    assert len(jobs(cluster, namespace)) == 5
    done = back_up("-e", "backup_stores=postgres,elasticsearch")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_not_there_is_named(back_up, deploy, kubelet, namespace):
    done = back_up()
    assert done.returncode == 2
    assert f"there are no CronJobs of backups in {namespace}: platform_backups is false" in done.stderr
    deploy(CRON_JOB, store="postgres")
    done = back_up("-e", "backup_stores=postgres,mongo")
    assert done.returncode == 2
    assert f"there is no CronJob {namespace}/mongo-backup. Stores that have one: postgres." in done.stderr


def test_two_at_a_time_are_one(back_up, deploy, cluster, namespace, kubelet):
    deploy(CRON_JOB, store="postgres")
    with Lease(cluster, namespace, "backups", "A verification of backups"):
        done = back_up()
    assert done.returncode == 2
    assert f"A backup or its verification of {namespace} is under way" in done.stderr
    assert jobs(cluster, namespace) == []


def test_a_run_that_was_killed_is_taken_up(back_up, deploy, cluster, namespace, kubelet, eventually, live):
    deploy(CRON_JOB, store="postgres")
    kubelet.allowed.clear()
    env = os.environ | {"ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "collections")}
    with subprocess.Popen(back_up.command(), cwd=back_up.folder, env=env, stdout=subprocess.DEVNULL) as killed:
        eventually(lambda: jobs(cluster, namespace))
        killed.kill()
    [job] = jobs(cluster, namespace)
    # It ends once it is waited for.
    ran = run_once(cluster, live("apis/batch/v1:cronjobs/postgres-backup"), 60, lambda _line: kubelet.allowed.set())
    assert (ran.job, ran.joined) == (job["metadata"]["name"], True)
    assert len(jobs(cluster, namespace)) == 1


def test_other_work_of_the_same_cronjob_is_not_taken_for_it(deploy, cluster, namespace, live):
    deploy(CRON_JOB, store="postgres")
    cronjob = live("apis/batch/v1:cronjobs/postgres-backup")
    job = cluster.request("POST", cronjob_run.JOB.path(namespace), cronjob_run._job(cronjob))[1]
    assert cronjob_run._under_way(cluster, cronjob)["metadata"]["name"] == job["metadata"]["name"]
    [container] = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    container["args"] = ["postgres-backup", "rehearse"]
    assert cronjob_run._under_way(cluster, cronjob) is None
