"""A CronJob's work out of its turn: one Job, awaited, and the line that it says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import KINDS, POD, Failed, Target, Waiter

Body = dict[str, Any]
CRON_JOB = Resource("batch/v1", "CronJob", "cronjobs", True)
JOB = KINDS["Job"]
OUT_OF_TURN = {"cronjob.kubernetes.io/instantiate": "manual"}  # as `kubectl create job --from` writes it
LINES = 20  # of a log, the last of which is what the Job says


@dataclass
class Ran:
    """A Job that has ended well."""

    job: str
    line: str  # the last one of its log
    seconds: float
    joined: bool  # it was under way already


def run_once(cluster: Cluster, cronjob: Body, timeout: float, tell: Callable[[str], None] | None = None) -> Ran:
    """Have a CronJob's work done once, now.

    A Job of it that is under way is waited for instead: whoever was killed while waiting finds his Job again. The Job
    is the CronJob's, whose history limits remove it.

    :param cronjob: as it is in the cluster.
    :param timeout: seconds for all of it.
    :param tell: takes lines of progress.
    :raises EngineError: one line: the Job, and what its newest pod said last.
    """
    namespace = cronjob["metadata"]["namespace"]
    begun = time.monotonic()
    job = _under_way(cluster, cronjob)
    joined = job is not None
    if job is None:
        job = cluster.request("POST", JOB.path(namespace), _job(cronjob))[1]
    job_name = job["metadata"]["name"]
    target = Target("Job", namespace, job_name)
    try:
        Waiter(cluster, timeout, tell).wait([target])
    except Failed as error:
        live = cluster.get(JOB, namespace, job_name) or {}
        failed = any(
            item["type"] == "Failed" and item["status"] == "True"
            for item in (live.get("status") or {}).get("conditions") or []
        )
        said = last_line(cluster, namespace, job_name) if failed else ""
        raise EngineError(f"Job {namespace}/{job_name}: {said or str(error).splitlines()[0]}") from None
    return Ran(job_name, last_line(cluster, namespace, job_name), time.monotonic() - begun, joined)


def _under_way(cluster: Cluster, cronjob: Body) -> Body | None:
    """The newest Job of a CronJob that does the same work and has not ended."""
    [work] = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    found = [
        job
        for job in cluster.list(JOB, cronjob["metadata"]["namespace"])["items"]
        if any(owner.get("uid") == cronjob["metadata"]["uid"] for owner in job["metadata"].get("ownerReferences") or [])
        and all(
            item.get(key) == work.get(key)
            for item in job["spec"]["template"]["spec"]["containers"]
            for key in ("image", "args")
        )
        and not any(
            item["type"] in ("Complete", "Failed") and item["status"] == "True"
            for item in (job.get("status") or {}).get("conditions") or []
        )
    ]
    return max(found, key=lambda job: job["metadata"]["creationTimestamp"], default=None)


def _job(cronjob: Body) -> Body:
    """A Job as the CronJob's controller would make it, named by the second."""
    metadata, template = cronjob["metadata"], cronjob["spec"]["jobTemplate"]
    given = template.get("metadata") or {}
    return {
        "apiVersion": JOB.api_version,
        "kind": JOB.kind,
        "metadata": {
            "name": f"{metadata['name']}-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}",
            "namespace": metadata["namespace"],
            "labels": given.get("labels") or {},
            "annotations": (given.get("annotations") or {}) | OUT_OF_TURN,
            "ownerReferences": [
                {
                    "apiVersion": CRON_JOB.api_version,
                    "kind": CRON_JOB.kind,
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                }
            ],
        },
        "spec": template["spec"],
    }


def last_line(cluster: Cluster, namespace: str, job: str) -> str:
    """What the newest pod of a Job said last; empty where it said nothing, or is gone."""
    pods = cluster.list(POD, namespace, labelSelector=f"batch.kubernetes.io/job-name={job}")["items"]
    return log_end(cluster, max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])) if pods else ""


def cronjob_of(cluster: Cluster, namespace: str, name: str) -> Body:
    """A CronJob of the backups.

    :raises EngineError: there is none.
    """
    found = cluster.get(CRON_JOB, namespace, name)
    if found is None:
        raise EngineError(f"there is no CronJob {namespace}/{name}: is platform_backups true?")
    return found


def log_end(cluster: Cluster, pod: Body) -> str:
    """What the first container of a pod said last; empty where it said nothing, or cannot be asked."""
    path = POD.path(pod["metadata"]["namespace"], pod["metadata"]["name"]) + "/log"
    query = {"tailLines": LINES, "container": pod["spec"]["containers"][0]["name"]}
    try:
        log = cluster.request("GET", path, query=query, text=True)[1]
    except EngineError:
        return ""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else ""
