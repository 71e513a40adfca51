"""Action of `citadelbuy.platform.secret_ready`: wait for a controller's Secret. Its manual is in plugins/modules."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction
from ansible_collections.citadelbuy.platform.plugins.module_utils.made_secret import MAKERS, wait_for_secret


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster, and reads only."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "name": {"type": "str", "required": True},
        "namespace": {"type": "str", "required": True},
        "made_by": {"type": "str", "choices": list(MAKERS), "required": True},
        "keys": {"type": "list", "elements": "str", "required": True, "no_log": False},
        "timeout": {"type": "float"},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns nothing but that the Secret is there."""
        if self._task.check_mode:
            return {"msg": "check mode: nothing to wait for"}
        namespace, name = args["namespace"], args["name"]
        timeout = args["timeout"] or self.settings.wait_timeout
        wait_for_secret(self.connect(), args["made_by"], namespace, name, args["keys"], timeout)
        return {"msg": f"Secret {namespace}/{name} is there"}
