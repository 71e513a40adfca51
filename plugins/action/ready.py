"""Action of `citadelbuy.platform.ready`: wait for all workloads of some sets. Its manual is in plugins/modules."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils import rollback
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction
from ansible_collections.citadelbuy.platform.plugins.module_utils.progress import progress_line
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import Failed, Waiter, find_workloads


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "roles": {"type": "list", "elements": "str", "required": True},
        "timeout": {"type": "float"},
        "rollback_on_failure": {"type": "bool", "default": False},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns objects: what was waited for and for how many seconds."""
        if self._task.check_mode:
            return {"objects": [], "msg": "check mode: nothing to wait for"}
        timeout = args["timeout"] or self.settings.wait_timeout
        cluster = self.connect()
        targets = find_workloads(cluster, args["roles"], self.settings.namespace)
        try:
            Waiter(cluster, timeout, progress_line(self.settings.cluster_name)).wait(targets)
        except Failed as error:
            if not args["rollback_on_failure"]:
                raise
            lines = rollback.undo_failed(cluster, targets, timeout)
            raise EngineError("\n".join([str(error), *lines])) from None
        objects = [
            {
                "kind": target.kind,
                "namespace": target.namespace,
                "name": target.name,
                "seconds": round(target.seconds or 0, 1),
            }
            for target in targets
        ]
        return {"objects": objects, "msg": f"{len(objects)} workloads ready"}
