"""Action of `citadelbuy.platform.diagnose_request`: what became of one request. Its manual is in plugins/modules."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_request import Request
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction, look_back


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster; reads only, in check mode too."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "namespaces": {"type": "list", "elements": "str"},
        "request": {"type": "str", "required": True},
        "since": {"type": "str", "default": "1h"},
        "timeout": {"type": "float", "default": 20.0},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns the request's lines, error and traces for people, as msg."""
        back = look_back(args["since"])
        namespaces = list(dict.fromkeys(args["namespaces"] or [self.settings.namespace]))
        request = Request(self.connect(), namespaces, args["request"], back, args["timeout"])
        return {"_ansible_verbose_always": True, "msg": request.tell(args["since"])}
