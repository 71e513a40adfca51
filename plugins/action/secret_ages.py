"""Action of `citadelbuy.platform.secret_ages`: when each secret was changed last. Its manual is in plugins/modules."""

from __future__ import annotations

from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction
from ansible_collections.citadelbuy.platform.plugins.module_utils.secret_ages import write_ages


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns changed and the names of the Leases that are not as before."""
        changes = write_ages(self.connect(), self.settings.namespace, self._task.check_mode)
        return {"changed": bool(changes), "leases": changes, "msg": f"{len(changes)} Leases changed"}
