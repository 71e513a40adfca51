"""Action of `citadelbuy.platform.ready`: wait for all workloads of some sets. Its manual is in plugins/modules."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.citadelbuy.platform.plugins.module_utils import rollback
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.progress import progress_line
from ansible_collections.citadelbuy.platform.plugins.module_utils.settings import Settings
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import Failed, Waiter, find_workloads


class ActionModule(ActionBase):
    """Runs on the control node, once a cluster."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns objects: what was waited for and for how many seconds."""
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars) | {"changed": False}
        _valid, args = self.validate_argument_spec(
            argument_spec={
                "roles": {"type": "list", "elements": "str", "required": True},
                "timeout": {"type": "float"},
                "rollback_on_failure": {"type": "bool", "default": False},
            }
        )
        if self._task.check_mode:
            return result | {"objects": [], "msg": "check mode: nothing to wait for"}
        settings = Settings(self._templar, task_vars)
        timeout = args["timeout"] or settings.wait_timeout
        try:
            cluster = Cluster.from_kubeconfig(settings.cluster_name, settings.kubeconfig, settings.context)
            targets = find_workloads(cluster, args["roles"], settings.namespace)
            progress = progress_line(settings.cluster_name)
            try:
                Waiter(cluster, timeout, progress).wait(targets)
            except Failed as error:
                if not args["rollback_on_failure"]:
                    raise
                lines = rollback.undo_failed(cluster, targets, timeout)
                raise EngineError("\n".join([str(error), *lines])) from None
        except EngineError as error:
            raise AnsibleActionFail(str(error)) from None
        objects = [
            {
                "kind": target.kind,
                "namespace": target.namespace,
                "name": target.name,
                "seconds": round(target.seconds or 0, 1),
            }
            for target in targets
        ]
        return result | {"objects": objects, "msg": f"{len(objects)} workloads ready"}
