"""Action of `citadelbuy.platform.job_log`: what a Job of the platform said. Its manual is in plugins/modules."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils import diff, report
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import ApiError, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import KINDS, POD

LINES = 1000


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "name": {"type": "str", "required": True},
        "ran": {"type": "bool", "default": True},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns completed, the log and, in msg, both with the Job's name."""
        cluster, namespace = self.connect(), self.settings.namespace
        name = f"Job {namespace}/{args['name']}"
        if self._task.check_mode and args["ran"]:
            return {"completed": None, "log": [], "msg": f"{name} would run."}
        job = cluster.get(KINDS["Job"], namespace, args["name"])
        if job is None:
            raise EngineError(f"{name} is gone: something deleted it.")
        status = job.get("status") or {}
        completed = status.get("completionTime")
        state = "ran" if args["ran"] else "had run already, and was not run again"
        headline = f"{name} {state}: " + (f"complete since {completed}." if completed else "not complete.")
        pods = cluster.list(POD, namespace, labelSelector=f"batch.kubernetes.io/job-name={args['name']}")["items"]
        log: list[str] = []
        if pods:
            newest = max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])
            query = {"tailLines": str(LINES), "container": newest["spec"]["containers"][0]["name"]}
            path = POD.path(namespace, newest["metadata"]["name"]) + "/log"
            try:
                text = cluster.request("GET", path, query=query, text=True)[1]
            except ApiError as error:
                text = f"(no log: {error})"
            log = diff.mask(text, report.secret_values(cluster, pods)).splitlines()
        lines = [headline, *(f"  {line}" for line in log)] if pods else [headline, "  (its pods and log are gone)"]
        return {"completed": completed, "log": log, "msg": "\n".join(lines)}
