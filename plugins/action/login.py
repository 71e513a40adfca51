"""Action of `citadelbuy.platform.login`: a login for a service account. Its manual is in plugins/modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils import login
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError, Resource
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction

SERVICE_ACCOUNT = Resource("v1", "ServiceAccount", "serviceaccounts", True)


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster. The token is in the file and nowhere else."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "service_account": {"type": "str", "required": True},
        "namespace": {"type": "str", "required": True},
        "path": {"type": "str", "required": True},
        "hours": {"type": "float", "required": True},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns changed and, of a new token, when it ends."""
        namespace, name = args["namespace"], args["service_account"]
        cluster = self.connect()
        target = login.cluster_of(str(self.settings.kubeconfig), self.settings.context)
        file = Path(args["path"]).expanduser()
        account = cluster.get(SERVICE_ACCOUNT, namespace, name)
        if account and login.is_good(file, target, account["metadata"]["uid"]):
            return {"msg": f"{file} is good for more than half of its hours"}
        if self._task.check_mode:
            return {"changed": True, "msg": f"{file} would be written"}
        if not account:
            raise EngineError(f"ServiceAccount {namespace}/{name} does not exist: no token can be had for it.")
        token, expires = login.request_token(cluster, namespace, name, args["hours"])
        login.write(file, login.kubeconfig(target, namespace, name, token))
        return {"changed": True, "expires": expires, "msg": f"{file} logs in as {namespace}/{name} until {expires}"}
