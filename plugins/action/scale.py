"""Action of `citadelbuy.platform.scale`: show how many pods there are, or change that. Manual: plugins/modules."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils import diff, scale
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import ApiError, Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction, named
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.progress import progress_line
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import (
    APPLICATIONS,
    Waiter,
    find_workloads,
    targets_of,
)

ROLE = "applications"


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "name": {"type": "str"},
        "replicas": {"type": "int"},
        "capacity_required": {"type": "bool", "default": True},
        "timeout": {"type": "float"},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns changed, applications as they were, diff (in diff mode) and in msg what was done."""
        name, replicas = args["name"], args["replicas"]
        if replicas is not None and not name:
            raise EngineError("scale_replicas needs scale_application, the name of what is to be scaled.")
        if replicas is not None and replicas < 1:
            raise EngineError(f"scale_replicas is {replicas}: write 1 or more. With 0, an autoscaler is switched off.")
        cluster, namespace = self.connect(), self.settings.namespace
        workloads = find_workloads(cluster, APPLICATIONS, namespace)
        found = [target.body for target in workloads if target.kind == "Deployment" and target.body]
        found = named(found, [name], "Deployment", namespace) if name else found
        applications = scale.applications(cluster, namespace, found)
        result: dict[str, Any] = {"applications": [item.summary() for item in applications]}
        if replicas is None:
            return result | {"msg": "\n".join(item.table() for item in applications) or f"nothing in {namespace} yet"}
        [application] = applications
        if application.autoscaler and not application.replicas:
            raise EngineError(
                f"{application} has 0 replicas, which switches its autoscaler off. To do: "
                f"kubectl -n {namespace} scale deployment {name} --replicas=1, then run this again."
            )
        self._check_capacity(cluster, application, replicas, args["capacity_required"], result)
        check = self._task.check_mode
        before = application.autoscaler or application.deployment
        after = scale.scale(cluster, application, replicas, check)
        result["changed"] = diff.content(before) != diff.content(after)
        if self._task.diff:
            result["diff"] = [diff.yaml_diff(before, after, after["metadata"]["name"])]
        state = "would be asked for" if check else self._wait(cluster, application, replicas, args["timeout"], after)
        return result | {"msg": _told(application, replicas, after, state, check)}

    def _check_capacity(
        self, cluster: Cluster, application: scale.Application, replicas: int, required: bool, result: Body
    ) -> None:
        """Refuse what does not fit; where nodes may not be read, or come on demand, only warn."""
        try:
            short = scale.too_small(cluster, application, replicas)
        except ApiError as error:
            if error.status != 403:
                raise
            required, short = False, f"whether its pods fit could not be checked: {error}"
        if short and required:
            raise EngineError(f"{application}, nothing was changed: {short}")
        if short:
            result["warnings"] = [f"{self.settings.cluster_name}: {application}: {short}"]

    def _wait(
        self, cluster: Cluster, application: scale.Application, replicas: int, timeout: float | None, after: Body
    ) -> str:
        """Wait until so many pods are ready; says how long it took."""
        began, timeout = time.monotonic(), timeout or self.settings.wait_timeout
        tell = progress_line(self.settings.cluster_name)
        if application.autoscaler:
            after = scale.wait_for_autoscaler(cluster, application, replicas, timeout, tell)
        [target] = targets_of([after])
        Waiter(cluster, timeout - (time.monotonic() - began), tell).wait([target])
        ready = scale.Application(target.body or after, None).ready
        return f"ready, {ready} of them now, after {time.monotonic() - began:.0f} s"


def _told(application: scale.Application, replicas: int, after: Body, state: str, check: bool) -> str:
    """What was done, and for how long it lasts."""
    text = f"{application}: {replicas} pods {state}"
    keep = "The next run of the role sets what the inventory says"
    if application.autoscaler is None:
        return f"{text}; before: {application.replicas}. {keep}."
    was, now = application.autoscaler["spec"], after["spec"]
    text += f"; the autoscaler {'would keep' if check else 'keeps'} {scale.limits(after)}"
    if was.get("minReplicas", 1) != replicas:
        text += f" (before: {was.get('minReplicas', 1)} to {was['maxReplicas']})"
    if application.replicas > replicas:
        text += ", and takes pods away as their load allows"
    variable = f"{ROLE}_{application.deployment['metadata']['labels'].get('app.kubernetes.io/component', '*')}"
    wanted = [f"{variable}_min_replicas: {replicas}"]
    wanted += [f"{variable}_max_replicas: {now['maxReplicas']}"] if was["maxReplicas"] != now["maxReplicas"] else []
    return f"{text}. {keep}: to keep this, {' and '.join(wanted)} there."
